"""The row of a consumer: the limit binds where it sees what the model sees, and the rest is told."""

import dataclasses

import pytest
import torch
from tiny_clip import tiny_model_config
from torch.nn.functional import normalize

from clipx.export.parity.compare import above_limit, compare
from clipx.export.parity.consumer import LIMIT, Outputs
from clipx.export.parity.crops import same_crop

B, N, D = 4, 3, 8


def outputs() -> Outputs:
    generator = torch.Generator().manual_seed(0)
    image_BD = normalize(torch.randn(B, D, generator=generator), dim=1)
    text_ND = normalize(torch.randn(N, D, generator=generator), dim=1)
    logits_BN = 100 * image_BD @ text_ND.T
    return Outputs(
        pixels_B3SS=torch.rand(B, 3, 2, 2, generator=generator),
        tokens=[[1, 5, 2], [1, 6, 2], [1, 2]],
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=logits_BN,
        hidden_BPC=torch.randn(B, 5, 6, generator=generator),
    )


def theirs() -> Outputs:
    """The same, with scores."""
    ours = outputs()
    assert ours.logits_BN is not None
    return dataclasses.replace(ours, scores_BN=ours.logits_BN.softmax(dim=1))


def changed(field: str, row: int, by: float) -> Outputs:
    """A consumer's outputs with one row of one field moved."""
    ours = theirs()
    moved = getattr(ours, field).clone()
    moved[row] += by
    return dataclasses.replace(ours, **{field: moved})


@pytest.mark.parametrize("field", ["pixels_B3SS", "image_BD", "text_ND", "logits_BN", "hidden_BPC", "scores_BN"])
@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_each_output_is_held_to_the_limit(field: str, by: float) -> None:
    assert above_limit(compare(outputs(), changed(field, 1, 1e-6), same_crop=[True] * B), LIMIT) == []
    row = compare(outputs(), changed(field, 1, by), same_crop=[True] * B)
    assert len(above_limit(row, LIMIT)) == 1
    assert above_limit(row, None) == []


@pytest.mark.parametrize("field", ["pixels_B3SS", "image_BD", "logits_BN", "hidden_BPC", "scores_BN"])
def test_pictures_that_are_cut_elsewhere_are_told_and_not_bound(field: str) -> None:
    row = compare(outputs(), changed(field, 1, 0.5), same_crop=[True, False, True, True])
    assert above_limit(row, LIMIT) == []
    assert (row["pictures"], row["same_crop"]) == (4, 0.75)
    assert row["other_crop"]["pictures"] == 1
    assert row["other_crop"]["largest_difference"] == pytest.approx(0.5 if field == "image_BD" else 0)


def test_texts_with_other_ids_are_told_and_not_bound() -> None:
    other = dataclasses.replace(changed("text_ND", 2, 0.5), tokens=[[1, 5, 2], [1, 6, 2], [1, 9, 2]])
    row = compare(outputs(), other, same_crop=[True] * B)
    assert above_limit(row, LIMIT) == []
    assert row["same_token_ids"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["other_token_ids"]["texts"] == 1
    assert row["other_token_ids"]["largest_difference"] == pytest.approx(0.5)
    assert row["other_token_ids"]["lowest_cosine"] < 1


def test_other_best_texts_are_counted_and_equal_ones_are_no_change() -> None:
    ours = outputs()
    assert ours.logits_BN is not None
    reversed_BN = -ours.logits_BN
    row = compare(ours, Outputs(logits_BN=reversed_BN), same_crop=[True] * B)
    assert row["other_best_text"] == B
    tied = torch.zeros(B, N)
    equal = dataclasses.replace(ours, logits_BN=tied)
    assert (
        compare(equal, Outputs(logits_BN=tied + torch.eye(B, N) * 1e-6), same_crop=[True] * B)["other_best_text"] == 0
    )


def test_a_consumer_has_only_what_it_computes() -> None:
    ours = outputs()
    row = compare(ours, Outputs(text_ND=ours.text_ND, tokens=ours.tokens), same_crop=[False] * B)
    assert set(row) == {"texts", "same_token_ids", "largest_difference"}
    assert set(row["largest_difference"]) == {"text_embeddings"}


def test_scores_are_compared_over_the_texts_with_the_same_ids() -> None:
    ours = outputs()
    assert ours.logits_BN is not None
    logits_BN = ours.logits_BN.clone()
    logits_BN[:, 2] += 3  # what other ids do to a softmax over all texts
    ids = [[1, 5, 2], [1, 6, 2], [1, 9, 2]]
    other = Outputs(tokens=ids, scores_BN=logits_BN.softmax(dim=1))
    assert above_limit(compare(ours, other, same_crop=[True] * B), LIMIT) == []
    sigmoids = Outputs(scores_BN=ours.logits_BN.sigmoid(), are_sigmoids=True)
    assert above_limit(compare(ours, sigmoids, same_crop=[True] * B), LIMIT) == []
    assert above_limit(compare(ours, dataclasses.replace(sigmoids, are_sigmoids=False), same_crop=[True] * B), LIMIT)


def test_outputs_may_be_of_some_pictures_and_texts() -> None:
    ours = outputs()
    assert ours.logits_BN is not None
    assert ours.tokens is not None
    assert ours.hidden_BPC is not None
    some = Outputs(
        tokens=[ours.tokens[2], ours.tokens[0]],
        logits_BN=ours.logits_BN[[3, 1]][:, [2, 0]],
        hidden_BPC=ours.hidden_BPC[[3, 1]],
        pictures=[3, 1],
        texts=[2, 0],
    )
    row = compare(ours, some, same_crop=[True, False, True, True])
    assert above_limit(row, LIMIT) == []
    assert (row["pictures"], row["same_crop"], row["texts"], row["same_token_ids"]) == (2, 0.5, 2, 1.0)


def test_hidden_states_are_measured_against_the_largest() -> None:
    ours = outputs()
    assert ours.hidden_BPC is not None
    large = dataclasses.replace(ours, hidden_BPC=ours.hidden_BPC * 1000)
    assert large.hidden_BPC is not None
    row = compare(large, Outputs(hidden_BPC=large.hidden_BPC + 0.01), same_crop=[True] * B)
    assert 0 < row["largest_difference"]["hidden_state"] < 1e-4


@pytest.mark.parametrize("rest", range(8))
def test_the_corner_is_one_pixel_aside_where_the_rest_is_three_of_four(rest: int) -> None:
    config = tiny_model_config()
    size = (24 + rest, 24)
    assert same_crop([size], config, crop="round") == [True]
    assert same_crop([size], config, crop="floor") == [rest % 4 != 3]
