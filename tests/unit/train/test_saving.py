"""When a run saves, and what it does when the storage is slow, full or gone; with the whole of a tiny run around it."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import saved_tensors, tiny_config, write_scenes

from clipx.distributed.runtime import start_runtime
from clipx.errors import RunError
from clipx.storage import folders
from clipx.train import saving
from clipx.train.build import Run, build_run
from clipx.train.saving import Saver


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=40) / "train"


@contextmanager
def opened(run_dir: Path, shards: Path, *overrides: str) -> Iterator[tuple[Run, Saver]]:
    config = tiny_config(run_dir, shards, "steps=100", "micro_batch_size=24", "data.workers=0", *overrides)
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        saver = Saver(run)
        yield run, saver
        saver.close()


def save_at(run: Run, saver: Saver, step: int, *, stopping: bool = False, is_best: bool = False) -> None:
    run.progress.step = step
    saver.save(stopping=stopping, is_best=is_best)


def steps_on_disk(saver: Saver) -> list[int]:
    return [checkpoint.step for checkpoint in saver.store.checkpoints()]


class Gate:
    """A disk that takes nothing until it is opened, and fails as often as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.failures = 0
        original = folders.Folder.create

        @contextmanager
        def create(folder: Any, name: str) -> Iterator[Any]:
            assert self.opened.wait(30)
            if self.failures and name.endswith(".distcp"):
                self.failures -= 1
                raise OSError(28, "No space left on device")
            with original(folder, name) as file:
                yield file

        monkeypatch.setattr(folders.Folder, "create", create)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def wait_until_done(saver: Saver) -> None:
    assert saver._background is not None
    while not saver._background.done:
        time.sleep(0.005)


def test_a_save_beside_the_training_holds_the_state_of_its_step(
    tmp_path: Path, shards: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    contents = []
    for name in ("false", "true"):
        with opened(tmp_path / name, shards, f"checkpoint.async_save={name}") as (run, saver):
            if name == "true":
                gate.opened.clear()
            run.progress.samples_seen = 7
            save_at(run, saver, 3)
            run.progress.samples_seen = 8
            for parameter in run.stepper.objective.model.parameters():
                parameter.data.add_(1)
            gate.opened.set()
            saver.wait()
            assert saver.saved_step == 3
            assert saver.pop_pause_seconds() > 0
            assert saver.pop_pause_seconds() == 0
            checkpoint = saver.store.newest()
            assert checkpoint is not None
            assert checkpoint.state().progress.samples_seen == 7
            assert checkpoint.config() == run.config
        contents.append(saved_tensors(tmp_path / name / "checkpoints" / "step-00000003", tmp_path / "scratch"))
    assert contents[0].keys() == contents[1].keys()
    assert all(contents[0][name].equal(contents[1][name]) for name in contents[0])
    assert caplog.text.count("checkpoint of step 3: 0.02") == 2


def test_never_two_at_once_and_what_was_left_out_comes_when_there_is_room(
    tmp_path: Path, shards: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, shards, "checkpoint.async_save=true", "checkpoint.every_minutes=0") as (run, saver):
        gate.opened.clear()
        for step in (1, 2, 3):
            save_at(run, saver, step)
            assert not saver.is_late()  # nothing is asked for while one is under way
        assert caplog.text.count("is not saved: the save before it is still being written") == 1
        gate.opened.set()
        wait_until_done(saver)
        assert saver.saved_step == 0  # all ranks take the result together, at the next save
        assert saver.is_late()
        save_at(run, saver, 4)
        assert saver.saved_step == 1
        saver.wait()
        assert steps_on_disk(saver) == [1, 4]
        assert not saver.is_late()


def test_with_spikes_the_storage_does_not_decide_what_is_saved(tmp_path: Path, shards: Path, gate: Gate) -> None:
    """A rollback chooses from what is there; so a save of the schedule waits for the one before it."""
    settings = ["checkpoint.async_save=true", "checkpoint.every_steps=1", "checkpoint.keep_last=9", "spikes={}"]
    with opened(tmp_path, shards, *settings) as (run, saver):
        gate.opened.clear()
        save_at(run, saver, 1)
        threading.Timer(0.2, gate.opened.set).start()
        for step in (2, 3):
            save_at(run, saver, step)
        saver.wait()
        assert steps_on_disk(saver) == [1, 2, 3]
        assert all(checkpoint.is_scheduled() for checkpoint in saver.store.checkpoints())


def test_a_stop_waits_for_the_save_before_it_and_for_its_own(tmp_path: Path, shards: Path, gate: Gate) -> None:
    with opened(tmp_path, shards, "checkpoint.async_save=true") as (run, saver):
        gate.opened.clear()
        save_at(run, saver, 1)
        threading.Timer(0.2, gate.opened.set).start()
        save_at(run, saver, 2, stopping=True)
        assert saver.saved_step == 2
        assert steps_on_disk(saver) == [1, 2]


@pytest.mark.parametrize("beside", ["false", "true"])
def test_a_disk_that_refuses_costs_that_save_alone(
    beside: str, tmp_path: Path, shards: Path, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    policy = (f"checkpoint.async_save={beside}", "checkpoint.every_minutes=0", "checkpoint.keep_last=1")
    with opened(tmp_path, shards, *policy) as (run, saver):
        save_at(run, saver, 1)
        saver.wait()
        gate.failures = 2
        for step, retry_s in ((2, 60), (3, 120)):
            save_at(run, saver, step)
            if beside == "true":
                wait_until_done(saver)
            assert f"CHECKPOINT OF STEP {step} FAILED ([Errno 28] No space left on device)" in caplog.text
            assert f"tries again in {retry_s} s" in caplog.text
            assert caplog.text.count("the newest good one is step 1") == step - 1
            clock[0] += retry_s - 1
            assert not saver.is_late()
            clock[0] += 2
            assert saver.is_late()
        assert saver.saved_step == 1
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
        save_at(run, saver, 4)
        saver.wait()
        assert saver.saved_step == 4
        assert steps_on_disk(saver) == [4]
        assert not saver.is_late()


def test_while_losses_are_bad_nothing_is_saved_and_nothing_removed(tmp_path: Path, shards: Path) -> None:
    with opened(tmp_path, shards, "checkpoint.keep_last=1") as (run, saver):
        save_at(run, saver, 1)
        run.progress.skipped_in_row = 1
        save_at(run, saver, 2)
        assert steps_on_disk(saver) == [1]
        save_at(run, saver, 3, stopping=True)
        assert steps_on_disk(saver) == [1, 3]
        saver.drop_suspects(after_step=1)
        assert (saver.saved_step, steps_on_disk(saver)) == (1, [1])


def test_the_best_step_is_saved_also_where_float16_left_it_out(tmp_path: Path, shards: Path) -> None:
    with opened(tmp_path, shards, "checkpoint.every_steps=0", "checkpoint.every_minutes=0") as (run, saver):
        run.progress.skipped_in_row = 1
        save_at(run, saver, 2, is_best=True)
        assert steps_on_disk(saver) == [2]


def test_suspects_are_dropped_also_when_they_are_still_being_written(tmp_path: Path, shards: Path, gate: Gate) -> None:
    with opened(tmp_path, shards, "checkpoint.async_save=true") as (run, saver):
        save_at(run, saver, 1)
        saver.wait()
        gate.opened.clear()
        save_at(run, saver, 2)
        threading.Timer(0.2, gate.opened.set).start()
        saver.drop_suspects(after_step=1)
        assert (saver.saved_step, steps_on_disk(saver)) == (1, [1])
        assert "diverged-step-00000002" in saver.store.root.names()


def test_a_run_that_ends_by_an_error_lets_its_save_end(
    tmp_path: Path, shards: Path, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    with opened(tmp_path, shards, "checkpoint.async_save=true") as (run, saver):
        gate.opened.clear()
        save_at(run, saver, 1)
        threading.Timer(0.2, gate.opened.set).start()
        saver.close()
        assert steps_on_disk(saver) == [1]
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.1)
    with opened(tmp_path, shards, "checkpoint.async_save=true") as (run, saver), caplog.at_level(logging.ERROR):
        gate.opened.clear()
        save_at(run, saver, 2)
        saver.close()  # storage hangs
        assert "the checkpoint that was being written is lost" in caplog.text
        gate.opened.set()
        wait_until_done(saver)


def test_a_save_that_hangs_ends_the_run_in_time(tmp_path: Path, shards: Path, gate: Gate, monkeypatch: Any) -> None:
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(saving, "_BEHIND_S", 0.1)
    with opened(tmp_path, shards, "checkpoint.async_save=true", "parallel.timeout_s=600") as (run, saver):
        gate.opened.clear()
        save_at(run, saver, 1)
        clock[0] += 599
        assert not saver.is_late()
        save_at(run, saver, 2)  # left out
        clock[0] += 2
        assert saver.is_late()
        with pytest.raises(RunError, match=r"within parallel.timeout_s=600; the newest good one is step 0: see that"):
            save_at(run, saver, 3)
        gate.opened.set()
        wait_until_done(saver)


def test_no_rank_goes_on_while_rank_0_removes_old_checkpoints(tmp_path: Path, shards: Path, monkeypatch: Any) -> None:
    with opened(tmp_path, shards) as (run, saver):
        order = []
        gather = saving.gather_objects
        monkeypatch.setattr(saving, "gather_objects", lambda *args: order.append("gather") or gather(*args))
        monkeypatch.setattr(saver.store, "apply_retention", lambda **_: order.append("remove"))
        save_at(run, saver, 1)
        assert order[-2:] == ["remove", "gather"]
