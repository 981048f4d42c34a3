"""What asks a run to stop, and that it is noted once, with its reason."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from clipx.train.liveness import stops
from clipx.train.liveness.stops import StopRequest, catch_stops


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(stops.time, "monotonic", lambda: now[0])
    return now


def test_signals_of_the_config_and_no_others(tmp_path: Path) -> None:
    request, others = StopRequest(tmp_path), []
    before = signal.signal(signal.SIGUSR1, lambda *_: others.append("SIGUSR1"))
    try:
        with catch_stops(request, ["SIGUSR2"]):
            signal.raise_signal(signal.SIGUSR1)
            assert not request
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)  # a second one changes nothing
        assert (request.reason, others) == ("SIGUSR2", ["SIGUSR1"])
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_ctrl_c_means_now(tmp_path: Path) -> None:
    request = StopRequest(tmp_path)
    with catch_stops(request, []):
        signal.raise_signal(signal.SIGINT)
        assert request.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_first_reason_stays(tmp_path: Path) -> None:
    # signals that come together are handled in the order of their numbers, so the last one handled says nothing
    request = StopRequest(tmp_path)
    with catch_stops(request, ["SIGTERM", "SIGUSR1"]):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
        assert request.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_budget_counts_from_the_start(tmp_path: Path, clock: list[float]) -> None:
    limited, free = StopRequest(tmp_path, max_minutes=2), StopRequest(tmp_path)
    for now, reason in ((219.9, None), (220.0, "max_minutes=2"), (500.0, "max_minutes=2")):
        clock[0] = now
        limited.look()
        free.look()
        assert limited.reason == reason
    assert not free


def test_the_file_is_found_and_removed(tmp_path: Path, clock: list[float]) -> None:
    request = StopRequest(tmp_path)
    request.forget_file()  # there is none
    (tmp_path / "STOP").touch()
    clock[0] += 0.5
    request.look()
    assert not request  # it is looked for once a second
    clock[0] += 1
    request.look()
    assert request.reason == "the file STOP"
    request.forget_file()
    assert not (tmp_path / "STOP").exists()


def test_a_folder_that_cannot_be_looked_into_stops_nothing(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    request, stat, asked = StopRequest(tmp_path), os.stat, []

    def stale(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("STOP"):
            asked.append(path)
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    clock[0] += 2
    request.look()
    assert asked
    assert not request
