"""Weights in half precision: what rounding costs is told, and bounded."""

import pytest
import torch
from tiny_clip import tiny_pretrained

from clipx.errors import InputError, RunError
from clipx.export.parity.half import rounding
from clipx.export.parity.ours import our_outputs
from clipx.export.parity.samples import drawn_samples
from clipx.export.weights import round_to_half


def test_rounding_moves_embeddings_a_little_and_says_how_much() -> None:
    pretrained = tiny_pretrained()
    samples = drawn_samples(24)
    trained = our_outputs(pretrained, samples.pictures, samples.texts)
    round_to_half(pretrained.model)
    told = rounding(trained, our_outputs(pretrained, samples.pictures, samples.texts))
    assert 1e-6 < told["largest_difference"]["image_embeddings"] < 1e-2
    assert all(0.9999 < cosine < 1.0001 for cosine in told["lowest_cosine"].values())
    again = our_outputs(pretrained, samples.pictures, samples.texts)
    round_to_half(pretrained.model)
    assert rounding(again, our_outputs(pretrained, samples.pictures, samples.texts))["other_best_text"] == 0


def test_more_than_rounding_ends_the_export() -> None:
    samples = drawn_samples(24)
    one = our_outputs(tiny_pretrained(), samples.pictures, samples.texts)
    other = our_outputs(tiny_pretrained(seed=1), samples.pictures, samples.texts)
    with pytest.raises(RunError, match=r"half precision change the embeddings: .*limit 0\.999.*--dtype fp32"):
        rounding(one, other)


def test_weights_too_large_for_half_precision_are_bad_input() -> None:
    model = tiny_pretrained().model
    with torch.no_grad():
        model.image_tower.projection.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"image_tower\.projection.* has a weight of 1e\+05.*--dtype fp32"):
        round_to_half(model)
