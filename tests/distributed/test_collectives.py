"""The collectives, on several ranks and alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from torch import Tensor

from clipx.distributed import collectives
from clipx.errors import InputError


def part(rank: int, dtype: torch.dtype) -> Tensor:
    """(6, 2), different on every rank."""
    return (torch.arange(12).view(6, 2) + 100 * rank).to(dtype)


def everything(dtype: torch.dtype) -> dict[str, object]:
    group, rank = dist.group.WORLD, dist.get_rank()
    mine = part(rank, dtype)
    strided = mine.repeat(1, 2)[:, ::2]  # not contiguous
    return {
        "place": (collectives.rank(group), collectives.world_size(group)),
        "gathered": collectives.all_gather(strided, group),
        "scattered": collectives.reduce_scatter_sum(mine, group),
        "sum": collectives.all_reduce(mine.clone(), "sum", group),
        "max": collectives.all_reduce(mine.clone(), "max", group),
        "shifted": collectives.ring_shift_async(strided, group)(),
        "group": collectives.named_group(group.group_name) is group,
        "objects": collectives.gather_objects({"rank": rank}, group),
        "alone": collectives.all_gather(mine, None),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_on_several_ranks(world_size: int, dtype: torch.dtype) -> None:
    parts = [part(rank, dtype) for rank in range(world_size)]
    total = torch.stack(parts).sum(0)
    rows = 6 // world_size
    for rank, result in enumerate(run_ranks(everything, world_size, dtype)):
        assert result["place"] == (rank, world_size)
        strided = [mine.repeat(1, 2)[:, ::2] for mine in parts]
        assert torch.equal(result["gathered"], torch.cat(strided))
        assert torch.equal(result["shifted"], strided[(rank - 1) % world_size])
        assert result["group"]
        assert torch.equal(result["scattered"], total[rank * rows : (rank + 1) * rows])
        assert torch.equal(result["sum"], total)
        assert torch.equal(result["max"], parts[-1])
        assert result["objects"] == [{"rank": other} for other in range(world_size)]
        assert torch.equal(result["alone"], parts[rank])


def loss_share(own_BD: Tensor, all_GD: Tensor, targets_B: Tensor) -> Tensor:
    """The part of a softmax loss over all rows that belongs to the rows `own_BD`; parts add up to the loss."""
    logits_BG = own_BD @ all_GD.T + torch.arange(len(all_GD)) * all_GD.sum(dim=1)
    return -logits_BG.log_softmax(dim=1).gather(1, targets_B[:, None]).sum()


def input_rows(world_size: int) -> Tensor:
    """(3 W, 2) in float64."""
    return torch.randn(3 * world_size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gathered_loss() -> tuple[Tensor, Tensor, Tensor]:
    """What was gathered, this rank's share of the loss and the gradient of its rows."""
    group, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    own = input_rows(size).chunk(size)[rank].clone().requires_grad_()
    gathered = collectives.all_gather_with_gradient(own, group)
    share = loss_share(own, gathered, torch.arange(3) + 3 * rank)
    share.backward()
    return gathered.detach(), share.detach(), own.grad


def test_gradients_flow_through_a_gather_as_on_one_process() -> None:
    whole = input_rows(2).requires_grad_()
    loss = loss_share(whole, collectives.all_gather_with_gradient(whole, None), torch.arange(6))
    loss.backward()
    gathered, shares, gradients = zip(*run_ranks(gathered_loss, 2), strict=True)
    for tensor in gathered:
        assert torch.equal(tensor, whole.detach())
    torch.testing.assert_close(sum(shares), loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(gradients), whole.grad, rtol=1e-12, atol=1e-12)


def times_observed() -> list[int]:
    """How often the observer was entered by each collective on tensors; a shift counts when it is waited for."""
    group, x, entered = dist.group.WORLD, part(0, torch.float32), []

    @contextmanager
    def observer() -> Iterator[None]:
        entered.append(1)
        yield

    shift = collectives.ring_shift_async(x, group)
    gathered = collectives.all_gather_with_gradient(x.clone().requires_grad_(), group)
    calls = [
        lambda: collectives.all_gather(x, group),
        lambda: collectives.reduce_scatter_sum(x, group),
        lambda: collectives.all_reduce(x.clone(), "sum", group),
        lambda: gathered.sum().backward(),
        shift,
    ]
    counts = []
    with collectives.observed(observer):
        for call in calls:
            entered.clear()
            call()
            counts.append(len(entered))
    entered.clear()
    collectives.all_gather(x, group)
    return [*counts, len(entered)]


def test_an_observer_sees_each_of_them_once_and_only_within() -> None:
    assert run_ranks(times_observed, 2) == [[1, 1, 1, 1, 1, 0]] * 2


def test_alone_there_is_nothing_to_do() -> None:
    x = part(0, torch.float32)
    assert (collectives.rank(None), collectives.world_size(None)) == (0, 1)
    assert collectives.all_gather(x, None) is x
    assert collectives.all_gather_with_gradient(x, None) is x
    assert collectives.reduce_scatter_sum(x, None) is x
    assert collectives.ring_shift_async(x, None)() is x
    assert collectives.named_group("") is None
    assert collectives.all_reduce(x, "max", None) is x
    assert collectives.gather_objects("x", None) == ["x"]


def begins_slowly(folder: Path) -> object:
    group, rank = dist.group.WORLD, dist.get_rank()

    def work() -> bool:
        if rank == 0:
            time.sleep(0.3)
            (folder / "left").touch()
        elif rank == 2:
            raise InputError("rank 2 cannot")
        return (folder / "left").exists()

    found = collectives.rank0_first(lambda: rank == 2 or work(), group)
    try:
        collectives.rank0_first(work, group)
    except InputError as error:
        return found, str(error)
    return found, "no error"


def test_rank_0_works_first_and_an_error_is_everybodys(tmp_path: Path) -> None:
    assert run_ranks(begins_slowly, 3, tmp_path) == [(True, "rank 2 cannot")] * 3
    assert collectives.rank0_first(lambda: 7, None) == 7
