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
from clipx.data.shards import BadSampleError, ShardReader
from clipx.errors import InputError
from clipx.prepare.check import check_shards
from clipx.storage.files import open_ranges
from clipx.storage.tar import is_sample_file, read_members, scan_tar
from clipx.storage.tar_headers import NotTarError

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
                # what a name's slash makes a folder in the oldest format has no content to skip
                has_content = info.isreg() and not (kind == tarfile.AREGTYPE and name.endswith("/"))
                info.size = len(data) if has_content else 0
                tar.addfile(info, io.BytesIO(data) if has_content else None)
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


@settings(max_examples=200)
@given(
    tars=st.lists(Members | Pairs, min_size=1, max_size=2), format=st.sampled_from(FORMATS), padding=st.integers(0, 300)
)
@example(tars=[[("0.jpg", tarfile.REGTYPE, b"1", {}), ("0.txt", tarfile.LNKTYPE, b"", {})]], format=1, padding=0)
@example(tars=[[("a/", tarfile.AREGTYPE, b"1", {})], [("0.jpg", tarfile.REGTYPE, b"1", {})]], format=0, padding=0)
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


@settings(max_examples=60)
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


Sizes = st.one_of(st.binary(min_size=12, max_size=12), st.from_regex(rb"[-+_ 0-9a-f\0]{12}", fullmatch=True))
Patches = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(b"0gxLKS1257\0ZMD"), Sizes, st.binary(max_size=30)), max_size=3
)


@settings(max_examples=200)
@given(patches=Patches, cut=st.integers(0, 4000), tail=st.binary(max_size=40))
def test_no_header_makes_a_scan_endless_or_an_index_that_leads_outside(patches, cut, tail):
    """Each patch is a header with its checksum: a kind, a size and a start of the data that mean anything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "0.tar")
        members = [(f"{i}.{e}", tarfile.REGTYPE, b"data", {}) for i in range(4) for e in ("jpg", "txt")]
        write(path, [members], format=tarfile.PAX_FORMAT, padding=0)
        raw = bytearray(path.read_bytes())
        for number, kind, size, data in patches:
            at = 1024 * number
            raw[at + 124 : at + 136], raw[at + 156], raw[at + 512 : at + 512 + len(data)] = size, kind, data
            raw[at + 148 : at + 156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
        path.write_bytes(raw[: len(raw) - cut] + tail)
        try:
            scan = scan_tar(open_ranges(str(path)))
            samples = build_index([str(path)]).num_samples
        except (NotTarError, InputError):
            return
        assert samples == len(scan.keys)
        assert len(scan.offsets) <= 8
        assert all(0 <= offset <= len(raw) + 40 for offset in scan.offsets)
        reader = ShardReader([load_index([str(path)])], extensions=[None])
        for i in range(samples):
            try:
                assert sum(map(len, reader.read(sample_ref(0, 0, i)).values())) <= len(raw) + 40
            except BadSampleError:
                assert scan.damage is not None
