"""Rows of metrics.jsonl: every duration stands in the row of the steps that it belongs to."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fit_runs import tiny_fit
from tiny import metrics, tiny_config

from clipx.checkpoint.state import Progress
from clipx.distributed.runtime import start_runtime
from clipx.errors import RunError
from clipx.train.metrics.monitor import Monitor, own_stats
from clipx.train.metrics.step_metrics import RankStats, StepMetrics
from clipx.train.metrics.warnings import Diagnosis

DIAGNOSIS = Diagnosis(max_logit_scale=100, warmup_steps=0, max_bad_fraction=0.01, workers=1, hosts=["a", "b"])


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    config = tiny_config(tmp_path, "none.tar", "steps=4")
    with start_runtime(config) as runtime, Monitor(runtime, config, config.length(), DIAGNOSIS) as opened:
        opened.truncate_after(0)
        yield opened


def outcome(step: int, *, num_tokens: int = 24 * 12) -> StepMetrics:
    """Of 24 pairs with half of their 24 tokens."""
    return StepMetrics(
        step=step,
        grad_norm=1.0,
        lr=0.1,
        figures={"loss": 3.0, "logit_scale": 14.0, "image_cosine": 0.1, "text_cosine": 0.2, "own": 5.0},
        counts={"num_tokens": num_tokens, "model_flops": 1e9, "pillow_images": 2, "own_count": step},
        good=True,
        stop=False,
        save=False,
        num_bad=0,
        bad_here=(),
        batch=step - 1,
        ranks=(RankStats(1.0, 0.5, 2.0, 0.25), RankStats(3.0, 0.25, 4.0, 0.5)),
        seconds={"forward": 0.5, "backward": 1.0},
        launched_at=time.perf_counter(),
    )


def test_a_wait_stands_in_the_row_of_its_step(monitor: Monitor, tmp_path: Path) -> None:
    monitor.record_data_wait(1.0, step=1)
    monitor.record_data_wait(20.0, step=2)  # the next batch is fetched before the step is read
    for step in (1, 2, 3):
        monitor.record(outcome(step), Progress(), bad_samples=0, data={})
    assert [row["data_wait_s"] for row in metrics(tmp_path)] == [1.0, 20.0, 0.0]


@pytest.mark.parametrize("unit", ["pairs", "rows"])
def test_a_person_reads_of_what_the_run_is_made(unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, "none.tar", "steps=4") if unit == "pairs" else tiny_fit(tmp_path, tmp_path)
    with start_runtime(config) as runtime, Monitor(runtime, config, config.length(), DIAGNOSIS) as monitor:
        monitor.truncate_after(0)
        monitor.record(outcome(1), Progress(), bad_samples=0, data={})
    assert f" {unit}/s  waited" in capsys.readouterr().err


def test_a_line_shows_the_parts_of_the_loss_if_they_are_few(
    monitor: Monitor, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, names in enumerate((("loss",), ("loss", "loss_a", "loss_b"), ("loss", *(f"loss_{c}" for c in "abcd")))):
        step = outcome(number + 1)
        monitor._last_line = float("-inf")
        others = {name: value for name, value in step.figures.items() if name != "loss"}
        monitor.record(replace(step, figures=dict.fromkeys(names, 0.5) | others), Progress(), bad_samples=0, data={})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition("  ")[2].partition("  ")[0] for line in lines] == [
        "loss 0.5000",
        "loss 0.5000 (a 0.5000, b 0.5000)",
        "loss 0.5000",
    ]


def test_saving_and_evaluating_are_told_apart_from_training(monitor: Monitor, tmp_path: Path) -> None:
    monitor.record(outcome(1), Progress(), bad_samples=0, data={})
    for _ in range(2):
        with monitor.pause():
            time.sleep(0.02)
    for step in (2, 3):
        monitor.record(outcome(step), Progress(), bad_samples=0, data={})
    first, second, third = metrics(tmp_path)
    assert first["pause_s"] == third["pause_s"] == 0
    assert 0.04 <= second["pause_s"] <= second["elapsed_s"]


def test_a_row_sums_its_steps(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "none.tar", "steps=4", "track.every_steps=2")
    with start_runtime(config) as runtime, Monitor(runtime, config, config.length(), DIAGNOSIS) as monitor:
        monitor.truncate_after(0)
        for step in (1, 2, 3, 4):
            monitor.record_data_wait(step, step=step)
            monitor.record(outcome(step, num_tokens=24 * 6 * step), Progress(), bad_samples=0, data={})
    rows = metrics(tmp_path)
    assert [(row["step"], row["forward_s"], row["backward_s"]) for row in rows] == [(2, 1.0, 2.0), (4, 1.0, 2.0)]
    assert [row["data_wait_s"] for row in rows] == [3, 7]
    assert [row["padding_removed"] for row in rows] == [1 - 3 / 8, 1 - 7 / 8]
    assert [(row["pillow_images"], row["own_count"], row["read_wait_s"]) for row in rows] == [(4, 3, 0.5), (4, 7, 0.5)]
    assert [(row["loss"], row["own"]) for row in rows] == [(3.0, 5.0)] * 2  # the latest step's
    assert not {"num_tokens", "model_flops"} & rows[0].keys()


def test_the_slowest_rank_and_the_one_that_waits_are_named(monitor: Monitor, tmp_path: Path) -> None:
    monitor._config = tiny_config(tmp_path, "none.tar", "steps=4", "track.every_steps=2")
    for step in (1, 2):
        monitor.record(outcome(step), Progress(), bad_samples=0, data={})
    (row,) = metrics(tmp_path)
    assert (row["data_wait_max_s"], row["data_wait_rank"]) == (6.0, 1)
    assert (row["slowest_s"], row["slowest_rank"], row["median_s"]) == (1.0, 0, 0.75)
    assert (row["memory_gib"], row["image_cosine"], row["text_cosine"]) == (4.0, 0.1, 0.2)


def test_a_rank_tells_of_its_own_work() -> None:
    stats = own_stats(outcome(1), data_wait_s=0.25, read_wait_s=0.125)
    assert (stats.data_wait_s, stats.forward_s, stats.read_wait_s) == (0.25, 0.5, 0.125)
    assert stats.memory_gib > 0.01
    assert own_stats(None, data_wait_s=0.0, read_wait_s=0.0).forward_s == 0.0


def test_a_figure_with_a_name_of_the_trainers_own_ends_the_run(monitor: Monitor) -> None:
    for number, (figures, counts) in enumerate((({"lr": 1.0}, {}), ({}, {"grad_norm": 1.0})), 1):
        step = outcome(number)
        clash = replace(step, figures={**step.figures, **figures}, counts={**step.counts, **counts})
        with pytest.raises(RunError, match=r"have names of the trainer's own: (lr|grad_norm)$"):
            monitor.record(clash, Progress(), bad_samples=0, data={})
