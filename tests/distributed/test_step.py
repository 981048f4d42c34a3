"""What travels in the step's one all-reduce: sums of what is counted, and every rank's own figures at their place."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from torch.nn.functional import normalize

from clipx.train.metrics.step_metrics import Vitals
from clipx.train.step import Stepper, mean_cosine


def _sums() -> list[float]:
    rank: int = dist.get_rank()
    stepper: Any = object.__new__(Stepper)
    runtime = SimpleNamespace(rank=rank, world_size=dist.get_world_size(), group=dist.group.WORLD)
    object.__setattr__(stepper, "runtime", runtime)
    share, cosines_2 = torch.tensor(0.5 + rank), torch.tensor([0.2, 0.4]) * (rank + 1)
    vitals = Vitals(data_wait_s=1.0 + rank, forward_s=10.0 + rank, memory_gib=100.0 + rank)
    sums: list[float] = stepper._sum_over_ranks(share, cosines_2, [rank, 2.0], vitals).tolist()
    return sums


def test_counts_are_summed_cosines_averaged_and_vitals_gathered() -> None:
    of_ranks = run_ranks(_sums, 3)
    assert of_ranks[0] == of_ranks[1] == of_ranks[2]
    loss, *counts_and_cosines = of_ranks[0][:5]
    assert (loss, counts_and_cosines[:2]) == (4.5, [3.0, 6.0])
    torch.testing.assert_close(counts_and_cosines[2:], [0.4, 0.8])
    assert of_ranks[0][5:] == [1.0, 10.0, 100.0, 2.0, 11.0, 101.0, 3.0, 12.0, 102.0]


def test_mean_cosine_is_that_of_all_pairs_of_rows() -> None:
    x_BD = normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines_BB = x_BD @ x_BD.T
    expected = (cosines_BB.sum() - cosines_BB.diag().sum()) / (7 * 6)
    torch.testing.assert_close(mean_cosine(x_BD), expected)
    assert mean_cosine(x_BD[:1]).abs() < 1e-6
