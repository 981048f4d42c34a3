"""Pictures and texts that a person gives are read, and what cannot be read is said in one line."""

from pathlib import Path

import pytest
from shard_files import write_tar
from tiny_clip import encoded, picture

from clipx.errors import InputError
from clipx.export.parity import given
from clipx.export.parity.given import given_samples
from clipx.export.parity.samples import TEXTS


def test_a_folder_gives_pictures_and_the_texts_are_clipxs(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, size in (("b.png", (30, 20)), ("a.PNG", (20, 40)), ("inner/c.png", (10, 10))):
        (tmp_path / name).write_bytes(encoded(picture(0, size)))
    (tmp_path / "notes.txt").write_text("no picture")
    samples = given_samples(str(tmp_path))
    assert samples.sizes == [(20, 40), (30, 20), (10, 10)]
    assert [image.size for image in samples.pictures] == samples.sizes
    assert samples.texts == list(TEXTS)


def test_shards_give_a_caption_of_each_picture_as_it_is_written(tmp_path: Path) -> None:
    members = [
        ("s0.png", encoded(picture(0))),
        ("s0.txt", "the photographer\u2019s &amp; own\nsecond".encode()),
        ("s1.png", encoded(picture(1))),
        ("s1.cls", b"3"),
    ]
    write_tar(tmp_path / "0.tar", members)
    for place in (tmp_path, tmp_path / "0.tar"):
        samples = given_samples(str(place))
        assert len(samples.pictures) == 2
        assert samples.texts == ["the photographer\u2019s &amp; own"]
        assert samples.origin.startswith(f"{Path(place).name}, ")


def test_no_more_are_read_than_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "MOST", 2)
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    (tmp_path / "2.png").write_bytes(b"never read")
    assert len(given_samples(str(tmp_path)).pictures) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"x"}, "holds no pictures"),
        ({"a.png": b"broken"}, r"a\.png: picture of 6 bytes: .*; leave it out"),
        ({"a.tar": b"broken"}, r"--pictures: shard .*a\.tar"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        given_samples(str(tmp_path))
    assert str(raised.value).startswith("--pictures: ")
    assert "\n" not in str(raised.value)


def test_a_place_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--pictures: .*absent"):
        given_samples(str(tmp_path / "absent"))
