"""The helper that runs functions on several processes: results, failures, deaths and hangs."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks


def rank_and_sum(offset: int) -> tuple[int, int, str | None]:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return dist.get_rank(), int(total), os.environ.get("CLIPX_TEST_RANKS")


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()


def die_on_rank_1() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def hang_on_rank_0() -> None:
    if dist.get_rank() == 0:
        time.sleep(600)


def test_results_come_in_the_order_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPX_TEST_RANKS", "here")
    assert run_ranks(rank_and_sum, 3, 10) == [(rank, 33, "here") for rank in range(3)]


def test_the_first_failure_is_raised_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="rank 1 has had enough") as caught:
        run_ranks(fail_on_rank_1, 3)
    assert "fail_on_rank_1" in caught.value.__notes__[0]


def test_a_death_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 died|onnection"):
        run_ranks(die_on_rank_1, 2)


def test_a_hang_ends_when_the_time_is_up() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[0\] of 2 gave no result within 6 s"):
        run_ranks(hang_on_rank_0, 2, timeout_s=6)
