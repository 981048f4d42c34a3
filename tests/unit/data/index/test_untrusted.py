"""Shards and indexes as strangers, disks and other commands leave them: said, mended or refused."""

import io
import logging
import os
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_files import sample_ref, write_shards, write_tar

from clipx.data.filters.filters import SampleFilter
from clipx.data.index import builder as builder_module
from clipx.data.index import scan as scan_module
from clipx.data.index.folder import COUNTS_FILE, IndexFolder
from clipx.data.index.shard_counts import ShardCounts
from clipx.data.index.shard_index import build_index, load_index
from clipx.data.shards import ShardReader
from clipx.errors import InputError, RunError


def warnings(caplog):
    return [record.getMessage() for record in caplog.records]


def contents(index):
    """[(key, members)] of all samples, as training reads them."""
    reader = ShardReader([index], extensions=[None])
    refs = [sample_ref(0, shard, i) for shard in range(len(index.paths)) for i in range(index.counts[shard])]
    return [(reader.name(ref).key, reader.read(ref)) for ref in refs]


def test_a_shard_of_pieces_is_refused_with_what_to_do(tmp_path):
    names = [f"{i}.{extension}" for extension in ("jpg", "txt") for i in range(4)]
    path = write_tar(tmp_path / "s" / "0.tar", [(name, b"x") for name in names])
    with pytest.raises(InputError, match=r"0.tar holds 8 pieces of samples.*`tar --sort=name`, or .*check --repair"):
        build_index([str(tmp_path / "s")])
    write_tar(path, [(name, b"x") for name in sorted(names)])
    assert build_index([str(tmp_path / "s")]).num_samples == 4


def test_what_costs_samples_is_said_when_a_shard_is_indexed(tmp_path, caplog):
    write_shards(tmp_path / "s", [3, 2])
    first, second = (tmp_path / "s" / f"0000{i}.tar" for i in range(2))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with tarfile.open(second, "a") as tar:
        info = tarfile.TarInfo("9.png")
        info.type, info.linkname = tarfile.LNKTYPE, "000003.png"
        tar.addfile(info)
    write_tar(tmp_path / "s" / "00002.tar", [(f"frame.{i:03d}.txt", b"x") for i in range(200)])
    with caplog.at_level(logging.WARNING):
        assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 2, 1]
    joined, link, frames = warnings(caplog)
    assert "00000.tar holds another tar behind its end mark" in joined
    assert joined.endswith("it counts with the 3 samples before that")
    assert link.endswith(
        "00001.tar holds 1 hard link, which is no file (9.png); make the tar with `tar --hard-dereference`"
    )
    assert "00002.tar has a sample 'frame' of 200 members (000.txt, 001.txt," in frames
    caplog.clear()
    build_index([str(tmp_path / "s")])  # at every start, without a scan
    again = f"3 shards lost samples or were odd when they were indexed (first: {first}); `clipx data check` says why"
    assert warnings(caplog) == [again]


def test_warnings_of_very_many_shards_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(builder_module, "_MAX_WARNINGS", 2)
    for path in write_shards(tmp_path / "s", [1] * 5):
        with open(path, "ab") as file:
            file.write(b"rest")
    with caplog.at_level(logging.WARNING):
        build_index([str(tmp_path / "s")])
    assert len(warnings(caplog)) == 3
    assert warnings(caplog)[-1] == "3 more faults of shards; `clipx data check` names them"


def damage(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def as_before(path):
    """Writes offsets as the version before did: without a checksum."""
    content = path.read_bytes()
    path.write_bytes(b"CLIPXIX2" + content[8:72] + content[80:])


@pytest.mark.parametrize("spoil", [damage, as_before])
@pytest.mark.parametrize("writable", [True, False])
def test_offsets_that_nobody_vouches_for_are_made_again(tmp_path, monkeypatch, scanned, spoil, writable):
    paths = write_shards(tmp_path / "s", [3, 2])
    index = build_index([str(tmp_path / "s")])
    good, beside = contents(index), index.offsets_path(0)
    spoil(beside)
    spoilt = beside.read_bytes()
    scanned.clear()
    real = scan_module.IndexFolder.keep_offsets
    if not writable:  # root may write everywhere
        monkeypatch.setattr(
            scan_module.IndexFolder,
            "keep_offsets",
            lambda self, name, content: real(IndexFolder("memory://" + self.folder), name, content),
        )
        monkeypatch.setattr(IndexFolder, "_cached", lambda self, name: tmp_path / "cache" / f"{name}.clipx-index")
    assert contents(load_index([str(tmp_path / "s")])) == good
    assert contents(build_index([str(tmp_path / "s")])) == good
    assert scanned == paths[:1]  # once
    assert (beside.read_bytes() == spoilt) != writable


@pytest.mark.parametrize("unique", [None, "image"])
def test_offsets_of_a_filter_are_compared_with_the_headers(tmp_path, scanned, unique):
    """To make them again would mean to read all captions."""
    write_shards(tmp_path / "s", [3], replaced={1: {"txt": b"short"}})
    filters = SampleFilter.parse(["caption.words>=2"], unique=unique)
    index = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=filters)
    good, whole = contents(index), index.offsets_path(0).read_bytes()
    assert [key for key, _ in good] == ["000000", "000002"]
    as_before(index.offsets_path(0))
    old = index.offsets_path(0).read_bytes()
    scanned.clear()
    assert contents(index) == good == contents(index)
    assert (index.offsets_path(0).read_bytes(), len(scanned)) == (whole, 1)
    for place in range(72, len(old) - 3 - (24 if unique else 0)):  # up to the reasons, with a byte changed
        changed = bytearray(old)
        changed[place] ^= 1
        index.offsets_path(0).write_bytes(changed)
        try:
            found = contents(index)
        except RunError:
            continue
        assert found == good


def test_damaged_offsets_of_a_filter_are_named(tmp_path):
    write_shards(tmp_path / "s", [3])
    filters = SampleFilter.parse(["caption.words>=2"])
    index = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=filters)
    index.offsets_path(0).write_bytes(b"CLIPXIX3" + bytes(100))
    with pytest.raises(RunError, match="is gone, damaged or of another filter; delete it if it is there"):
        index.offsets(0)
    index.offsets_path(0).unlink()
    assert build_index([str(tmp_path / "s")], index_dir=tmp_path / "i").offsets(0).num_samples == 3


def test_counts_that_lie_are_made_again_or_found_out(tmp_path, scanned):
    paths = write_shards(tmp_path / "s", [3, 2])
    build_index([str(tmp_path / "s")])
    counts = ShardCounts.from_bytes((tmp_path / "s" / COUNTS_FILE).read_bytes())
    for column, value in (("count", -1), ("size", -1), ("source", 7)):
        rows = counts.rows.copy()
        rows[column][0] = value
        (tmp_path / "s" / COUNTS_FILE).write_bytes(ShardCounts(rows, "", ()).to_bytes())
        assert build_index([str(tmp_path / "s")]).counts.tolist() == [3, 2]
    rows = counts.rows.copy()
    rows["count"][0] = 4  # a number like another
    (tmp_path / "s" / COUNTS_FILE).write_bytes(ShardCounts(rows, "", ()).to_bytes())
    with pytest.raises(RunError, match=r"00000.tar holds 3 samples, its index .* says 4"):
        load_index([str(tmp_path / "s")]).offsets(0)
    assert len(scanned) == len(paths)


def test_the_index_of_other_shards_of_the_same_names_is_not_taken(tmp_path):
    write_shards(tmp_path / "s", [3, 2])
    write_shards(tmp_path / "t", [4, 1])
    build_index([str(tmp_path / "s")])
    for name in os.listdir(tmp_path / "s"):
        if "index" in name:
            shutil.copy(tmp_path / "s" / name, tmp_path / "t")
    assert build_index([str(tmp_path / "t")]).counts.tolist() == [4, 1]
    assert [key for key, _ in contents(load_index([str(tmp_path / "t")]))] == [f"{i:06d}" for i in range(5)]


def test_two_indexes_of_one_folder_at_once_end_with_the_shards_of_both(tmp_path, monkeypatch):
    """Each reads the counts, adds its own and writes: without a lock the last would drop the first one's."""
    write_shards(tmp_path / "s", [3, 2, 4, 1])
    halves = [[f"{tmp_path}/s/{{00000,00001}}.tar"], [f"{tmp_path}/s/{{00002,00003}}.tar"]]
    second = threading.Thread(target=build_index, args=(halves[1],))
    real = IndexFolder.put_counts

    def put_counts(self, counts):
        if threading.current_thread() is threading.main_thread():
            second.start()  # has read nothing yet, and must wait with reading
            second.join(timeout=0.5)
        real(self, counts)

    monkeypatch.setattr(IndexFolder, "put_counts", put_counts)
    build_index(halves[0])
    second.join()
    assert load_index([str(tmp_path / "s")]).counts.tolist() == [3, 2, 4, 1]


def test_of_two_filters_in_one_folder_at_once_the_second_says_so(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [3])
    short, long = (SampleFilter.parse([f"caption.words>={n}"]) for n in (1, 2))
    real = SampleFilter.save

    def save(self, folder):
        monkeypatch.setattr(SampleFilter, "save", real)
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=long)  # just before the first one's
        real(self, folder)

    monkeypatch.setattr(SampleFilter, "save", save)
    with pytest.raises(
        InputError, match=r"has the filter 'caption.words>=2.*', not 'caption.words>=1.*'; choose another"
    ):
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=short)
    index = load_index([str(tmp_path / "s")], index_dir=tmp_path / "i")
    assert (index.num_samples, index.filter.split(",")[0], index.offsets(0).num_samples) == (3, "caption.words>=2", 3)


def test_an_index_without_a_filter_does_not_replace_one_with_it(tmp_path, monkeypatch):
    write_shards(tmp_path / "s", [3])
    real = builder_module.IndexBuilder.save

    def save(self):
        monkeypatch.setattr(builder_module.IndexBuilder, "save", real)
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=SampleFilter.parse(["caption.words>=2"]))
        real(self)

    monkeypatch.setattr(builder_module.IndexBuilder, "save", save)
    with pytest.raises(InputError, match=r"was made with the filter 'caption.words>=2.*', not with no filter"):
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "i")
    assert load_index([str(tmp_path / "s")], index_dir=tmp_path / "i").filter.startswith("caption.words>=2")


def test_the_home_folder_is_meant_where_no_shell_has_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "home" / "s", [3])
    (tmp_path / "home" / "keys.txt").write_text("000001\n")
    filters = SampleFilter.parse([], keys=Path("~/keys.txt"))
    assert build_index(["~/s"], index_dir="~/i", filters=filters).num_samples == 1
    assert load_index(["~/s"], index_dir=Path("~/i")).num_samples == 1
    assert sorted(os.listdir(tmp_path)) == ["home"]


def test_a_list_of_keys_that_is_another_is_refused(tmp_path):
    (tmp_path / "keys.txt").write_text("a\nb\n")
    filters = SampleFilter.parse([], keys=tmp_path / "keys.txt")
    filters.save(str(tmp_path))
    (path,) = tmp_path.glob("clipx-keys-*.npy")
    content = path.read_bytes()
    assert SampleFilter.load(str(tmp_path)).text == filters.text
    other = io.BytesIO()
    np.save(other, np.arange(2, dtype=np.uint64))
    for spoilt in (content[:-1] + bytes([content[-1] ^ 1]), other.getvalue(), b"", content[:40], b"x" * 200):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match="is damaged"):
            SampleFilter.load(str(tmp_path))


def test_fifos_in_the_place_of_an_index_are_not_waited_for(tmp_path):
    write_shards(tmp_path / "s", [3])
    index = build_index([str(tmp_path / "s")])
    index.offsets_path(0).unlink()
    os.mkfifo(index.offsets_path(0))
    assert len(contents(index)) == 3  # made again in its place
    (tmp_path / "s" / COUNTS_FILE).unlink()
    os.mkfifo(tmp_path / "s" / COUNTS_FILE)
    with pytest.raises(InputError, match=r"index .*clipx-index.bin cannot be read: .*it is a fifo, not a file"):
        build_index([str(tmp_path / "s")])


def test_a_shard_in_anothers_place_is_found_out_when_it_is_opened(tmp_path):
    """Tars are padded to 10 KiB: one of the same size is easily another, and a copy may keep the time."""
    (path,) = write_shards(tmp_path / "s", [3])
    state = os.stat(path)
    index = build_index([str(tmp_path / "s")])
    members = [(f"{i}.{e}", b"x" * (700 + i)) for i in range(3) for e in ("png", "txt")]
    write_tar(tmp_path / "s" / "00000.tar", members)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(path).st_size == state.st_size
    assert build_index([str(tmp_path / "s")]).num_samples == 3  # nothing tells them apart
    with pytest.raises(RunError, match=r"00000.tar is not the one that was indexed.* `touch` it"):
        contents(index)
    os.utime(path)
    assert [len(fields["png"]) for _, fields in contents(build_index([path]))] == [700, 701, 702]


def test_a_spoilt_header_does_not_make_another_shard_of_it(tmp_path):
    (path,) = write_shards(tmp_path / "s", [3])
    index = build_index([str(tmp_path / "s")])
    good, last = contents(index), index.offsets(0).members(2)[-1]
    with open(path, "r+b") as file:
        file.seek(last.offset - 512)
        file.write(bytes(512))
    assert contents(index) == good
