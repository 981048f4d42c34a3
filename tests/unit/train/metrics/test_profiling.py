import gzip
import json
from pathlib import Path

import torch

from clipx.train.metrics.profiling import Profiler


def marks(path: Path) -> list[str]:
    """The steps that a trace names."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return sorted({event["name"] for event in events if event.get("name", "").startswith("ProfilerStep")})


def run(profiler: Profiler, steps: range) -> None:
    for step in steps:
        profiler.before_step(step)
        torch.ones(3).add_(1)
    profiler.close()


def test_records_the_steps_asked_for_and_marks_them(tmp_path: Path) -> None:
    run(Profiler(tmp_path / "profile", first_step=3, num_steps=2), range(1, 8))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step-00000003.json.gz"]
    assert marks(tmp_path / "profile" / "step-00000003.json.gz") == ["ProfilerStep#3", "ProfilerStep#4"]


def test_a_later_start_does_not_replace_what_an_earlier_one_recorded(tmp_path: Path) -> None:
    for steps in (range(1, 5), range(5, 9)):  # a phase ends after step 4
        run(Profiler(tmp_path, first_step=3, num_steps=3), steps)
    found = {path.name: marks(path) for path in tmp_path.iterdir()}
    assert found == {
        "step-00000003.json.gz": ["ProfilerStep#3", "ProfilerStep#4"],
        "step-00000005.json.gz": ["ProfilerStep#5"],
    }


def test_nothing_is_recorded_unless_asked_for(tmp_path: Path) -> None:
    run(Profiler(tmp_path / "profile", first_step=0, num_steps=3), range(1, 4))
    assert not (tmp_path / "profile").exists()
