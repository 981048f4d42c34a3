"""How long a rank may stay where it is; what happens when it stays longer is in tests/distributed/test_watchdog.py."""

import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from clipx.train.liveness.heartbeat import LifeSigns, Stage
from clipx.train.liveness.watchdog import Age, Watchdog


def watchdog(folder: Path, *, stall_timeout_s: float = 60, timeout_s: float = 1800) -> Watchdog:
    signs = LifeSigns(dist.HashStore(), rank=0, world_size=1)
    signs.open()
    return Watchdog(
        stall_timeout_s=stall_timeout_s,
        timeout_s=timeout_s,
        rank=0,
        run_dir=folder,
        signs=signs,
        on_stall=pytest.fail,
    )


def test_a_place_ages_and_a_new_one_is_young() -> None:
    age = Age(look_every_s=1)
    one, other = object(), object()
    assert [age.look(one, now) for now in (100.0, 101.0, 102.5)] == [0.0, 1.0, 2.5]
    assert [age.look(other, now) for now in (103.5, 104.5)] == [0.0, 1.0]


def test_time_in_which_no_one_looked_does_not_count() -> None:
    age = Age(look_every_s=1)
    place = object()
    assert [age.look(place, now) for now in (0.0, 1.0, 3601.0, 3602.0)] == [0.0, 1.0, 3.0, 4.0]


def limits(guard: Watchdog, *stages: Stage) -> list[float]:
    found = []
    for stage in stages:
        guard.enters(stage, step=0)
        found.append(guard._place.limit_s)
    return found


def test_the_first_steps_of_a_start_and_all_but_steps_may_take_long(tmp_path: Path) -> None:
    guard = watchdog(tmp_path)
    for _ in range(2):  # the second start is that of the next phase
        assert limits(guard, "start", "data", "step", "data", "step") == [1800] * 5
        assert limits(guard, "data", "step", "save", "evaluation", "data", "step") == [60, 60, 1800, 1800, 60, 60]
    assert limits(guard, "end") == [1800]


def test_no_stage_is_given_less_than_a_step(tmp_path: Path) -> None:
    assert limits(watchdog(tmp_path, stall_timeout_s=3600), "start", "save") == [3600, 3600]


def test_the_same_place_again_is_a_sign_of_life(tmp_path: Path) -> None:
    guard = watchdog(tmp_path)
    guard.enters("evaluation", step=5)
    before = guard._place
    guard.enters("evaluation", step=5)
    assert guard._place is not before


@pytest.mark.parametrize("stall_timeout_s", [0, 60])
def test_it_watches_unless_told_not_to_and_leaves_nothing_behind(stall_timeout_s: float, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with watchdog(tmp_path, stall_timeout_s=stall_timeout_s):
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert names == ({"watchdog", "life signs"} if stall_timeout_s else set())
    assert set(threading.enumerate()) == before
    assert list(tmp_path.iterdir()) == []
