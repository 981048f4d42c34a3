"""A store of teachers' embeddings has the same bytes however many processes made it, and however often they died."""

import errno
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from distributed.ranks import run_ranks
from embedding_folders import contents
from servers import WebServer
from teacher_stores import data_of, teacher, write_noise

from clipx.data.columns import RawSample
from clipx.data.decode import UndecodableError
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.data.teachers import open_teachers
from clipx.errors import InputError, RunError
from clipx.prepare import teach_folder
from clipx.prepare.teach import TeachOptions, teach

COUNTS = (7, 5, 6, 3)
SAMPLES = sum(COUNTS)


def teach_share(shards, out, *, killed_at=None, workers=0, views=3, seed=0, total=SAMPLES):
    """On one rank: teaches, or dies on the way; returns the samples that all ranks taught."""

    def on_progress(done, of):
        assert of == total
        if killed_at is not None and done >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    group = dist.group.WORLD if dist.is_initialized() else None
    own = seed * dist.get_rank() if seed else 0
    teachers = [teacher("small", seed=own), teacher("other", seed=1, image_size=32)]
    options = TeachOptions(views=views, batch_size=12, workers=workers)
    return teach(data_of(shards), teachers, out, options=options, group=group, on_progress=on_progress).num_new


def teach_by(options, shards, out):
    return teach_share(shards, out, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("shards"), COUNTS, bad=[3])


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert teach_share(shards, str(out)) == sum(COUNTS)
    assert len(contents(out)) == len(COUNTS) + 2
    return contents(out)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.full)])
def test_several_ranks_make_what_one_makes(shards, alone, tmp_path, ranks):
    assert run_ranks(teach_by, ranks, {}, shards, str(tmp_path / "out")) == [sum(COUNTS)] * ranks
    assert contents(tmp_path / "out") == alone


def test_processes_that_read_change_nothing(shards, alone, tmp_path):
    teach_share(shards, str(tmp_path / "out"), workers=2)
    assert contents(tmp_path / "out") == alone


def test_shards_on_a_web_server_make_the_same_store(shards, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    with WebServer({os.path.basename(path): open(path, "rb").read() for path in shards}) as web:
        addresses = [f"{web.url}/{os.path.basename(path)}" for path in shards]
        for workers in (0, 2):
            teach_share(addresses, str(tmp_path / f"out{workers}"), workers=workers)
            assert contents(tmp_path / f"out{workers}") == alone


@pytest.mark.full
def test_killed_twice_it_goes_on(shards, alone, tmp_path):
    out = tmp_path / "out"
    for samples in (10, 17):  # in the second shard, and in the third
        with pytest.raises(RuntimeError, match="died without a word"):
            run_ranks(teach_by, 1, {"killed_at": samples}, shards, str(out))
        with pytest.raises(InputError, match="is unfinished"):
            open_teachers(str(out))
    (out / "shards" / ".00002.teachers.new").write_bytes(b"cut short")
    assert run_ranks(teach_by, 2, {}, shards, str(out)) == [9, 9]  # the first two shards were done
    assert contents(out) == alone
    assert run_ranks(teach_by, 2, {}, shards, str(out)) == [0, 0]
    assert contents(out) == alone


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(shards, alone, tmp_path, monkeypatch):
    out, fsync = tmp_path / "out", os.fsync

    def full(number):
        if (out / "shards" / ".00001.teachers.new").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(
            RunError, match=r"00001\.teachers cannot be written \(No space left .* the same command again"
        ):
            teach_share(shards, str(out))
    with pytest.raises(InputError, match="is unfinished"):
        open_teachers(str(out))
    assert teach_share(shards, str(out)) == sum(COUNTS[1:])
    assert contents(out) == alone


def test_a_shard_of_which_nothing_is_good_is_part_of_the_store(tmp_path):
    shards = write_noise(tmp_path / "s", (3, 2), bad=[0, 1, 2])
    assert teach_share(shards, str(tmp_path / "out"), total=5) == 5
    teachers = open_teachers(str(tmp_path / "out"))
    assert [(shard.samples, shard.taught) for shard in teachers.description.shards] == [(3, 0), (2, 2)]
    reader = teachers.column_reader(["small", "other"])
    ref = SampleRef(source=0, shard=0, index=0, epoch=0, sample_id=0)
    for path, key, text in ((shards[0], "000000", "a"), (shards[1], "000003", "picture 3")):
        good = RawSample(members={}, texts=[text], ref=ref, name=partial(SampleName, path, key, ()), view=2)
        if path == shards[0]:
            with pytest.raises(UndecodableError, match=r"has no teachers' embeddings; why, says .*left_out\.jsonl"):
                reader.read(good)
        else:
            assert len(reader.read(good)) == 4


def test_another_request_is_refused(shards, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(teach_by, 1, {"killed_at": 10}, shards, str(out))
    for given, options, message in (
        (shards, {"views": 5}, r"was begun with another request: views was 3, now 5; choose a new folder"),
        (shards[1:], {}, "the shards are others"),
    ):
        with pytest.raises(InputError, match=message):
            teach_by(options, given, str(out))
    changed = replace(data_of(shards), decode="pil")
    with pytest.raises(InputError, match=r"decode was fast, now pil; .*; samples are read or augmented otherwise"):
        teach(changed, [teacher("small")], str(out), options=TeachOptions(views=3, batch_size=12))


def teach_apart(shards, outs):
    """On one rank: as if each machine had another disk under the name."""
    teach_folder._SEEN_WITHIN_S = 0.0
    return teach_share(shards, outs[dist.get_rank()])


def test_ranks_that_see_other_folders_are_told_before_they_teach(shards, tmp_path):
    with pytest.raises(RunError, match="is not the same folder for all ranks; name one that all machines see"):
        run_ranks(teach_apart, 2, shards, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert not list(tmp_path.glob("*/shards"))


def teach_with_a_stale_view(shards, out):
    """On one rank: as on a network file system that shows a file of another rank late, or not at all."""
    exists, read_bytes, own = os.path.exists, Path.read_bytes, dist.get_rank()
    looked = []

    def late(path):
        looked.append(".seen" in str(path))
        return exists(path) and (not looked[-1] or sum(looked) > 1)

    def stale(path):
        if path.name in (f"{number:05d}.json" for number in range(len(COUNTS)) if number % 2 != own):
            raise FileNotFoundError(path)
        return read_bytes(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os.path, "exists", late)
        patched.setattr(Path, "read_bytes", stale)
        return teach_share(shards, out)


def test_what_a_network_file_system_shows_late_does_not_end_the_job(shards, alone, tmp_path):
    assert run_ranks(teach_with_a_stale_view, 2, shards, str(tmp_path / "out")) == [SAMPLES] * 2
    assert contents(tmp_path / "out") == alone


def test_ranks_with_other_weights(shards, tmp_path):
    with pytest.raises(InputError, match="ranks loaded other weights"):
        run_ranks(teach_by, 2, {"seed": 1}, shards, str(tmp_path / "out"))


def test_a_shard_that_changed_while_the_job_was_dead_is_taught_again(tmp_path):
    shards = write_noise(tmp_path / "s", COUNTS)
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(teach_by, 1, {"killed_at": 10}, shards, str(tmp_path / "out"))
    with open(shards[0], "ab") as file:
        file.write(bytes(10240))  # a tar may end in any number of empty blocks
    assert teach_share(shards, str(tmp_path / "out")) == sum(COUNTS)
