"""Whatever a tar is made of, index, check and the sample reader agree on its samples, and webdataset with them."""

import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shard_files import sample_ref
from webdataset.tariterators import tarfile_samples

from clipx.config.data import DataConfig, sources
from clipx.data.index.shard_index import build_index, load_index
from clipx.data.shards import ShardReader
from clipx.errors import InputError
from clipx.prepare.check import check_shards
from clipx.storage.files import open_ranges
from clipx.storage.tar import is_sample_file, read_members, scan_tar

FOLDERS = ("", "a/", "A/", "a.b/c/", "./", "__meta__/", "d" * 90 + "/" + "e" * 90 + "/", "ключ/")
STEMS = ("0", "1", "00", "x-y", "", "__k__", "__k", "._p", "ключ")
EXTENSIONS = (".jpg", ".JPG", ".txt", ".seg.PNG", ".000001.jpg", ".", "", ".É", ".é", ".json__")
KINDS = (*[tarfile.REGTYPE] * 6, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

Names = st.tuples(*map(st.sampled_from, (FOLDERS, STEMS, EXTENSIONS))).map("".join)
Members = st.lists(
    st.tuples(
        Names.filter(bool), st.sampled_from(KINDS), st.binary(max_size=3), st.sampled_from([{}, {"note": "x y\n"}])
    ),
    max_size=9,
)
Pairs = st.permutations([f"{i}.{e}" for i in range(3) for e in ("jpg", "txt", "json")]).map(
    lambda names: [(name, tarfile.REGTYPE, name.encode(), {}) for name in names]
)
Sample = tuple[str, dict[str, bytes]]


def write(path: Path, tars, *, format: int, padding: int) -> None:
    """Tars joined as by `cat`, with zeros behind the last."""
    content = io.BytesIO()
    for members in tars:
        with tarfile.open(fileobj=content, mode="w", format=format) as tar:
            for name, kind, data, pax in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.pax_headers = kind, "0.jpg", dict(pax)
                info.size = len(data) if info.isreg() else 0
                tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    path.write_bytes(content.getvalue() + bytes(512 * padding))


def by_webdataset(path: Path) -> list[Sample] | None:
    """The samples as webdataset groups them; None if it says that it cannot."""
    try:
        found = list(tarfile_samples([{"url": str(path)}], select_files=is_sample_file))
    except ValueError:  # a name twice in a row
        return None
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in found]


def by_scan(path: Path) -> list[Sample]:
    file = open_ranges(str(path))
    scan = scan_tar(file)
    return [(scan.key(i), read_members(file, scan.members(i))) for i in range(len(scan.keys))]


def by_training(path: Path) -> list[Sample]:
    """The samples that the reader of training finds by an index."""
    built, loaded = build_index([str(path)]), load_index([str(path)])
    assert built.num_samples == loaded.num_samples
    reader = ShardReader([loaded], extensions=[None])
    refs = [sample_ref(0, 0, i) for i in range(loaded.num_samples)]
    return [(reader.name(ref).key, reader.read(ref)) for ref in refs]


@settings(deadline=None, max_examples=200)
@given(
    tars=st.lists(Members | Pairs, min_size=1, max_size=2), format=st.sampled_from(FORMATS), padding=st.integers(0, 300)
)
@example(tars=[[("0.jpg", tarfile.REGTYPE, b"1", {}), ("0.txt", tarfile.LNKTYPE, b"", {})]], format=1, padding=0)
def test_index_check_and_training_agree_with_webdataset(tars, format, padding):
    try:
        check_one(tars, format=format, padding=padding)
    except ValueError as error:
        if "name is too long" not in str(error):  # ustar cannot hold it
            raise


def check_one(tars, *, format: int, padding: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s", "0.tar")
        path.parent.mkdir()
        write(path, tars, format=format, padding=padding)
        scan, samples = scan_tar(open_ranges(str(path))), by_scan(path)
        if (expected := by_webdataset(path)) is not None:
            assert samples == expected
        assert ("another tar behind its end mark" in (scan.damage or "")) == any(map(bool, tars[1:]))
        links = {kind: name for name, kind, *_ in tars[0] if kind in (b"1", b"2") and is_sample_file(name)}
        assert len(scan.links) == len(links)
        (health,) = check_shards(sources(DataConfig(train=[str(path)])), repair=None, workers=1).shards
        assert (health.num_samples, health.num_good) == (len(samples), 0)
        shards_faults = {problem.fault for problem in health.problems if problem.key is None}
        assert {fault.kind for fault in scan.faults()} == shards_faults - {"no samples"}
        refused = "tar --sort=name" if scan.pieces else None if samples else "hold no samples"
        if refused:
            with pytest.raises(InputError, match=refused):
                build_index([str(path)])
        else:
            assert by_training(path) == samples
        keys = [key for key, _ in samples]
        pieces = {i for i, (key, fields) in enumerate(samples) for j in range(len(keys))
                  if i != j and keys[j] == key and fields.keys().isdisjoint(samples[j][1])}  # fmt: skip
        assert scan.pieces <= pieces
        assert bool(scan.pieces) == bool(pieces) or len(samples) > 2


@settings(deadline=None, max_examples=60)
@given(order=st.permutations([f"{i}.{e}" for i in range(4) for e in ("jpg", "txt")]))
def test_members_in_any_order_are_grouped_to_the_same_samples(order):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "0.tar")
        write(path, [[(name, tarfile.REGTYPE, name.encode(), {}) for name in order]], format=0, padding=0)
        file = open_ranges(str(path))
        scan = scan_tar(file)
        whole = scan.grouped()
        found = {whole.key(i): read_members(file, whole.members(i)) for i in range(len(whole.keys))}
        assert found == {str(i): {e: f"{i}.{e}".encode() for e in ("jpg", "txt")} for i in range(4)}
        assert (len(scan.keys) == 4) == (not scan.pieces)
