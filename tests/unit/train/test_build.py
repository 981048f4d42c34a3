"""What a run says when it is built."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fit_runs import tiny_fit, write_table_shards
from tiny import tiny_config, write_scenes

from clipx.config.phases import phase_at
from clipx.distributed.runtime import start_runtime
from clipx.models.flops import image_flops
from clipx.objectives.build import build_objective
from clipx.objectives.supervised import SupervisedObjective
from clipx.train import build, build_data, build_stepper
from clipx.train.build import build_run
from clipx.train.build_selection import flops_per_picture
from clipx.train.saving import Saver
from clipx.types import Batch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=40) / "train"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == build.__name__]
    caplog.clear()
    return [message for message in found if message.startswith("formats of an export")]


def test_formats_are_said_when_a_run_begins_and_not_when_it_goes_on(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    config = tiny_config(tmp_path / "run", shards, "micro_batch_size=24", "model.image.name=vit_base_patch16_224")
    with caplog.at_level(logging.INFO), start_runtime(config) as runtime:
        run = build_run(config, runtime)
        (message,) = messages(caplog)
        assert message.startswith("formats of an export: ")
        assert "onnx, pt2" in message
        assert "; not hf: " in message
        saver = Saver(run)
        run.progress.step = 5
        saver.save(stopping=True)
        saver.close()
        build_run(config, runtime)
        assert messages(caplog) == []


def test_a_model_of_ones_own_that_no_format_knows_ends_no_run(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise AttributeError("it has no\ntrunk")

    monkeypatch.setattr(build, "formats_of", broken)
    config = tiny_config(tmp_path / "run", shards, "micro_batch_size=24")
    with caplog.at_level(logging.INFO), start_runtime(config) as runtime:
        build_run(config, runtime)
    assert messages(caplog) == ["formats of an export: not known for this model (it has no trunk)"]


IMAGE, TEXT, NUMBER = {"type": "image"}, {"type": "text"}, {"type": "number", "mean": 5.0, "std": 3.0}


@pytest.mark.parametrize(
    ("inputs", "train", "side"),
    [
        ({"photo": IMAGE, "title": TEXT}, "all", 32),
        ({"photo": IMAGE, "title": TEXT}, "frozen", 0),
        ({"title": TEXT}, "all", 0),
        ({"weight": NUMBER}, "frozen", 0),
    ],
    ids=["learning towers", "kept features", "texts alone", "numbers alone"],
)
def test_on_a_gpu_a_run_has_pixels_and_kernels_for_what_it_reads_alone(
    inputs: Any, train: str, side: int, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the GPU's peak says of loader processes needs a picture's FLOPs, and there may be no picture."""
    chosen: list[str] = []
    monkeypatch.setattr(build_data, "peak_flops", lambda device: 989.4e12)
    monkeypatch.setattr(build_stepper, "choose_attention", lambda model, **given: chosen.append("attention"))
    monkeypatch.setattr(build_stepper, "copied_dtype", lambda config, runtime: chosen.append("copies"))
    monkeypatch.setattr(build_stepper, "_compile", lambda *args, **given: chosen.append("compiled"))
    overrides = (f"encoder.train={train}", "data.workers=auto", "data.max_bad_fraction=0.5", "compile=true")
    config = replace(tiny_fit(tmp_path / "run", table, *overrides), inputs=inputs)
    with start_runtime(config) as runtime:
        run = build_run(config, runtime)
        batch = next(run.batches())
    assert batch.images_IHWC.shape == (24, side, side, 3)
    assert chosen == (["attention", "copies", "compiled"] if train == "all" else [])


def test_loader_processes_keep_up_with_what_is_read_to_choose_from(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that is only scored is done with after one forward pass, of three and more with training."""
    paces: list[float] = []

    def no_workers(read: object, runtime: object, *, pace: float, slots: int) -> int:
        paces.append(pace)
        return 0

    monkeypatch.setattr(build_data, "peak_flops", lambda device: 1e12)
    monkeypatch.setattr(build_data, "_choose_workers", no_workers)
    choice = "select={keep: 0.25, score: hard_learner, chunks: 4}"
    for more in ((), (choice,), (choice, "select.image_size=16")):
        config = tiny_config(
            tmp_path / "run", shards, "micro_batch_size=24", "data.workers=auto", "data.allow_repeats=true", *more
        )
        with start_runtime(config) as runtime:
            objective = build_run(config, runtime).stepper.objective
    forward = objective.flops.image_forward
    small = image_flops(objective.model.image_tower, image_size=16)
    read = [3 * forward, 3 * forward / 4 + forward, 3 * forward / 4 + small]
    assert paces == pytest.approx([0.6 * 1e12 / flops for flops in read])


@pytest.mark.parametrize(("score", "passes"), [("learnability", 0.25 * 3 + 1), ("easy_reference", 0.25 * 3)])
def test_a_picture_costs_what_the_score_and_training_need(score: str, passes: float) -> None:
    config = tiny_config(Path("run"), "none.tar", f"select={{keep: 0.25, score: {score}, reference: store, chunks: 4}}")
    phase = phase_at(config, 0)
    objective = build_objective(config, phase, vocab_size=64)
    assert flops_per_picture(config, objective, phase) == pytest.approx(passes * objective.flops.image_forward)


def test_what_is_looked_at_before_a_run_begins_comes_in_pieces(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank's whole batch may be more than fits: in training it is cut, in the way that is found later."""
    seen: list[int] = []

    def begin(self: SupervisedObjective, batches: Iterable[Batch], group: object) -> None:
        seen.extend(len(batch) for batch in batches)

    monkeypatch.setattr(build, "_LOOKED_AT", 10)
    monkeypatch.setattr(SupervisedObjective, "begin", begin)
    config = tiny_fit(tmp_path / "run", table)
    with start_runtime(config) as runtime:
        build_run(config, runtime)
    assert seen == [10, 10, 4] * 4
