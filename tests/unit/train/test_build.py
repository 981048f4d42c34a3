"""What a run says when it is built."""

import logging
from pathlib import Path

import pytest
from tiny import tiny_config, write_scenes

from clipx.distributed.runtime import start_runtime
from clipx.train import build
from clipx.train.build import build_run
from clipx.train.saving import Saver


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=40) / "train"


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
