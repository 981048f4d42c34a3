"""What goes wrong beside training does not end it, and what cannot go on says the true reason."""

import logging
import math
import os
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from distributed.ranks import run_ranks
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny import checkpoints, losses, metrics, newest_checkpoint, status, tiny_config
from torch import nn

from clipx.checkpoint.store import CheckpointStore
from clipx.config.evaluate import ZeroShotConfig
from clipx.config.schema import RunConfig
from clipx.distributed.runtime import start_runtime
from clipx.errors import InputError, RunError
from clipx.pretrained import load
from clipx.train import build_stepper, run_folder, trainer
from clipx.train.build import build_run
from clipx.train.metrics.quarantine import Quarantine
from clipx.train.trainer import train


def evaluation(scenes: Path) -> str:
    return f"evaluate.scenes={{type: zeroshot, data: {scenes / 'wds_scenes'}, every_steps: 2}}"


def test_an_evaluation_that_fails_changes_nothing_in_training(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dropped = ["model.image.patch_drop=0.5", "steps=6"]  # patch dropout is off in a model that was left evaluating
    assert train(tiny_config(tmp_path / "plain", scenes / "train", *dropped)) == 0

    def broken(*_: Any, **__: Any) -> dict[str, float]:
        raise InputError("picture 3 cannot be decoded")

    monkeypatch.setattr("clipx.evaluate.run.evaluate_config", broken)
    with caplog.at_level(logging.ERROR):
        assert train(tiny_config(tmp_path / "broken", scenes / "train", *dropped, evaluation(scenes))) == 0
    assert "EVALUATION scenes OF STEP 2 FAILED (picture 3 cannot be decoded)" in caplog.text
    assert losses(tmp_path / "broken") == losses(tmp_path / "plain")


def test_evaluating_changes_nothing_in_training(tmp_path: Path, scenes: Path) -> None:
    dropped = ["model.image.patch_drop=0.5", "steps=6"]
    assert train(tiny_config(tmp_path / "plain", scenes / "train", *dropped)) == 0
    assert train(tiny_config(tmp_path / "evaluated", scenes / "train", *dropped, evaluation(scenes))) == 0
    assert losses(tmp_path / "evaluated") == losses(tmp_path / "plain")
    assert len(list((tmp_path / "evaluated" / "eval").iterdir())) == 3


def test_a_complete_run_says_so_and_changes_nothing(tmp_path: Path, scenes: Path) -> None:
    config, run_dir = tiny_config(tmp_path / "run", scenes / "train", "steps=3", evaluation(scenes)), tmp_path / "run"

    def written() -> dict[Path, int]:
        files = [path for path in run_dir.rglob("*") if path.is_file() and path.name not in (".lock", "status.json")]
        return {path: path.stat().st_mtime_ns for path in files}

    assert train(config) == 0
    before = written()
    (run_dir / "status.json").unlink()
    assert train(config) == 0
    assert status(run_dir) == {"status": "complete", "step": 3, "reason": "all steps done"}
    assert written() == before


def test_a_misspelt_evaluation_folder_is_found_before_training(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(InputError, match="wds_scenez"):
        train(tiny_config(tmp_path / "run", scenes / "train", evaluation(scenes / "wds_scenez")))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tracker_that_dies_costs_its_figures_only(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from accelerate import Accelerator

    def dead(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(Accelerator, "log", dead)
    with caplog.at_level(logging.ERROR):
        assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=5", "track.tensorboard=true")) == 0
    assert caplog.text.count("cannot log to the trackers") == 1
    assert len(metrics(tmp_path / "run")) == 5


def test_trackers_hold_the_curve(tmp_path: Path, scenes: Path) -> None:
    on = ["steps=4", "track.tensorboard=true", "track.wandb=offline"]
    assert train(tiny_config(tmp_path / "run", scenes / "train", *on)) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_standard_error_on_a_full_disk_changes_nothing_in_training(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=2")) == 0
        assert sys.stderr is full
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # tensorboard's thread says it too
def test_a_full_disk_under_tensorboard_costs_its_figures_only(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, written = RecordWriter.write, []

    def full(writer: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=3", "track.tensorboard=true")) == 0
    said = [message for message in caplog.messages if "the trackers" in message]
    assert said == ["cannot log to the trackers (OSError: [Errno 28] No space left on device); the run goes on without"]
    assert len(metrics(tmp_path / "run")) == 3


def test_settings_of_the_optimizer_come_from_the_config(tmp_path: Path, scenes: Path) -> None:
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=3")) == 0
    config = tiny_config(
        tmp_path / "run", scenes / "train", "steps=6", "optim.betas=[0.8, 0.9]", "optim.weight_decay=0.5"
    )
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        decayed, others = run.stepper.optimizer.param_groups
        assert (decayed["betas"], decayed["weight_decay"], others["weight_decay"]) == ((0.8, 0.9), 0.5, 0.0)
        moments = [state["exp_avg"] for state in run.stepper.optimizer.state.values()]
        assert run.progress.step == 3
        assert any(moment.any() for moment in moments)  # those are the checkpoint's


def test_a_resume_says_what_else_is_computed_in_another_way(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [tmp_path / "run", scenes / "train"]
    silent = [
        "track.every_steps=2",
        "checkpoint.every_steps=2",
        "micro_batch_size=12",
        "data.workers=1",
        "compile=false",
    ]
    assert train(tiny_config(*run, "steps=2", "optim.min_lr=1e-5")) == 0
    monkeypatch.setattr("clipx.train.resume.versions", lambda: {"torch": "99", "git_commit": "other", "new": "1"})
    changed = [
        "optim.lr=0.002",
        "optim.type=timm",
        "optim.name=lamb",
        "precision=bf16",
        "data.augment.flip=0.5",
        "ema.decay=0.9",
    ]
    assert train(tiny_config(*run, "steps=4", *changed, *silent)) == 0
    (said, versions) = [record.getMessage() for record in caplog.records if "going on from" in record.getMessage()]
    assert said.startswith("going on from step 2 with a changed config: ")
    assert set(said.partition("config: ")[2].split("; ")) == {
        "steps: 2 -> 4",
        "precision: fp32 -> bf16",
        "data.augment.flip: 0.0 -> 0.5",
        "optim.type: adamw -> timm",
        "optim.lr: 0.001 -> 0.002",
        "optim.min_lr: 1e-05 -> 0.0",
        "ema.decay: None -> 0.9",
    }
    assert versions == f"going on from step 2 with other versions: torch: {version('torch')} -> 99"
    caplog.clear()
    assert train(tiny_config(*run, "steps=4", *changed)) == 0
    assert "changed config" not in caplog.text


def test_another_model_is_not_resumed(tmp_path: Path, scenes: Path) -> None:
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=3")) == 0
    for change, named in {
        "model.text.activation=quick_gelu": "text.activation: gelu -> quick_gelu",  # the weights would load
        "model.init_logit_bias=-10": "init_logit_bias: None -> -10.0",
    }.items():
        with pytest.raises(InputError, match=rf"^model\.{named}: not the model of .*step-00000003; restore it"):
            train(tiny_config(tmp_path / "run", scenes / "train", "steps=6", change))
    assert status(tmp_path / "run")["status"] == "failed"
    unmasked = ["steps=6", "model.image.patch_drop=0.25"]  # a change that people make on purpose
    assert train(tiny_config(tmp_path / "run", scenes / "train", *unmasked)) == 0


def test_fewer_steps_than_were_done(tmp_path: Path, scenes: Path) -> None:
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=3")) == 0
    with pytest.raises(InputError, match="has done 3 steps, more than steps=2"):
        train(tiny_config(tmp_path / "run", scenes / "train", "steps=2"))


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_over(tmp_path: Path, scenes: Path) -> None:
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=3")) == 0
    (checkpoints(tmp_path / "run")[0] / ".metadata").unlink()
    before = metrics(tmp_path / "run")
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole"):
        train(tiny_config(tmp_path / "run", scenes / "train", "steps=6"))
    assert metrics(tmp_path / "run") == before


def test_a_broken_newest_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path, scenes: Path) -> None:
    whole, mended = tmp_path / "whole", tmp_path / "mended"
    for folder in (whole, mended):
        assert train(tiny_config(folder, scenes / "train", "steps=8", "checkpoint.every_steps=3")) == 0
    newest = newest_checkpoint(mended)
    data = newest / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 4
    data.write_bytes(content)
    assert train(tiny_config(mended, scenes / "train", "steps=8", "checkpoint.every_steps=3")) == 0
    assert losses(mended) == losses(whole)
    assert (mended / "checkpoints" / "broken-step-00000008").is_dir()


def test_torn_lines_are_passed_over(tmp_path: Path, scenes: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_config(run_dir, scenes / "train", "steps=3")) == 0
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo\xff\0\0')
    (run_dir / "quarantine.jsonl").write_text('{"shard": "a.t')
    assert train(tiny_config(run_dir, scenes / "train", "steps=6")) == 0
    assert len(losses(run_dir)) == 6


def _train_without_the_evaluation_set(config: RunConfig) -> int:
    """Rank 1 sees another file system: its evaluation data is not there."""
    if os.environ["RANK"] == "1":
        config = replace(config, evaluate={"scenes": ZeroShotConfig(data="/nowhere")})
    return train(config)


def test_a_rank_that_cannot_start_stops_all_at_once(tmp_path: Path, scenes: Path) -> None:
    config = tiny_config(tmp_path / "run", scenes / "train")
    with pytest.raises(InputError, match="/nowhere"):
        run_ranks(_train_without_the_evaluation_set, 2, config, timeout_s=60)
    assert "/nowhere" in status(tmp_path / "run")["reason"]


def test_auto_is_found_again_where_something_that_decides_it_has_changed(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []

    def search(model: nn.Module, *, sizes: list[int], **_: Any) -> int:
        searches.append(sizes[-1])
        return sizes[-1] // 2

    monkeypatch.setattr(build_stepper, "largest_micro_batch", search)
    fixed = ["steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "data.allow_change=true"]
    first = tiny_config(tmp_path / "first", scenes / "train", *fixed)
    assert train(first) == 0
    assert searches == [24]
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "step-00000006")
    changes = {
        "nothing": [],
        "less_memory": ["activation_checkpointing=1"],
        "other_batch": ["global_batch_size=20"],
        "average": ["ema.decay=0.9"],
        "smaller_stage": ["stages.small={until_step: 6, image_size: 16}"],
    }
    for name, change in changes.items():
        shutil.copytree(tmp_path / "first", tmp_path / name)
        assert train(tiny_config(tmp_path / name, scenes / "train", *fixed, *change)) == 0
    assert searches == [24, 24, 20, 24, 24]


def test_pairs_end_a_run_whose_global_batch_has_changed_and_drive_its_learning_rate(
    tmp_path: Path, scenes: Path
) -> None:
    """240 pairs in batches of 24, then 240 in batches of 48, which end where the first half's order has led."""
    run = [tmp_path / "run", scenes / "train", "data.allow_change=true", "checkpoint.every_steps=2"]
    assert train(tiny_config(*run, "samples=240", "steps=null")) == 0
    longer = ["samples=480", "steps=null", "global_batch_size=48"]
    assert train(tiny_config(*run, *longer)) == 0
    rows = metrics(tmp_path / "run")
    assert [row["samples_seen"] for row in rows] == [*range(24, 241, 24), *range(288, 481, 48)]
    assert [row["epoch"] for row in rows] == pytest.approx([row["samples_seen"] / 150 for row in rows])
    waves = [math.pi * (seen - 120) / (480 - 120) for seen in range(240, 480, 48)]
    assert [row["lr"] for row in rows[10:]] == pytest.approx([0.5e-3 * (1 + math.cos(wave)) for wave in waves])
    progress = CheckpointStore(tmp_path / "run" / "checkpoints").newest().state().progress
    assert (progress.step, progress.samples_seen, progress.batch_changes) == (15, 480, [[10, 240]])
    assert train(tiny_config(*run, *longer)) == 0
    with pytest.raises(InputError, match="has seen 480 pairs, more than samples=300; raise samples or"):
        train(tiny_config(*run, *longer, "samples=300"))
    back = ["samples=504", "steps=null"]
    assert train(tiny_config(*run, *back)) == 0
    assert metrics(tmp_path / "run")[15:][0]["samples_seen"] == 504


def test_the_share_of_bad_samples_is_of_pictures_whatever_captions_a_resume_takes(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(Quarantine, "check", lambda _, *, samples_seen, **__: read.append(samples_seen))
    run = [tmp_path / "run", scenes / "train"]
    assert train(tiny_config(*run, "steps=2")) == 0
    assert train(tiny_config(*run, "steps=4", "data.captions_per_image=2", "global_batch_size=48")) == 0
    assert read == [24, 48, 72, 96]


def test_a_micro_batch_that_was_set_is_none_that_was_found(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = [tmp_path / "run", scenes / "train", "steps=4", "checkpoint.every_steps=2"]
    assert train(tiny_config(*run, "micro_batch_size=6")) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert train(tiny_config(*run)) == 0
    assert "micro_batch_size: 24 of the 24 pairs" in caplog.text


def test_a_misspelt_optimizer_is_found_before_anything_is_measured(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="lionn is no optimizer"):
        train(tiny_config(tmp_path / "run", scenes / "train", "optim={type: timm, name: lionn}"))
    assert "micro_batch_size:" not in caplog.text


def test_a_start_that_is_nowhere_is_named_and_a_resumed_run_needs_none(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(InputError, match=r"^start_from: .*nowhere: no such folder"):
        train(tiny_config(tmp_path / "run", scenes / "train", f"start_from={tmp_path / 'nowhere'}"))
    assert train(tiny_config(tmp_path / "before", scenes / "train", "steps=2")) == 0
    begun = ["steps=3", "optim.lr=0", "checkpoint.every_steps=1", f"start_from={tmp_path / 'before'}"]
    assert train(tiny_config(tmp_path / "after", scenes / "train", *begun)) == 0
    weights = [load(tmp_path / name).model.state_dict() for name in ("before", "after")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    shutil.rmtree(tmp_path / "after" / "checkpoints" / "step-00000003")
    shutil.rmtree(tmp_path / "before")
    assert train(tiny_config(tmp_path / "after", scenes / "train", *begun)) == 0


def test_a_run_folder_that_cannot_be_written_is_named(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    config = tiny_config(tmp_path / "run", scenes / "train", "steps=2", f"checkpoint.folder={tmp_path / 'elsewhere'}")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_atomically", full)
        with pytest.raises(RunError, match=r"run_dir=.*run cannot be written \(\[Errno 28\].*\); free space"):
            train(config)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_status", full)
        assert train(config) == 0  # it has saved, after all
    assert "cannot write status.json" in caplog.text


def test_two_runs_with_one_place_for_their_checkpoints_are_warned_of(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = f"checkpoint.folder={tmp_path / 'place'}"
    for steps, name in ((1, "one"), (2, "one"), (3, "other")):
        assert "was written by the run in" not in caplog.text
        assert train(tiny_config(tmp_path / name, scenes / "train", f"steps={steps}", place)) == 0
    assert f"step-00000002 was written by the run in {tmp_path / 'one'}; if that one still lives" in caplog.text
