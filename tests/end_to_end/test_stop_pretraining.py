"""A pretraining run with `stop` ends where a figure of its evaluations no longer improves; its best step is the model.

With `optim.lr=0` nothing changes, so the first evaluation stays the best.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from distributed.ranks import run_ranks
from tiny import losses, results, saved_steps, status, tiny_config, write_scenes
from torch import Tensor

from clipx.checkpoint.find import find_model
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.losses.info_nce import InfoNCELoss
from clipx.pretrained import load
from clipx.train import evaluations, trainer
from clipx.train.saving import Saver
from clipx.train.trainer import train
from clipx.types import Embeddings

STILL = ("optim.lr=0", "steps=20", "checkpoint.keep_last=1", "checkpoint.every_steps=6")
REASON = "stop: val/loss was no better than {value:.4g} of step 4 in 2 evaluations (patience 2)"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "sets")


def config_of(run_dir: Path | str, scenes: Path, *overrides: str, patience: int = 2) -> RunConfig:
    return tiny_config(
        Path(run_dir),
        scenes / "train",
        f"evaluate.val={{type: loss, data: {scenes / 'wds_scenes_retrieval'}, every_steps: 4}}",
        f"stop={{metric: val/loss, patience: {patience}}}",
        *overrides,
    )


@pytest.fixture(scope="module")
def ended(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended early, at step 12 of 20."""
    folder = tmp_path_factory.mktemp("ended")
    assert train(config_of(folder, scenes, *STILL)) == 0
    return folder


@pytest.fixture
def stopped(ended: Path, scenes: Path, tmp_path: Path) -> RunConfig:
    """The config of such a run, in a folder of its own."""
    shutil.copytree(ended, tmp_path / "run")
    return config_of(tmp_path / "run", scenes, *STILL)


def test_a_run_ends_where_it_is_no_better_and_says_why(stopped: RunConfig) -> None:
    found = results(stopped.run_dir, "val")
    assert list(found) == [4, 8, 12]
    reason = REASON.format(value=found[4]["loss"])
    assert status(Path(stopped.run_dir)) == {"status": "complete", "step": 12, "reason": reason}
    assert len(losses(Path(stopped.run_dir))) == 12
    assert found[4]["note"] == "16 batches of 24 pairs"


def test_the_best_checkpoint_stays_and_is_the_model(stopped: RunConfig) -> None:
    assert saved_steps(stopped.run_dir) == [4, 12]  # the best, which no schedule asked for, and keep_last=1
    assert find_model(stopped.run_dir).folder.name == "step-00000004"
    assert load(stopped.run_dir).logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_start_after_the_end_changes_nothing(stopped: RunConfig) -> None:
    def written() -> dict[Path, int]:
        files = [path for path in Path(stopped.run_dir).rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files if path.name != "status.json"}

    before, said = written(), status(Path(stopped.run_dir))
    assert train(stopped) == 0
    assert (written(), status(Path(stopped.run_dir))) == (before, said)


def test_with_more_patience_a_stopped_run_goes_on(stopped: RunConfig, scenes: Path) -> None:
    assert train(config_of(stopped.run_dir, scenes, *STILL, patience=3)) == 0
    assert list(results(stopped.run_dir, "val")) == [4, 8, 12, 16]
    assert saved_steps(stopped.run_dir) == [4, 16]


def test_a_run_that_gets_better_is_trained_to_its_end(scenes: Path, tmp_path: Path) -> None:
    assert train(config_of(tmp_path, scenes, "steps=12", patience=1)) == 0
    values = [result["loss"] for result in results(tmp_path, "val").values()]
    assert values == sorted(values, reverse=True)
    assert status(tmp_path)["reason"] == "all steps done"
    assert find_model(tmp_path).folder.name == "step-00000012"


class Killed(BaseException):
    """As a kill: nothing of the run catches it."""


@pytest.mark.parametrize("place", [pytest.param("before", marks=pytest.mark.full), "after"])
@pytest.mark.parametrize("step", [pytest.param(8, marks=pytest.mark.full), 12])
def test_a_run_that_is_killed_beside_an_evaluation_ends_where_it_would_have(
    step: int, place: str, scenes: Path, tmp_path: Path, stopped: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, config = evaluations._write_scores, config_of(tmp_path / "killed", scenes, *STILL)

    def kill(path: Path, scores: dict[str, object]) -> None:
        if scores["step"] != step or place == "after":
            original(path, scores)
        if scores["step"] == step:
            raise Killed

    monkeypatch.setattr(evaluations, "_write_scores", kill)
    with pytest.raises(Killed):
        train(config)
    assert not Path(config.run_dir, "status.json").exists()
    monkeypatch.undo()
    assert train(config) == 0
    assert results(config.run_dir, "val") == results(stopped.run_dir, "val")
    assert status(Path(config.run_dir)) == status(Path(stopped.run_dir))
    assert losses(Path(config.run_dir)) == losses(Path(stopped.run_dir))
    assert saved_steps(config.run_dir) == [4, 12]


def test_the_average_of_the_weights_is_evaluated_and_may_decide(scenes: Path, tmp_path: Path) -> None:
    overrides = ("ema.decay=0.5", "steps=8", "stop.metric=val/ema_loss")
    assert train(config_of(tmp_path, scenes, *overrides)) == 0
    found = results(tmp_path, "val")
    assert all(result["loss"] != result["ema_loss"] > 0 for result in found.values())
    assert find_model(tmp_path).folder.name == f"step-{min(found, key=lambda step: found[step]['ema_loss']):08d}"


def test_any_figure_may_decide(scenes: Path, tmp_path: Path) -> None:
    sets = f"{{type: retrieval, data: {scenes / 'wds_scenes_retrieval'}, every_steps: 3}}"
    overrides = (f"evaluate.found={sets}", "stop.metric=found/text_to_image_recall@5")
    assert train(config_of(tmp_path, scenes, *STILL, *overrides, patience=1)) == 0
    assert status(tmp_path)["step"] == 6
    assert status(tmp_path)["reason"].startswith("stop: found/text_to_image_recall@5 was no better than")


def test_saving_beside_the_training_keeps_every_checkpoint_that_may_be_the_best(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver, "_is_busy", lambda self: True)  # as a storage that is always slower than the steps
    assert train(config_of(tmp_path, scenes, *STILL, "checkpoint.async_save=true")) == 0
    assert saved_steps(tmp_path) == [4, 12]


def test_a_figure_that_is_no_number_is_no_better_and_is_said(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = InfoNCELoss.__call__

    def broken_in_evaluation(self: InfoNCELoss, embeddings: Embeddings, **options: Any) -> Tensor:
        loss = call(self, embeddings, **options)
        return loss if embeddings.image_BD.requires_grad else loss * math.nan

    monkeypatch.setattr(InfoNCELoss, "__call__", broken_in_evaluation)
    assert train(config_of(tmp_path, scenes, *STILL)) == 0
    assert status(tmp_path)["reason"] == "stop: val/loss was not defined in 2 evaluations (patience 2)"
    assert caplog.text.count("val/loss is no finite number; this counts as no better") == 2


def test_losses_in_batches_of_another_size_are_not_compared(
    stopped: RunConfig, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = ("global_batch_size=48", "data.allow_change=true")
    assert train(config_of(stopped.run_dir, scenes, *STILL, *changed)) == 0
    assert "evaluate.val measures another thing than before step 12" in caplog.text
    found = results(stopped.run_dir, "val")
    assert list(found) == [4, 8, 12, 16, 20]
    assert status(Path(stopped.run_dir))["step"] == 20
    assert saved_steps(stopped.run_dir) == [16, 20]  # the best of those that can be compared, and keep_last=1


def test_a_metric_that_does_not_exist_is_said_before_any_work(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate.val gives no figure 'lost'; the nearest is val/loss"):
        config_of(tmp_path / "run", scenes, "stop.metric=val/lost")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.full), "fsdp2"])
def test_all_ranks_end_together(kind: str, scenes: Path, tmp_path: Path, stopped: RunConfig) -> None:
    config = config_of(tmp_path / "two", scenes, *STILL, f"parallel.type={kind}", "ema.decay=0.9")
    assert run_ranks(trainer.train, 2, config) == [0, 0]
    assert saved_steps(config.run_dir) == [4, 12]
    found, alone = results(config.run_dir, "val"), results(stopped.run_dir, "val")
    assert list(found) == list(alone)
    assert found[12]["loss"] == pytest.approx(alone[12]["loss"], abs=1e-6)
    assert found[12]["ema_loss"] == pytest.approx(alone[12]["loss"], abs=1e-6)
