"""What travels in the step's one all-reduce: sums of what is counted, and every rank's own figures at their place."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from clipx.config.parallel import DdpConfig
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.objectives.contrastive import mean_cosine
from clipx.objectives.objective import Share
from clipx.train.metrics.step_metrics import (
    Clock,
    Figures,
    InFlightStep,
    RankStats,
    StepMetrics,
    StopOrSave,
    check_first,
    check_outputs,
    own_numbers,
    sum_over_ranks,
)

CPU = torch.device("cpu")


def _runtime(rank: int, size: int) -> Runtime:
    accelerator: Any = SimpleNamespace(process_index=rank, num_processes=size, device=CPU)
    return Runtime(accelerator, DdpConfig(), host_group=dist.group.WORLD if size > 1 else None)


def _of_ranks() -> Runtime:
    return _runtime(dist.get_rank(), dist.get_world_size())


def _metrics() -> StepMetrics:
    rank: int = dist.get_rank()
    counts = {"num_tokens": rank, "own": 2.0}
    numbers = own_numbers(
        counts,
        num_bad=rank,
        requests=StopOrSave(stop=rank == 1),
        stats=RankStats(data_wait_s=1.0 + rank, forward_s=10.0 + rank, memory_gib=100.0 + rank),
        runtime=_of_ranks(),
    )
    sums = sum_over_ranks(
        {"loss": torch.tensor(0.5 + rank), "cosine": torch.tensor(0.2 * (rank + 1)) / 3},
        torch.tensor(numbers, dtype=torch.float64),
        counts=tuple(counts),
        group=dist.group.WORLD,
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


def _refused(names: tuple[str, ...], unused: bool) -> str:
    """What the first step's check says."""
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    if not unused:
        model["unused"].requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    model["used"](torch.ones(1, 2)).sum().backward()
    try:
        check_first(names if dist.get_rank() else ("loss", "a"), wrapped, _of_ranks())
    except RunError as error:
        return str(error)
    return ""


def test_what_would_be_wrong_in_silence_ends_the_run_on_all_ranks() -> None:
    first, second = run_ranks(_refused, 2, ("loss", "b"), False)
    assert first == second
    assert first.startswith("figures of rank 1 are loss, b and those of rank 0 loss, a; an objective must give")
    first, second = run_ranks(_refused, 2, ("loss", "a"), True)
    assert first == second
    assert first.startswith("2 parameters have no gradient, unused.weight first; an objective must freeze what")
    assert run_ranks(_refused, 2, ("loss", "a"), False) == ["", ""]


def test_a_name_that_stands_twice_ends_the_run() -> None:
    model, alone = nn.Linear(2, 2), _runtime(0, 1)
    check_first(("loss", "logit_scale"), model, alone)
    with pytest.raises(RunError, match="figures have the same name: logit_scale; an objective must give each its own"):
        check_first(("loss", "logit_scale", "logit_scale"), model, alone)


@dataclass(frozen=True)
class Two:
    x_BD: Tensor
    scale: Tensor


def test_outputs_must_have_the_shapes_of_their_names() -> None:
    sizes = {"B": 4, "I": 2, "T": 9}
    check_outputs(Two(torch.zeros(4, 3), torch.zeros(1)), sizes)
    with pytest.raises(RunError, match=r"output x_BD has the shape \(2, 3\), for 4 pairs, 2 images and 9 tokens"):
        check_outputs(Two(torch.zeros(2, 3), torch.zeros(1)), sizes)
    with pytest.raises(RunError, match=r"output scale has the shape \(4,\).* or in none if it is one number"):
        check_outputs(Two(torch.zeros(4, 3), torch.zeros(4)), sizes)


def test_figures_are_weighted_named_and_each_its_own() -> None:
    figures = Figures(several=True)
    shares = {"a": Share(torch.tensor(2.0), {"own": torch.tensor(1.0)}), "b": Share(torch.tensor(3.0))}
    assert figures.add(shares, {"a": 1.0, "b": 0.5}) == 3.5
    figures.add({"a": shares["a"]}, {"a": 1.0})  # another piece
    assert {name: float(value) for name, value in figures.values.items()} == {
        "loss": 5.5,
        "loss_a": 4.0,
        "own": 2.0,
        "loss_b": 3.0,
    }
    for name in ("own", "loss", "loss_a"):
        with pytest.raises(RunError, match=f"the loss b gives a figure '{name}', which there is already"):
            figures.add({"b": Share(torch.tensor(1.0), {name: torch.tensor(1.0)})}, {"b": 1.0})
    with pytest.raises(RunError, match=r"the loss a is torch.bfloat16; compute it in at least float32"):
        figures.add({"a": Share(torch.tensor(1.0, dtype=torch.bfloat16))}, {"a": 1.0})


def test_mean_cosine_is_that_of_all_pairs_of_rows() -> None:
    x_BD = normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines_BB = x_BD @ x_BD.T
    expected = (cosines_BB.sum() - cosines_BB.diag().sum()) / (7 * 6)
    torch.testing.assert_close(mean_cosine(x_BD), expected)
    assert mean_cosine(x_BD[:1]).abs() < 1e-6
