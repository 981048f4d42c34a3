"""Heads against the textbook, and their first predictions."""

import copy

import pytest
import torch
from reference import supervised as textbook
from torch import Tensor

from clipx.models.head import Head
from clipx.models.slot_dropout import dropout_keys, number_sites


def build(hidden: list[int]) -> Head:
    torch.manual_seed(0)
    head = Head(6, hidden=hidden, num_outputs=3, dropout=0.4)
    number_sites(head)
    return head.double()


def gradients(out_BO: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights_BO = torch.linspace(-1, 2, out_BO.numel(), dtype=torch.float64).view(out_BO.shape).to(out_BO.dtype)
    return [out_BO.detach(), *torch.autograd.grad((weights_BO * out_BO).sum(), inputs)]


@pytest.mark.parametrize("hidden", [[], [5], [7, 4]])
@pytest.mark.parametrize("drops", [False, True])
def test_value_and_gradients_are_the_textbooks(hidden: list[int], drops: bool) -> None:
    head = build(hidden)
    x_BD = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    keys_B = dropout_keys(1, 2, torch.arange(4)) if drops else None
    wanted = gradients(textbook.head(head, x_BD, keys_B), [x_BD, *head.parameters()])
    torch.testing.assert_close(
        gradients(head(x_BD, keys_B), [x_BD, *head.parameters()]), wanted, rtol=1e-10, atol=1e-10
    )
    narrow, x_BD = copy.deepcopy(head).float(), x_BD.detach().float().requires_grad_()
    for part, exact in zip(gradients(narrow(x_BD, keys_B), [x_BD, *narrow.parameters()]), wanted, strict=True):
        assert (part - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


def test_without_hidden_layers_it_is_one_linear_layer() -> None:
    head = build([])
    assert [name for name, _ in head.named_parameters()] == ["last.weight", "last.bias"]


@pytest.mark.parametrize("hidden", [[], [256]])
def test_its_first_predictions_are_near_0(hidden: list[int]) -> None:
    torch.manual_seed(0)
    out_BO = Head(512, hidden=hidden, num_outputs=10, dropout=0.1)(torch.randn(100, 512))
    assert 0.01 < out_BO.std() < 0.15


def test_its_layers_drop_different_channels() -> None:
    head = build([8, 8])
    assert [dropout.site for dropout in head.dropouts] == [0, 1]
