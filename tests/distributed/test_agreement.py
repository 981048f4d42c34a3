"""What one rank cannot do, none does: ranks agree before they go on, and none waits for one that has failed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from tiny import tiny_config
from torch import Tensor, nn

from clipx.config.geometry import micro_batch_sizes
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import compile_blocks
from clipx.distributed.collectives import raise_on_all_ranks
from clipx.distributed.runtime import start_runtime
from clipx.errors import InputError
from clipx.train.micro_batch import largest_micro_batch

BASE, SLOPE = 1_000_000, 50_000


def micro_batch(config: RunConfig, rooms: list[int]) -> int | str:
    """The size that is found where this rank's memory ends at so many pairs, or what is said instead."""
    limit = BASE + rooms[dist.get_rank()] * SLOPE

    def run(num_pairs: int) -> None:
        if BASE + num_pairs * SLOPE > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        torch.empty(BASE + num_pairs * SLOPE, dtype=torch.uint8)

    with start_runtime(config) as runtime:
        try:
            return largest_micro_batch(
                nn.Linear(1, 1),
                sizes=micro_batch_sizes(120),
                run=run,
                reserved_bytes=0,
                runtime=runtime,
                limit=10 * limit // 9 + 9,
            )
        except InputError as error:
            return str(error)


@pytest.mark.parametrize(("rooms", "found"), [([500, 5], 5), ([7, 500], 6)])
def test_the_fullest_rank_decides(rooms: list[int], found: int, tmp_path: Path) -> None:
    assert run_ranks(micro_batch, 2, tiny_config(tmp_path, "none.tar"), rooms, timeout_s=60) == [found, found]


def test_no_rank_waits_for_one_without_memory(tmp_path: Path) -> None:
    for message in run_ranks(micro_batch, 2, tiny_config(tmp_path, "none.tar"), [500, 0], timeout_s=60):
        assert "not one pair fits" in str(message)


def compiled(broken_rank: int) -> tuple[bool, bool]:
    """Whether the blocks of this rank were compiled, and whether they run through the compiler now."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        if dist.get_rank() == broken_rank:
            raise RuntimeError("no C++ compiler")

        def run(*arguments: Tensor) -> object:
            calls.append(1)
            return graph.forward(*arguments)

        return run

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    problem = compile_blocks(
        list(model), dry_run=lambda: model(torch.ones(2, 3)), group=dist.group.WORLD, backend=backend
    )
    calls.clear()
    model(torch.ones(2, 3))
    return problem is None, bool(calls)


def test_one_rank_that_cannot_compile_holds_all_back() -> None:
    assert run_ranks(compiled, 2, 1) == [(False, False)] * 2
    assert run_ranks(compiled, 2, -1) == [(True, True)] * 2


class ForeignError(Exception):
    """Of a library: it can be sent, and not be read."""

    def __init__(self, *, response: str) -> None:
        super().__init__(f"no answer\nbut {response}")


def raised() -> tuple[str, str]:
    """What this rank raises when rank 1 does."""
    try:
        with raise_on_all_ranks(dist.group.WORLD):
            if dist.get_rank() == 1:
                raise ForeignError(response="404")
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("nothing was raised")


def test_an_error_that_cannot_travel_is_told_all_the_same() -> None:
    assert run_ranks(raised, 2) == [
        ("RunError", "ForeignError: no answer but 404"),
        ("ForeignError", "no answer\nbut 404"),
    ]
