"""Bad input: each case ends as it should, with one clear line; nothing hangs, nothing good is overwritten."""

import io
import logging
import resource
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import CONFIG, losses, metrics, newest_checkpoint, saved_tensors, status, tiny_config

from clipx.config.load import load_config
from clipx.errors import ClipxError, InputError, RunError
from clipx.train.trainer import train

Members = dict[str, bytes]


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 36), (colour % 256, 128, 255 - colour % 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(path: Path, samples: list[Members]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, data in members.items():
                entry = tarfile.TarInfo(f"{path.stem}-{number:04d}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def good_samples(number: int) -> list[Members]:
    return [{"jpg": picture(i), "txt": f"picture {i}".encode()} for i in range(number)]


def fail(action: Callable[[], object], kind: type[ClipxError]) -> str:
    """The message of the error, which must be one line."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_config_file(tmp_path: Path) -> None:
    assert "nowhere.yaml" in fail(lambda: load_config([tmp_path / "nowhere.yaml"]), InputError)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    message = fail(lambda: tiny_config(tmp_path / "run", "x.tar", "optim.learning_rat=1"), InputError)
    assert "optim.learning_rat" in message
    message = fail(lambda: tiny_config(tmp_path / "run", "x.tar", "global_batchsize=1"), InputError)
    assert "global_batch_size" in message


def test_a_micro_batch_that_does_not_divide(tmp_path: Path, scenes: Path) -> None:
    config = tiny_config(tmp_path / "run", scenes / "train", "micro_batch_size=7")
    message = fail(lambda: train(config), InputError)
    assert "micro_batch_size=7" in message
    assert "6, 8" in message


def test_a_shard_list_that_matches_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", tmp_path / "none-*.tar")
    assert "none-*.tar" in fail(lambda: train(config), InputError)


def test_an_empty_shard_among_good_ones_is_named_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "a.tar", good_samples(30))
    write_shard(tmp_path / "b.tar", [])
    with caplog.at_level(logging.WARNING):
        assert train(tiny_config(tmp_path / "run", tmp_path / "*.tar", "steps=3")) == 0
    assert "b.tar" in caplog.text


def test_only_empty_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", [])
    config = tiny_config(tmp_path / "run", tmp_path / "b.tar")
    assert "b.tar" in fail(lambda: train(config), InputError)


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", good_samples(20))
    message = fail(lambda: train(tiny_config(tmp_path / "run", tmp_path / "a.tar")), InputError)
    assert "20" in message
    assert "allow_repeats" in message
    assert train(tiny_config(tmp_path / "run", tmp_path / "a.tar", "data.allow_repeats=true", "steps=3")) == 0


def test_a_truncated_shard_gives_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = write_shard(tmp_path / "a.tar", good_samples(130))
    with tarfile.open(shard) as tar:
        cut = tar.getmember("a-0129.jpg").offset_data + 10
    shard.write_bytes(shard.read_bytes()[:cut])
    with caplog.at_level(logging.WARNING):
        assert train(tiny_config(tmp_path / "run", shard)) == 0
    assert "a.tar" in caplog.text
    assert "truncated" in caplog.text
    listed = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert len(listed) == 1
    assert "a-0129" in listed[0]
    assert metrics(tmp_path / "run")[-1]["bad_samples"] == 1


def test_few_corrupt_pictures_are_replaced_and_listed(tmp_path: Path) -> None:
    samples = good_samples(240)
    samples[17]["jpg"] = b"no picture"
    samples[91]["jpg"] = samples[91]["jpg"][:300]
    write_shard(tmp_path / "a.tar", samples)
    config = tiny_config(tmp_path / "run", tmp_path / "a.tar", "data.workers=2")
    assert train(config) == 0
    listed = (tmp_path / "run" / "quarantine.jsonl").read_text()
    assert len(listed.splitlines()) == 2
    assert "a-0017" in listed
    assert "a-0091" in listed
    assert len(losses(tmp_path / "run")) == 20


def test_many_corrupt_pictures_stop_the_run_with_the_list(tmp_path: Path) -> None:
    samples = good_samples(240)
    for sample in samples[::10]:
        sample["jpg"] = b"no picture"
    write_shard(tmp_path / "a.tar", samples)
    message = fail(lambda: train(tiny_config(tmp_path / "run", tmp_path / "a.tar")), RunError)
    assert "max_bad_fraction=0.01" in message
    assert "quarantine.jsonl" in message
    assert status(tmp_path / "run")["status"] == "failed"
    assert len(metrics(tmp_path / "run")) == 5  # counted from 100 distinct samples on: step 5 of 24 pairs


def test_captions_that_are_nowhere(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [{"jpg": picture(i), "caption": b"here"} for i in range(200)])
    message = fail(lambda: train(tiny_config(tmp_path / "run", tmp_path / "a.tar")), RunError)
    assert "data.caption_key" in message
    assert "caption" in message.split("members there")[1]  # says what the shards do hold


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path: Path, scenes: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_config(run_dir, scenes / "train", "steps=6", "checkpoint.every_steps=3")) == 0
    good = newest_checkpoint(run_dir)
    before = saved_tensors(good, tmp_path / "before")
    config = tiny_config(
        run_dir, scenes / "train", "steps=40", "optim.lr=1e38", "checkpoint.every_steps=1", "max_skipped_steps=4"
    )
    message = fail(lambda: train(config), RunError)
    assert "4 steps in a row" in message
    assert status(run_dir)["status"] == "failed"
    after = saved_tensors(good, tmp_path / "after")
    assert all(before[name].equal(after[name]) for name in before)
    assert metrics(run_dir)[-1]["loss"] is None  # not a number is no JSON
    assert metrics(run_dir)[-1]["skipped_steps"] == 4
    # step 7 was saved before its weights showed what they are; the next start must not begin there
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} >= {good.name, "diverged-step-00000007"}
    assert train(tiny_config(run_dir, scenes / "train", "steps=12")) == 0
    assert metrics(run_dir)[-1]["skipped_steps"] == 0


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """A disk that refuses files above a size, for this process, until the test ends."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_while_saving(
    tmp_path: Path, scenes: Path, small_disk: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_config(run_dir, scenes / "train", "steps=3")) == 0
    good = newest_checkpoint(run_dir)
    small_disk(1_000_000)  # the tiny model with its moments has 20 MB
    with caplog.at_level(logging.ERROR):
        config = tiny_config(run_dir, scenes / "train", "steps=8", "checkpoint.every_steps=5")
        message = fail(lambda: train(config), RunError)
    assert "CHECKPOINT OF STEP 5 FAILED" in caplog.text  # the run went on from there
    assert "could not be written" in message
    assert len(metrics(run_dir)) == 8
    assert newest_checkpoint(run_dir) == good
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000003"]


def test_changed_data_at_resume_says_what_changed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", good_samples(60))
    assert train(tiny_config(tmp_path / "run", tmp_path / "*.tar", "steps=3")) == 0
    write_shard(tmp_path / "b.tar", good_samples(50))
    longer = ["steps=6"]
    message = fail(lambda: train(tiny_config(tmp_path / "run", tmp_path / "*.tar", *longer)), InputError)
    assert "num_samples: 60 -> 110" in message
    assert "data.allow_change=true" in message
    assert train(tiny_config(tmp_path / "run", tmp_path / "*.tar", *longer, "data.allow_change=true")) == 0


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config(tmp_path / "file" / "run", scenes / "train")
    assert "run_dir" in fail(lambda: train(config), InputError)


def test_the_command_line_prints_one_line_and_exits_with_2(clipx: Callable[..., object], tmp_path: Path) -> None:
    result = clipx("train", CONFIG, f"run_dir={tmp_path / 'run'}", f"data.train=[{tmp_path / 'none-*.tar'}]")
    assert result.returncode == 2  # type: ignore[attr-defined]
    assert result.stdout == ""  # type: ignore[attr-defined]
    lines = result.stderr.splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert lines[0].startswith("clipx: error: ")
