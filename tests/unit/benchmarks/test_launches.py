from collections.abc import Iterator
from pathlib import Path

import launches
import pytest
from workload import Steps, make_batch, open_run

from clipx.train.build import Run

BLOCKS = (4, 2)
"""Of the image tower and of the text tower."""


@pytest.fixture
def run() -> Iterator[Run]:
    with open_run("demo", 8, precision="fp32", compile=False) as built:
        yield built


def test_needed_is_what_the_layers_take(run: Run) -> None:
    """The demo's model: 4 blocks for images with a norm before them, 2 for texts, both with a norm at the end."""
    linears = 4 * sum(BLOCKS) + 2 + 1  # both projections; patches by a convolution's weight
    norms, tables = 2 * sum(BLOCKS) + 3, 2
    forward = linears + norms + tables + 4 * sum(BLOCKS) + 4
    biases = 4 * sum(BLOCKS)
    backward = 2 * linears - 1 + biases + 2 * norms + tables + 5 * sum(BLOCKS) + 2
    need = launches.needed(run, 8)
    assert (need["forward"], need["backward"], need["loss"]) == (forward, backward + 2, 2)
    assert need["optimizer"] == 4 * len(run.stepper.optimizer.param_groups)


def test_the_gradient_cache_needs_more_passes() -> None:
    with open_run("demo", 8, precision="fp32", micro_batch_size=2, compile=False) as run:
        cached, plain = launches.needed(run, 8), launches.needed(run, 2)
    assert cached["forward"] == 7 * plain["forward"]
    assert cached["backward"] - 2 == 4 * (plain["backward"] - 2)
    assert cached["optimizer"] == plain["optimizer"]


def test_products_are_counted_in_the_part_that_makes_them(run: Run) -> None:
    """The profiler sees products on a CPU, too. Queries of the last image block, of one token, are one of their own."""
    steps = Steps(run, [make_batch(run.config, 8, index=0)])
    steps()
    counts = launches.count_step(steps)
    assert counts["forward"]["products"] == 4 * sum(BLOCKS) + 3 + 1
    assert counts["loss"]["products"] > 0 == counts["optimizer"]["products"]
    parts = (*launches.PARTS, "figures")
    assert sum(counts[part]["products"] for part in parts) == counts["step"]["products"]


def test_counters_of_a_stand_in_are_read_by_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counters:
        """Every look at any counter finds one more than the look before."""

        looks = 0

    def value_of(library: type[Counters], name: str) -> object:
        library.looks += 1
        return type("Value", (), {"value": library.looks})

    monkeypatch.setattr(launches, "stand_in", lambda: Counters)
    monkeypatch.setattr(launches.ctypes, "c_long", type("Long", (), {"in_dll": staticmethod(value_of)}))
    steps = Steps(run, [make_batch(run.config, 8, index=0)])
    counts = launches.count_step(steps)
    assert all(counts[part]["launches"] > 0 for part in launches.PARTS)
    parts = (*launches.PARTS, "figures")
    assert sum(counts[part]["memsets"] for part in parts) == counts["step"]["memsets"]


@pytest.mark.gpu
def test_a_step_on_a_gpu_launches_copies_and_is_read_by_one_event(tmp_path: Path) -> None:
    with open_run("demo", 64, precision="bf16", compile=False) as run:
        *parts, whole = launches.measure(run, 64, repetitions=2)
    launched = {str(row["part"]): row["launches"] for row in parts}
    assert all(launched[part] > 0 for part in launches.PARTS)
    assert sum(launched.values()) == whole["launches"] > whole["needed"]
    assert whole["products"] > 0
    assert whole["pinned"] > 0
    assert float(str(whole["host_ms_least"])) <= float(str(whole["host_ms"]))


def test_without_a_device_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["launches.py"])
    with pytest.raises(SystemExit, match="finds no CUDA device here"):
        launches.main()
