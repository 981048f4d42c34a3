"""Slot dropout: what it drops is a function of key and site, and every number is as likely to stay."""

import pytest
import torch
from reference import supervised as textbook
from torch import nn

from clipx.models.patch_drop import patch_keys
from clipx.models.slot_dropout import SlotDropout, dropout_keys, number_sites


def numbered(rate: float, *, site: int = 0) -> SlotDropout:
    layer = SlotDropout(rate)
    layer.site = site
    return layer


def test_keys_are_a_function_of_seed_batch_and_slot() -> None:
    slots_B = torch.arange(6)
    keys_B = dropout_keys(1, 2, slots_B)
    assert torch.equal(torch.cat([dropout_keys(1, 2, part) for part in slots_B.split(2)]), keys_B)
    others = [dropout_keys(2, 2, slots_B), dropout_keys(1, 3, slots_B), dropout_keys(1, 2, slots_B + 6)]
    others.append(patch_keys(1, 2, slots_B))  # another purpose
    assert len(set(torch.cat([keys_B, *others]).tolist())) == 30


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_drops_what_the_textbook_drops(rate: float) -> None:
    x_BN = torch.randn(4, 30, dtype=torch.float64)
    keys_B = dropout_keys(0, 0, torch.arange(4))
    found = numbered(rate, site=3)(x_BN, keys_B)
    for sample in range(4):
        wanted = textbook.drop(numbered(rate, site=3), x_BN[sample], int(keys_B[sample]))
        torch.testing.assert_close(found[sample], wanted, rtol=1e-15, atol=0)


def test_without_keys_or_rate_it_returns_what_it_gets() -> None:
    x_BN = torch.randn(4, 30)
    assert SlotDropout(0.5)(x_BN) is x_BN
    assert SlotDropout(0.0)(x_BN, dropout_keys(0, 0, torch.arange(4))) is x_BN


def test_other_sites_and_keys_drop_other_numbers() -> None:
    x_BN, keys_B = torch.ones(2, 200), dropout_keys(0, 0, torch.arange(2))
    zero = numbered(0.5)(x_BN, keys_B) == 0
    other = numbered(0.5, site=1)(x_BN, keys_B) == 0
    for first, second in ((zero[0], zero[1]), (zero[0], other[0])):
        assert 60 < (first != second).sum() < 140  # 100 of 200 are expected to differ, with a deviation of 7


def test_every_number_is_as_likely_to_be_dropped_and_the_mean_stays() -> None:
    samples, rate = 20_000, 0.3
    x_BN = numbered(rate)(torch.ones(samples, 8), dropout_keys(0, 0, torch.arange(samples)))
    five_deviations = 5 * (rate * (1 - rate) / samples) ** 0.5
    assert ((x_BN == 0).double().mean(0) - rate).abs().max() < five_deviations
    assert (x_BN.double().mean(0) - 1).abs().max() < five_deviations / (1 - rate)


def test_tokens_of_a_sample_have_places_of_their_own() -> None:
    x_BTD = torch.ones(3, 2, 50)
    keys_B = dropout_keys(0, 0, torch.arange(3))
    dropped_BTD = numbered(0.5)(x_BTD, keys_B)
    assert torch.equal(dropped_BTD.flatten(1), numbered(0.5)(x_BTD.flatten(1), keys_B))
    assert not torch.equal(dropped_BTD[:, 0], dropped_BTD[:, 1])


def test_gradients_pass_where_numbers_stay() -> None:
    x_BN = torch.randn(4, 30, requires_grad=True)
    out_BN = numbered(0.5)(x_BN, dropout_keys(0, 0, torch.arange(4)))
    (gradient_BN,) = torch.autograd.grad(out_BN.sum(), x_BN)
    assert torch.equal(gradient_BN, (out_BN != 0) * 2.0)


def test_every_layer_of_a_model_has_a_site_of_its_own() -> None:
    model = nn.ModuleList([SlotDropout(0.1), nn.Sequential(nn.Linear(2, 2), SlotDropout(0.1)), SlotDropout(0.2)])
    with pytest.raises(AssertionError, match="number_sites"):
        model[0](torch.ones(2, 2), dropout_keys(0, 0, torch.arange(2)))
    number_sites(model)
    assert [layer.site for layer in model.modules() if isinstance(layer, SlotDropout)] == [0, 1, 2]


def test_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    numbered(0.5)(torch.ones(4, 4), dropout_keys(0, 0, torch.arange(4)))
    assert torch.equal(torch.get_rng_state(), before)
