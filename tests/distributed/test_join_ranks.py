"""Commands on several ranks wait for the slowest, however long torch would."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks

from clipx.distributed.collectives import gather_objects, rank
from clipx.distributed.runtime import join_ranks


def slow_on_rank_1(options: dict[str, None]) -> list[int]:
    """On one rank of a group that waits for 0.2 s, as torch's does for 10 or 30 minutes."""
    dist.group.WORLD._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=0.2))
    with join_ranks(**options) as (_, group):
        time.sleep(rank(group))
        return gather_objects(rank(group), group)


def test_ranks_wait_for_a_slower_one() -> None:
    assert run_ranks(slow_on_rank_1, 2, {}) == [[0, 1]] * 2


def test_the_doctor_keeps_torchs_own_timeout() -> None:
    with pytest.raises(RuntimeError, match=r"(?i)timed out|closed"):
        run_ranks(slow_on_rank_1, 2, {"patience": None})
