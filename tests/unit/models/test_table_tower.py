"""The table tower against the textbook, and what an absent cell may change."""

import copy

import pytest
import torch
from reference import supervised as textbook
from torch import Tensor

from clipx.models.table_tower import TableTower

SIZES = [3, 2]
NAN = float("nan")


def build() -> TableTower:
    torch.manual_seed(0)
    tower = TableTower(3, category_sizes=SIZES, dim=6).double()
    torch.nn.init.normal_(tower.bias_H)
    return tower


def cells() -> tuple[Tensor, Tensor]:
    numbers_BK = torch.tensor(
        [[0.5, -1.0, 2.0], [NAN, 1.5, NAN], [NAN, NAN, NAN], [0.0, NAN, 1.0]], dtype=torch.float64
    )
    return numbers_BK, torch.tensor([[0, 1], [-1, 0], [-1, -1], [2, -1]])


def gradients(out_BD: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights_BD = torch.linspace(-1, 2, out_BD.numel(), dtype=torch.float64).view(out_BD.shape).to(out_BD.dtype)
    return [out_BD.detach(), *torch.autograd.grad((weights_BD * out_BD).sum(), inputs)]


def test_value_and_gradients_are_the_textbooks() -> None:
    tower = build()
    numbers_BK, categories_BC = cells()
    numbers_BK.requires_grad_()
    inputs = [numbers_BK, *tower.parameters()]
    wanted = gradients(textbook.table(tower, numbers_BK, categories_BC, category_sizes=SIZES), inputs)
    torch.testing.assert_close(gradients(tower(numbers_BK, categories_BC), inputs), wanted, rtol=1e-10, atol=1e-10)
    narrow, numbers_BK = copy.deepcopy(tower).float(), numbers_BK.detach().float().requires_grad_()
    found = gradients(narrow(numbers_BK, categories_BC), [numbers_BK, *narrow.parameters()])
    for part, exact in zip(found, wanted, strict=True):
        assert part.isfinite().all()
        assert (part - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


def test_what_an_absent_number_holds_changes_no_bit() -> None:
    tower = build().float()
    numbers_BK, categories_BC = cells()
    numbers_BK = numbers_BK.float()
    other_BK = numbers_BK.clone()
    other_BK.view(torch.int32)[numbers_BK.isnan()] |= 0x1234  # still a NaN, with another content
    other_BK.view(torch.int32)[2] |= -(2**31)  # and with a sign
    assert other_BK.isnan().equal(numbers_BK.isnan())
    assert torch.equal(tower(other_BK, categories_BC), tower(numbers_BK, categories_BC))


def test_an_absent_number_is_no_zero_and_every_cell_matters() -> None:
    tower = build()
    numbers_BK, categories_BC = cells()
    outs = [tower(numbers_BK, categories_BC)]
    for index in range(3):
        changed_BK = numbers_BK.clone()
        changed_BK[:, index] = torch.where(numbers_BK[:, index].isnan(), 0, NAN)
        outs.append(tower(changed_BK, categories_BC))
    for index in range(2):
        changed_BC = categories_BC.clone()
        changed_BC[:, index] = torch.where(categories_BC[:, index] < 0, 1, -1)
        outs.append(tower(numbers_BK, changed_BC))
    for place, first in enumerate(outs):
        for second in outs[place + 1 :]:
            assert ((first - second).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(("numbers", "sizes"), [(2, []), (0, [3]), (2, [3, 4])])
def test_columns_of_one_kind_alone(numbers: int, sizes: list[int]) -> None:
    torch.manual_seed(0)
    tower = TableTower(numbers, category_sizes=sizes, dim=16)
    numbers_BK = torch.randn(50, numbers) if numbers else None
    categories_BC = torch.randint(-1, 3, (50, len(sizes))) if sizes else None
    out_BD = tower(numbers_BK, categories_BC)
    torch.testing.assert_close(out_BD.mean(1), torch.zeros(50), atol=1e-6, rtol=0)
    torch.testing.assert_close(out_BD.var(1, correction=0), torch.ones(50), atol=1e-2, rtol=0)
    out_BD.sum().backward()
    assert all(parameter.grad is not None and parameter.dim() > 0 for parameter in tower.parameters())


def test_compiles_without_a_break_and_needs_no_value_on_the_host() -> None:
    tower = build()
    numbers_BK, categories_BC = cells()
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(numbers_BK, categories_BC), tower(numbers_BK, categories_BC))
    assert tower.to("meta")(numbers_BK.to("meta"), categories_BC.to("meta")).shape == (4, 6)
