"""Checkpoints in an object store: the run resumes from there, its model is found, and nothing half-written counts."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from servers import object_store
from tiny import losses, metrics, status, tiny_config

import clipx
from clipx.checkpoint.store import CheckpointStore
from clipx.errors import InputError
from clipx.pretrained import Pretrained
from clipx.storage import remote
from clipx.train.trainer import train


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Any]:
    with object_store():
        yield fsspec.filesystem("s3")


def embedded(model: Pretrained) -> torch.Tensor:
    return model.encode_text(["a red square", "a cat"])


@pytest.mark.parametrize("beside", [pytest.param("false", marks=pytest.mark.full), "true"])
def test_a_run_resumes_from_a_bucket_and_its_model_is_found(
    beside: str, tmp_path: Path, scenes: Path, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy = ("checkpoint.every_steps=3", "checkpoint.keep_last=2", f"checkpoint.async_save={beside}")
    assert train(tiny_config(tmp_path / "whole", scenes / "train", "steps=8", *policy)) == 0
    there = ("checkpoint.folder=s3://bucket/run", *policy)
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=5", *there)) == 0
    assert not (tmp_path / "run" / "checkpoints").exists()
    bucket.pipe_file("bucket/run/step-00000007/__0_0_0.distcp", b"of a save that was killed")
    bucket.pipe_file("bucket/run/step-00000006/manifest.json", b"{")  # a broken one
    assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=8", *there)) == 0
    assert "step-00000006 is broken (manifest.json is damaged)" in caplog.text
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    store = CheckpointStore("s3://bucket/run")
    assert store.checkpoints()[-1].step == 8
    assert "step-00000007" not in store.root.names()
    assert "broken-step-00000006" in store.root.names()
    expected = embedded(clipx.load(tmp_path / "whole"))
    for model in (tmp_path / "run", "s3://bucket/run", "s3://bucket/run/step-00000008", Path("s3://bucket/run")):
        assert embedded(clipx.load(model)).equal(expected)
    with pytest.raises(InputError, match=r"s3://bucket/nothing is neither a run folder, nor a checkpoint"):
        clipx.load("s3://bucket/nothing")


def test_a_store_that_goes_away_does_not_end_the_run(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    original, seen = remote.write_whole, []

    def write_whole(url: str, content: bytes, config: Any) -> None:
        seen.append(url)
        if "step-00000004" in url:
            raise ConnectionRefusedError("the store is gone")
        original(url, content, config)

    monkeypatch.setattr(remote, "write_whole", write_whole)
    policy = ("checkpoint.folder=s3://bucket/run", "checkpoint.every_steps=2")
    with caplog.at_level(logging.ERROR):
        assert train(tiny_config(tmp_path / "run", scenes / "train", "steps=6", *policy)) == 0
    assert "CHECKPOINT OF STEP 4 FAILED (the store is gone)" in caplog.text
    assert "the newest good one is step 2" in caplog.text
    assert [each.step for each in CheckpointStore("s3://bucket/run").checkpoints()] == [2, 6]
    assert CheckpointStore("s3://bucket/run").root.names() == ["step-00000002", "step-00000006"]
    assert len(metrics(tmp_path / "run")) == 6
    assert status(tmp_path / "run")["status"] == "complete"


def test_a_store_that_cannot_be_used_is_bad_input(tmp_path: Path, scenes: Path) -> None:
    config = tiny_config(tmp_path / "run", scenes / "train", "steps=2", "checkpoint.folder=nosuch://bucket/run")
    with pytest.raises(InputError, match=r"nosuch://bucket/run cannot be read .* mend the storage"):
        train(config)
