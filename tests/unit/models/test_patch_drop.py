"""Patch dropout: what it keeps is a function of the keys, and every patch is as likely to stay."""

import pytest
import torch
from torch import Tensor

from clipx.models.patch_drop import PatchDrop, patch_keys

PATCHES = 20


def tokens(batch: int, prefix: int) -> Tensor:
    """(B, prefix + P, 1), each token its own number."""
    return torch.arange(prefix + PATCHES, dtype=torch.float32)[None, :, None].expand(batch, -1, 1)


def kept(rate: float, keys_B: Tensor, prefix: int = 1) -> Tensor:
    drop = PatchDrop(rate, num_prefix_tokens=prefix).train()
    drop.keys_B = keys_B
    return drop(tokens(len(keys_B), prefix))[..., 0]


@pytest.mark.parametrize(("rate", "number"), [(0.5, 10), (0.75, 5), (0.9, 2), (0.999, 1)])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_keeps_prefix_and_the_same_number_of_patches_in_each_image(rate: float, number: int, prefix: int) -> None:
    left_BN = kept(rate, patch_keys(0, 0, torch.arange(8)), prefix)
    assert left_BN.shape == (8, prefix + number)
    assert torch.equal(left_BN[:, :prefix], tokens(8, prefix)[:, :prefix, 0])
    for row in left_BN[:, prefix:].tolist():
        assert len(set(row)) == number
        assert min(row) >= prefix


def test_is_a_function_of_seed_batch_and_slot() -> None:
    slots_B = torch.arange(6)
    whole = kept(0.5, patch_keys(1, 2, slots_B))
    assert torch.equal(kept(0.5, patch_keys(1, 2, slots_B)), whole)
    parts = [kept(0.5, patch_keys(1, 2, part)) for part in slots_B.split(2)]
    assert torch.equal(torch.cat(parts), whole)
    for other in (patch_keys(2, 2, slots_B), patch_keys(1, 3, slots_B), patch_keys(1, 2, slots_B + 6)):
        assert not torch.equal(kept(0.5, other), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 6


def test_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    kept(0.5, patch_keys(1, 2, torch.arange(6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_patch_is_as_likely_to_stay() -> None:
    number = 8000
    left = kept(0.5, patch_keys(0, 0, torch.arange(number)), prefix=0).long()
    counts = torch.bincount(left.flatten(), minlength=PATCHES)
    five_deviations = 5 * (number * 0.25) ** 0.5
    assert (counts - number / 2).abs().max() < five_deviations


def test_does_nothing_in_evaluation_or_without_a_rate() -> None:
    x = tokens(2, 1)
    assert PatchDrop(0.5, num_prefix_tokens=1).eval()(x) is x
    assert PatchDrop(0.0, num_prefix_tokens=1).train()(x) is x


def test_training_without_keys_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="keys"):
        PatchDrop(0.5, num_prefix_tokens=1).train()(tokens(2, 1))
