"""How long a rank may stay where it is; what happens when it stays longer is in tests/distributed/test_watchdog.py."""

import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from clipx.train.liveness.heartbeat import Activity, HeartbeatExchange
from clipx.train.liveness.watchdog import Age, Watchdog


def watchdog(folder: Path, *, stall_timeout_s: float = 60, timeout_s: float = 1800) -> Watchdog:
    heartbeats = HeartbeatExchange(dist.HashStore(), rank=0, world_size=1)
    heartbeats.open()
    return Watchdog(
        stall_timeout_s=stall_timeout_s,
        timeout_s=timeout_s,
        rank=0,
        run_dir=folder,
        heartbeats=heartbeats,
        on_stall=pytest.fail,
    )


def test_a_position_ages_and_a_new_one_is_young() -> None:
    age = Age(look_every_s=1)
    one, other = object(), object()
    assert [age.look(one, now) for now in (100.0, 101.0, 102.5)] == [0.0, 1.0, 2.5]
    assert [age.look(other, now) for now in (103.5, 104.5)] == [0.0, 1.0]


def test_time_in_which_no_one_looked_does_not_count() -> None:
    age = Age(look_every_s=1)
    position = object()
    assert [age.look(position, now) for now in (0.0, 1.0, 3601.0, 3602.0)] == [0.0, 1.0, 3.0, 4.0]


def limits(guard: Watchdog, *activities: Activity) -> list[float]:
    found = []
    for activity in activities:
        guard.set_activity(activity, step=0)
        found.append(guard._position.limit_s)
    return found


def test_the_first_steps_of_a_start_and_all_but_steps_may_take_long(tmp_path: Path) -> None:
    guard = watchdog(tmp_path)
    for _ in range(2):  # the second start is that of the next phase
        assert limits(guard, "start", "data", "step", "data", "step") == [1800] * 5
        assert limits(guard, "data", "step", "save", "evaluation", "data", "step") == [60, 60, 1800, 1800, 60, 60]
    assert limits(guard, "end") == [1800]


def test_no_activity_is_given_less_than_a_step(tmp_path: Path) -> None:
    assert limits(watchdog(tmp_path, stall_timeout_s=3600), "start", "save") == [3600, 3600]


def test_the_same_activity_again_shows_life(tmp_path: Path) -> None:
    guard = watchdog(tmp_path)
    guard.set_activity("evaluation", step=5)
    before = guard._position
    guard.set_activity("evaluation", step=5)
    assert guard._position is not before


@pytest.mark.parametrize("stall_timeout_s", [0, 60])
def test_it_watches_unless_told_not_to_and_leaves_nothing_behind(stall_timeout_s: float, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with watchdog(tmp_path, stall_timeout_s=stall_timeout_s):
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert names == ({"watchdog", "heartbeats"} if stall_timeout_s else set())
    assert set(threading.enumerate()) == before
    assert list(tmp_path.iterdir()) == []
