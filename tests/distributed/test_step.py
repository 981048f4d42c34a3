"""What travels in the step's one all-reduce: sums of what is counted, and every rank's own figures at their place."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from torch.nn.functional import normalize

from clipx.errors import RunError
from clipx.objectives.contrastive import mean_cosine
from clipx.train.metrics.step_metrics import (
    Clock,
    InFlightStep,
    RankStats,
    StepMetrics,
    StopOrSave,
    check_names,
    sum_over_ranks,
)

CPU = torch.device("cpu")


def _runtime() -> Any:
    rank, size = dist.get_rank(), dist.get_world_size()
    return SimpleNamespace(rank=rank, world_size=size, group=dist.group.WORLD, device=CPU)


def _metrics() -> StepMetrics:
    rank: int = dist.get_rank()
    sums = sum_over_ranks(
        {"loss": torch.tensor(0.5 + rank), "cosine": torch.tensor(0.2 * (rank + 1)) / 3},
        counts={"num_tokens": rank, "own": 2.0},
        num_bad=rank,
        requests=StopOrSave(stop=rank == 1),
        stats=RankStats(data_wait_s=1.0 + rank, forward_s=10.0 + rank, memory_gib=100.0 + rank),
        runtime=_runtime(),
    )
    clock = Clock(CPU)
    for section in ("model and loss", "forward", "loss", "optimizer"):
        with clock.measure(section):
            pass
    own = torch.tensor([7.0, 1.0, 14.0], dtype=torch.float64)
    return InFlightStep(
        step=3,
        batch=2,
        lr=0.1,
        bad_here=(),
        launched_at=0.0,
        clock=clock,
        sums=sums,
        updated=("logit_scale",),
        values=torch.cat([own, sums.values]),
        filled=None,
    ).read()


def test_figures_and_counts_are_summed_by_name_and_stats_gathered() -> None:
    results = run_ranks(_metrics, 3)
    for metrics in results:
        assert metrics.figures == pytest.approx({"loss": 4.5, "cosine": 0.4, "logit_scale": 14.0})
        assert metrics.counts == {"num_tokens": 3.0, "own": 6.0}
        assert (metrics.loss, metrics.grad_norm, metrics.good, metrics.num_bad) == (4.5, 7.0, True, 3)
        assert (metrics.stop, metrics.save) == (True, False)
        assert metrics.ranks == (RankStats(1, 10, 100), RankStats(2, 11, 101), RankStats(3, 12, 102))


def _differing_names() -> str:
    own = "a" if dist.get_rank() == 0 else "b"
    try:
        check_names({"loss": torch.zeros(()), own: torch.zeros(())}, {"pillow_images": 0.0}, _runtime())
    except RunError as error:
        return str(error)
    return ""


def test_names_that_differ_between_ranks_end_the_run_on_all() -> None:
    first, second = run_ranks(_differing_names, 2)
    assert first == second
    assert first.startswith("figures of rank 1 are loss, b, |, pillow_images and those of rank 0 loss, a, |")


def test_mean_cosine_is_that_of_all_pairs_of_rows() -> None:
    x_BD = normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines_BB = x_BD @ x_BD.T
    expected = (cosines_BB.sum() - cosines_BB.diag().sum()) / (7 * 6)
    torch.testing.assert_close(mean_cosine(x_BD), expected)
    assert mean_cosine(x_BD[:1]).abs() < 1e-6
