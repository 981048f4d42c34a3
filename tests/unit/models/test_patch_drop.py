"""Patch dropout: what it keeps is a function of the keys, and every patch is as likely to stay."""

import pytest
import torch
from torch import Tensor

from clipx.models.patch_drop import kept_patches, num_kept, patch_keys

PATCHES = 20


def kept(rate: float, keys_B: Tensor) -> Tensor:
    return kept_patches(keys_B, num_patches=PATCHES, rate=rate)


@pytest.mark.parametrize(("rate", "number"), [(0.0, 20), (0.5, 10), (0.75, 5), (0.9, 2), (0.999, 1)])
def test_keeps_the_same_number_of_patches_in_each_image(rate: float, number: int) -> None:
    left_BK = kept(rate, patch_keys(0, 0, torch.arange(8)))
    assert left_BK.shape == (8, number)
    assert num_kept(PATCHES, rate) == number
    for row in left_BK.tolist():
        assert len(set(row)) == number
        assert set(row) <= set(range(PATCHES))


def test_is_a_function_of_seed_batch_and_slot() -> None:
    slots_B = torch.arange(6)
    whole = kept(0.5, patch_keys(1, 2, slots_B))
    assert torch.equal(kept(0.5, patch_keys(1, 2, slots_B)), whole)
    parts = [kept(0.5, patch_keys(1, 2, part)) for part in slots_B.split(2)]
    assert torch.equal(torch.cat(parts), whole)
    for other in (patch_keys(2, 2, slots_B), patch_keys(1, 3, slots_B), patch_keys(1, 2, slots_B + 6)):
        assert not torch.equal(kept(0.5, other), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 6


def test_a_higher_rate_leaves_out_more_of_the_same() -> None:
    keys_B = patch_keys(0, 0, torch.arange(4))
    assert torch.equal(kept(0.75, keys_B), kept(0.5, keys_B)[:, :5])


def test_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    kept(0.5, patch_keys(1, 2, torch.arange(6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_patch_is_as_likely_to_stay() -> None:
    number = 8000
    left = kept(0.5, patch_keys(0, 0, torch.arange(number)))
    counts = torch.bincount(left.flatten(), minlength=PATCHES)
    five_deviations = 5 * (number * 0.25) ** 0.5
    assert (counts - number / 2).abs().max() < five_deviations
