import io
import tarfile

import numpy as np
import pytest
from shard_files import write_tar

from clipx.data.index.offsets import NotTarError, Sidecar, Verdict, scan_tar, sidecar_parts
from clipx.storage.files import file_state, open_ranges

LONG = "d" * 90 + "/" + "long-" * 40 + "name.jpg"


def scan(path):
    return scan_tar(open_ranges(str(path)))


def stored(path, parts):
    path.write_bytes(b"".join(parts))
    return Sidecar(path)


def contents(path, tmp_path):
    """[(key, {extension: bytes})] as read through a sidecar."""
    sidecar, file = (
        stored(tmp_path / "sidecar", sidecar_parts(scan(path), file_state(str(path)))),
        open_ranges(str(path)),
    )
    return [
        (sidecar.key(i), {m.extension: file.read_at(m.offset, m.size) for m in sidecar.members(i)})
        for i in range(sidecar.num_samples)
    ]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_runs_of_members_with_one_key(tmp_path, tar_format):
    members = [
        ("a/0.jpg", b"x" * 700),
        ("a/0.seg.PNG", b"y" * 512),
        ("a/0.txt", b""),
        ("b/0.jpg", b"another folder"),
        ("b/1.jpg", b"an extension again"),
        ("b/1.jpg", b"starts a sample"),
        ("b/1.txt", b"of its own"),
        ("README", b"no extension"),
        ("b/.hidden", b"no key"),
    ]
    path = write_tar(tmp_path / "a.tar", members, format=tar_format)
    assert contents(path, tmp_path) == [
        ("a/0", {"jpg": b"x" * 700, "seg.png": b"y" * 512, "txt": b""}),
        ("b/0", {"jpg": b"another folder"}),
        ("b/1", {"jpg": b"an extension again"}),
        ("b/1", {"jpg": b"starts a sample", "txt": b"of its own"}),
    ]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, tar_format):
    path = write_tar(tmp_path / "a.tar", [(LONG, b"1"), ("ключ.jpg", b"2"), ("plain.jpg", b"3")], format=tar_format)
    assert contents(path, tmp_path) == [
        (LONG.removesuffix(".jpg"), {"jpg": b"1"}),
        ("ключ", {"jpg": b"2"}),
        ("plain", {"jpg": b"3"}),
    ]


def test_ustar_prefix(tmp_path):
    name = "p" * 100 + "/" + "n" * 60 + ".txt"
    assert contents(write_tar(tmp_path / "a.tar", [(name, b"1")]), tmp_path)[0][0] == name.removesuffix(".txt")


def set_size(raw, header, field):
    raw[header + 124 : header + 136] = field
    raw[header + 148 : header + 156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])


def test_pax_size_and_binary_size_fields(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.txt")
        info.size, info.pax_headers = 600, {"size": "600"}
        tar.addfile(info, io.BytesIO(b"s" * 600))
        tar.addfile(tarfile.TarInfo("1.txt"))
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    set_size(raw, raw.rindex(b"0.txt"), bytes(12))  # the pax record's 600 counts
    last = raw.index(b"1.txt")
    set_size(raw, last, b"\x80" + bytes(10) + b"\x07")  # 7 in base 256
    raw[last + 512 : last + 519] = b"content"
    (tmp_path / "a.tar").write_bytes(raw + bytes(1024))
    assert contents(tmp_path / "a.tar", tmp_path) == [("0", {"txt": b"s" * 600}), ("1", {"txt": b"content"})]


def test_a_checksum_of_large_bytes(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    raw = bytearray(path.read_bytes())
    for start, stop in ((157, 257), (265, 329), (345, 500)):  # link, owner and group, folder
        raw[start:stop] = b"\xff" * (stop - start)
    set_size(raw, 0, b"00000000001\0")
    path.write_bytes(raw)
    assert len(scan(path).keys) == 1


def test_folders_and_links_are_no_members(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("d.x", tarfile.DIRTYPE), ("l.x", tarfile.SYMTYPE), ("f.x", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "f.x"
            tar.addfile(info)
    assert scan(tmp_path / "a.tar").keys == [b"f"]


@pytest.mark.parametrize(
    ("length", "samples", "damage"),
    [
        (100, None, None),
        (1024, 1, "ends without a tar's end mark"),  # txt of the second sample and the mark are missing
        (1024 + 512 + 300, 2, "ends inside a member, 400 bytes short"),
        (1024 + 100, 1, "ends inside header at byte 1024 of 1124"),
        (0, 0, "has no bytes"),
    ],
)
def test_cut_tars(tmp_path, length, samples, damage):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x" * 500), ("1.jpg", b"y" * 700), ("1.txt", b"z")])
    path.write_bytes(path.read_bytes()[:length])
    if samples is None:
        with pytest.raises(NotTarError):
            scan(path)
    else:
        found = scan(path)
        assert (len(found.keys), found.damage) == (samples, damage)


def test_garbage_in_the_middle_is_damage_and_at_the_start_no_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x" * 500), ("1.jpg", b"y")])
    raw = bytearray(path.read_bytes())
    raw[1024 + 10] ^= 1
    path.write_bytes(raw)
    assert scan(path).damage == f"has a broken header at byte 1024 of {len(raw)}"
    assert scan(path).keys == [b"0"]
    path.write_bytes(b"GIF89a" * 400)
    with pytest.raises(NotTarError):
        scan(path)


def test_broken_sidecars_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"y")])
    state = file_state(str(path))
    sidecar = stored(tmp_path / "sidecar", sidecar_parts(scan(path), state))
    assert (sidecar.num_samples, sidecar.shard, sidecar.filter_id) == (2, state, 0)
    whole = (tmp_path / "sidecar").read_bytes()
    for broken in (b"", whole[:-1], whole[:20], b"X" + whole[1:], whole.replace(b"CLIPXIX2", b"CLIPXIX1")):
        (tmp_path / "sidecar").write_bytes(broken)
        with pytest.raises(ValueError, match=r"no bytes|not a sidecar of this version|wrong length"):
            Sidecar(tmp_path / "sidecar")


def test_a_filtered_sidecar_counts_what_passes(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * i) for i in range(5)])
    verdict = Verdict(7, np.array([1, 0, 2, 0, 0], np.uint8), np.arange(5, dtype=np.uint64))
    sidecar = stored(tmp_path / "sidecar", sidecar_parts(scan(path), file_state(str(path)), verdict))
    assert (sidecar.num_samples, sidecar.filter_id) == (3, 7)
    assert [(sidecar.key(i), sidecar.members(i)[0].size) for i in range(3)] == [("1", 1), ("3", 3), ("4", 4)]
    assert sidecar.hashes.tolist() == [0, 1, 2, 3, 4]
    other = stored(tmp_path / "other", sidecar.with_reasons(np.array([0, 3, 0, 0, 0])))
    assert (other.reasons.tolist(), other.key(0), other.num_samples) == ([0, 3, 0, 0, 0], "0", 4)
    assert other.hashes.tolist() == sidecar.hashes.tolist()


def test_sidecar_of_an_empty_tar(tmp_path):
    assert contents(write_tar(tmp_path / "a.tar", []), tmp_path) == []
