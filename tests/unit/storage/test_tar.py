"""The scan of a tar gives every sample up to its damage, as `tarfile` would read them."""

import io
import tarfile

import pytest
from shard_files import write_tar

from clipx.storage.files import open_ranges
from clipx.storage.tar import MAX_SAMPLE_BYTES, CutMemberError, LargeSampleError, TarScan, read_members, scan_tar
from clipx.storage.tar_headers import NotTarError

LONG = "d" * 90 + "/" + "long-" * 40 + "name.jpg"


def scan(path):
    return scan_tar(open_ranges(str(path)))


def contents(path):
    """[(key, {extension: bytes})] of a shard's samples."""
    found, file = scan(path), open_ranges(str(path))
    return [(found.key(i), read_members(file, found.members(i))) for i in range(len(found.keys))]


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
    assert contents(path) == [
        ("a/0", {"jpg": b"x" * 700, "seg.png": b"y" * 512, "txt": b""}),
        ("b/0", {"jpg": b"another folder"}),
        ("b/1", {"jpg": b"an extension again"}),
        ("b/1", {"jpg": b"starts a sample", "txt": b"of its own"}),
    ]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, tar_format):
    path = write_tar(tmp_path / "a.tar", [(LONG, b"1"), ("ключ.jpg", b"2"), ("plain.jpg", b"3")], format=tar_format)
    assert contents(path) == [
        (LONG.removesuffix(".jpg"), {"jpg": b"1"}),
        ("ключ", {"jpg": b"2"}),
        ("plain", {"jpg": b"3"}),
    ]


def test_ustar_prefix(tmp_path):
    name = "p" * 100 + "/" + "n" * 60 + ".txt"
    assert contents(write_tar(tmp_path / "a.tar", [(name, b"1")]))[0][0] == name.removesuffix(".txt")


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
    assert contents(tmp_path / "a.tar") == [("0", {"txt": b"s" * 600}), ("1", {"txt": b"content"})]


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


def test_a_sample_that_the_file_cuts_says_what_is_missing(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x" * 500), ("1.jpg", b"y" * 700), ("1.txt", b"z")])
    path.write_bytes(path.read_bytes()[: 1024 + 512 + 300])
    found, file = scan(path), open_ranges(str(path))
    assert read_members(file, found.members(0)) == {"jpg": b"x" * 500}
    with pytest.raises(CutMemberError, match="400 bytes of its jpg are missing"):
        read_members(file, found.members(1))


def test_an_empty_tar_has_no_samples(tmp_path):
    assert contents(write_tar(tmp_path / "a.tar", [])) == []


def fault_texts(path):
    return {fault.kind: fault.text for fault in scan(path).faults()}


def test_members_apart_are_pieces_that_can_be_put_together(tmp_path):
    names = [f"{i:02d}.{extension}" for extension in ("jpg", "txt") for i in range(30)]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    found, file = scan(path), open_ranges(str(path))
    assert len(found.keys) == 60
    whole = found.grouped()
    assert [(whole.key(i), read_members(file, whole.members(i))) for i in range(len(whole.keys))] == [
        (f"{i:02d}", {e: f"{i:02d}.{e}".encode() for e in ("jpg", "txt")}) for i in range(30)
    ]
    text = fault_texts(path)["split samples"]
    assert text.startswith("holds 60 pieces of samples: ")
    assert "(of '00' first); make the tar with `tar --sort=name`" in text


def test_samples_of_one_key_that_follow_each_other_stay_apart_when_pieces_are_put_together(tmp_path):
    """As where the sets of two tars that were joined meet: one would have the other's picture with its own caption."""
    names = ["b.jpg", "a.jpg", "a.txt", "a.jpg", "a.json", "b.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, b"%d" % number) for number, name in enumerate(names)])
    whole, file = scan(path).grouped(), open_ranges(str(path))
    assert [(whole.key(i), read_members(file, whole.members(i))) for i in range(len(whole.keys))] == [
        ("b", {"jpg": b"0", "txt": b"5"}),
        ("a", {"jpg": b"1", "txt": b"2"}),
        ("a", {"jpg": b"3", "json": b"4"}),
    ]


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        (["a.jpg", "a.txt", "b.jpg", "b.txt"], []),
        (["a.jpg", "a.txt", "b.jpg", "a.jpg", "a.txt"], []),  # two sets with one key: samples of their own
        (["a.jpg", "b.jpg", "a.txt"], [0, 2]),
        (["a.jpg", "a.jpg", "a.txt"], []),  # twice in a row
        (["a.jpg", "b.jpg", "a.txt", "b.txt", "a.json"], [0, 1, 2, 3, 4]),
        (["a.jpg", "a.json", "b.jpg", "a.json", "a.txt"], []),  # neither completes the other
        (["a.jpg", "a.jpg", "b.x", "a.txt"], [1, 3]),
    ],
)
def test_pieces_are_what_lacks_what_another_has(tmp_path, names, pieces):
    found = scan(write_tar(tmp_path / "a.tar", [(name, b"") for name in names]))
    assert sorted(found.pieces) == pieces


def test_many_members_under_one_key_are_said_in_few_words(tmp_path):
    """And found in linear time: 20,000 pairs took 149 s."""
    names = [f"frame.{i:06d}.{extension}" for i in range(20_000) for extension in ("jpg", "txt")]
    found = TarScan()
    for name in names:
        found.add(name.encode(), 0, 0)
    assert [(found.key(0), len(found.members(0)))] == [("frame", 40_000)]
    (fault,) = found.faults()
    assert (fault.kind, len(fault.text) < 500) == ("many members", True)
    assert "has a sample 'frame' of 40000 members (000000.jpg, 000000.txt, " in fault.text
    assert "000004.txt and 39990 more): a sample's key ends at the first dot" in fault.text
    few = write_tar(tmp_path / "a.tar", [(f"{i}.{n}.jpg", b"") for i in range(9) for n in range(20)])
    assert fault_texts(few) == {}
    many = write_tar(tmp_path / "b.tar", [(f"frame.{n}.jpg", b"") for n in range(21)])
    assert "of 21 members" in fault_texts(many)["many members"]


def test_links_are_counted_by_their_kind(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
        for i in range(25):
            info = tarfile.TarInfo(f"{i + 1}.jpg")
            info.type, info.linkname = tarfile.LNKTYPE, "0.jpg"
            tar.addfile(info)
        info.name, info.type = "s.jpg", tarfile.SYMTYPE
        tar.addfile(info)
        info.name = "latest"  # never a member of a sample
        tar.addfile(info)
    found = scan(tmp_path / "a.tar")
    assert found.keys == [b"0"]
    hard, symbolic = [fault.text for fault in found.faults()]
    assert hard.startswith("holds 25 hard links, which are no files (1.jpg, ")
    assert hard.endswith("10.jpg and 15 more); make the tar with `tar --hard-dereference`")
    assert symbolic == ("holds 1 symbolic link, which is no file (s.jpg); make the tar with `tar --dereference`")


def test_what_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.tar"
    raw = bytearray(write_tar(tmp_path / "b.tar", [("0.jpg", b"")]).read_bytes()[:512])
    with open(path, "wb") as file:
        set_size(raw, 0, b"%011o\0" % (MAX_SAMPLE_BYTES + 1))
        file.write(raw)
        file.truncate(MAX_SAMPLE_BYTES + 4096)  # a file of zeros that takes no room
    found = scan(path)
    with pytest.raises(LargeSampleError, match=f"its members have {MAX_SAMPLE_BYTES + 1} bytes; a sample has at most"):
        read_members(open_ranges(str(path)), found.members(0))


def test_a_cut_member_of_any_size_takes_no_memory(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x" * 500)])
    raw = bytearray(path.read_bytes())
    set_size(raw, 0, b"\x80" + bytes(3) + b"\x3f" + bytes(7))
    path.write_bytes(raw)
    found = scan(path)
    with pytest.raises(CutMemberError, match="of its jpg are missing"):
        read_members(open_ranges(str(path)), found.members(0))
    assert len(open_ranges(str(path)).read_at(512, 1 << 60)) == len(raw) - 512
