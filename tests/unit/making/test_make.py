"""Shards are equal for equal input, hold what the rows hold, and are gone on with after an interruption."""

import io
import json
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from shard_files import png, write_shards, write_tar

from clipx.data.decode import UndecodableError
from clipx.data.index.shard_index import load_index
from clipx.data.rows.opening import SourceOptions, open_rows
from clipx.data.rows.row import Row, Rows
from clipx.errors import InputError, RunError
from clipx.making import images
from clipx.making.images import ImageOptions
from clipx.making.make import Made, make_shards
from clipx.making.make_shard import MakeOptions


def rows_of(*sources: Path) -> Rows:
    return open_rows([str(source) for source in sources], SourceOptions())


def write_pairs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(png(number))
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


def make(
    source: Path | Rows, out: Path, *, workers: int = 1, max_bad: float = 0.01, on_progress=None, **options
) -> Made:
    rows = rows_of(source) if isinstance(source, Path) else source
    return make_shards(
        rows, str(out), MakeOptions(**options), workers=workers, max_bad=max_bad, on_progress=on_progress
    )


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def members(folder: Path) -> list[tuple[str, bytes]]:
    """Of all shards in their order."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


def captions(folder: Path) -> list[str]:
    return [data.decode() for name, data in members(folder) if name.endswith(".txt")]


class TestShards:
    def test_pictures_as_they_are_with_captions_and_fields(self, tmp_path: Path) -> None:
        lines = [{"image": f"{n}.png", "caption": [f"é {n}", "again"][: n + 1], "score": n / 4} for n in range(2)]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(png(number))
        made = make(tmp_path / "t.jsonl", tmp_path / "out")
        assert made == Made(num_shards=1, num_samples=2, left_out={}, extensions={"png": 2}, num_rows=2, num_several=1)
        found = [
            (name, json.loads(data) if name.endswith("json") else data) for name, data in members(tmp_path / "out")
        ]
        assert found == [
            ("000000000.json", {"image": "0.png", "score": 0.0}),
            ("000000000.png", png(0)),
            ("000000000.txt", "é 0".encode()),
            ("000000001.json", {"image": "1.png", "score": 0.25, "captions": ["é 1", "again"]}),
            ("000000001.png", png(1)),
            ("000000001.txt", "é 1".encode()),
        ]

    def test_the_index_is_there(self, tmp_path: Path) -> None:
        make(write_pairs(tmp_path / "in", 7), tmp_path / "out", shard_size=3)
        assert load_index([str(tmp_path / "out")]).counts.tolist() == [3, 3, 1]

    @pytest.mark.parametrize(("num_shards", "counts"), [(3, [2, 2, 3]), (20, [1] * 7)])
    def test_number_of_shards(self, tmp_path: Path, num_shards: int, counts: list[int]) -> None:
        make(write_pairs(tmp_path / "in", 7), tmp_path / "out", num_shards=num_shards)
        assert load_index([str(tmp_path / "out")]).counts.tolist() == counts

    @pytest.mark.parametrize("shuffle", [None, 5])
    def test_equal_bytes_for_any_number_of_workers(self, tmp_path: Path, shuffle: int | None) -> None:
        folder = write_pairs(tmp_path / "in", 12)
        lines = [f"{number % 12:03}.png,caption {number}" for number in range(24)]
        (folder / "t.csv").write_text("image,caption\n" + "\n".join(lines))
        rows = rows_of(folder if shuffle is None else folder / "t.csv")  # of the table two rows are one sample
        for workers in (1, 2):
            make(rows, tmp_path / f"out{workers}", workers=workers, shard_size=5, shuffle=shuffle)
        assert shards(tmp_path / "out1") == shards(tmp_path / "out2")
        assert len(shards(tmp_path / "out1")) == 3

    def test_grouped_rows_are_shuffled_as_samples(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 8)
        table = [{"image": f"{number // 2:03}.png", "caption": f"caption {number}"} for number in range(16)]
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
        made = make(folder / "t.jsonl", tmp_path / "out", shard_size=3, shuffle=1)
        assert (made.num_samples, made.num_joined, made.num_several, made.num_rows) == (8, 8, 8, 16)
        assert load_index([str(tmp_path / "out")]).counts.tolist() == [3, 3, 2]
        found = dict(members(tmp_path / "out"))
        records = {name: json.loads(data) for name, data in found.items() if name.endswith("json")}
        assert list(records) != sorted(records)
        for name, record in records.items():
            first = int(name.partition(".")[0])  # keys are the numbers of the first rows
            assert record["captions"] == [f"caption {first}", f"caption {first + 1}"]
            assert found[f"{first:09}.png"] == png(first // 2)

    def test_order_is_the_source_s_or_of_the_seed(self, tmp_path: Path) -> None:
        rows = rows_of(write_pairs(tmp_path / "in", 30))
        for name, seed in (("no", None), ("one", 1), ("two", 2)):
            make(rows, tmp_path / name, shard_size=10, shuffle=seed)
        plain, one, two = (captions(tmp_path / name) for name in ("no", "one", "two"))
        assert plain == [f"picture {number}" for number in range(30)]
        assert sorted(one) == sorted(two) == sorted(plain)
        assert len({tuple(plain), tuple(one), tuple(two)}) == 3

    def test_shuffled_blocks_hold_every_row_once(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"image": [png(n) for n in range(50)], "text": [f"picture {n}" for n in range(50)]})
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
        make(tmp_path / "t.parquet", tmp_path / "out", shard_size=20, shuffle=1)
        found = members(tmp_path / "out")
        texts = [data.decode() for name, data in found if name.endswith("txt")]
        assert sorted(texts) == sorted(f"picture {n}" for n in range(50))
        assert [data for name, data in found if name.endswith("png")] == [png(int(text.split()[1])) for text in texts]
        assert rows_of(tmp_path / "t.parquet").block_rows == 3
        first = [int(text.split()[1]) // 3 for text in texts[:20]]
        assert first != sorted(first)
        assert len(set(first)) <= 9  # of 17 groups: those of one round of 8, or the border of two

    def test_rows_of_blocks_are_read_in_their_order(self, tmp_path: Path) -> None:
        class Blocks(Rows):
            block_rows = 4
            seen: ClassVar[list[int]] = []

            def __len__(self) -> int:
                return 16

            def read(self, row: int) -> Row:
                self.seen.append(row)
                return Row(str(row), png(row), [f"picture {row}"])

            def identity(self) -> list[object]:
                return []

        make(Blocks(), tmp_path / "out", shard_size=8, shuffle=1)
        first, second = Blocks.seen[:8], Blocks.seen[8:]
        assert first == sorted(first) != list(range(8))
        assert second == sorted(second)


class TestLeftOut:
    def test_each_is_listed_with_its_reason(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 6)
        (folder / "001.txt").unlink()
        (folder / "004.png").write_bytes(b"no picture")
        made = make(folder, tmp_path / "out", shard_size=2, workers=2)
        assert (made.num_samples, made.left_out) == (4, {"no caption": 1, "unreadable picture": 1})
        rows = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
        assert [(row["row"], row["name"], row["reason"]) for row in rows] == [
            (1, "001.png", "no caption"),
            (4, "004.png", "unreadable picture"),
        ]
        assert "10 bytes" in rows[1]["detail"]
        assert load_index([str(tmp_path / "out")]).counts.tolist() == [1, 2, 1]

    def test_a_shard_without_samples_is_not_written(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 4)
        for number in (0, 1):
            (folder / f"00{number}.txt").unlink()
        assert make(folder, tmp_path / "out", shard_size=2).num_shards == 1
        assert list(shards(tmp_path / "out")) == ["00001.tar"]

    def test_broken_pictures_stay_where_asked_for(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 2)
        (folder / "001.png").write_bytes(png(1)[:-30])
        assert make(folder, tmp_path / "a").num_samples == 1
        assert make(folder, tmp_path / "b", images=ImageOptions(verify=False)).num_samples == 2

    def test_too_many_end_it_and_a_higher_limit_goes_on(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 100)
        for number in (3, 7):
            (folder / f"00{number}.txt").unlink()
        message = (
            r"2 of 100 rows make no sample, more than --max-bad 0.01: no caption 2; the first is 003.png: no caption"
        )
        with pytest.raises(RunError, match=message) as caught:
            make(folder, tmp_path / "out", shard_size=10)
        assert "\n" not in str(caught.value)
        assert list(shards(tmp_path / "out")) == ["00000.tar"]
        assert len((tmp_path / "out" / "left_out.jsonl").read_text().splitlines()) == 2
        with pytest.raises(RunError, match="2 of 100 rows"):
            make(folder, tmp_path / "out", shard_size=10)
        assert make(folder, tmp_path / "out", shard_size=10, max_bad=0.02).num_samples == 98

    def test_a_small_set_may_lack_more_but_not_all(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 3)
        (folder / "000.txt").unlink()
        assert make(folder, tmp_path / "a").num_samples == 2
        for path in folder.glob("*.txt"):
            path.unlink()
        with pytest.raises(RunError, match=r"3 of 3 rows make no sample: no caption 3; the first is 000\.png"):
            make(folder, tmp_path / "b")


class TestGoingOn:
    def test_after_an_interruption_only_what_is_missing_is_made(self, tmp_path: Path) -> None:
        rows = rows_of(write_pairs(tmp_path / "in", 10))
        make(rows, tmp_path / "whole", shard_size=2, shuffle=1)

        def interrupt(done: int, total: int) -> None:
            assert total == 10
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(rows, tmp_path / "out", shard_size=2, shuffle=1, on_progress=interrupt)
        done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
        (tmp_path / "out" / ".making" / ".00003.tar.0123456789abcdef").touch()  # as a killed process leaves it
        assert len(done) == 2
        seen: list[int] = []
        made = make(rows, tmp_path / "out", shard_size=2, shuffle=1, on_progress=lambda done, _: seen.append(done))
        assert (made.num_shards, made.num_samples) == (5, 10)
        assert seen == [6, 8, 10]
        assert {path: path.stat().st_mtime_ns for path in done} == done
        assert shards(tmp_path / "out") == shards(tmp_path / "whole")
        assert not list((tmp_path / "out").glob(".*"))

    def test_what_is_complete_is_left_alone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = write_pairs(tmp_path / "in", 3)
        (folder / "001.txt").unlink()
        first = make(folder, tmp_path / "out")
        before = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
        assert not caplog.messages
        assert make(folder, tmp_path / "out", workers=2) == first
        assert caplog.messages == [
            f"{tmp_path}/out was made before and stays as it is; for changed pictures choose another --out"
        ]
        assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shard_size": 4}, "shard_size was 5, now 4"),
            ({"shuffle": 1}, "shuffle was None, now 1"),
            ({"images": ImageOptions(size=32)}, "size was None, now 32"),
        ],
    )
    @pytest.mark.parametrize("complete", [True, False])
    def test_other_arguments_are_refused(
        self, tmp_path: Path, options: dict[str, object], message: str, complete: bool
    ) -> None:
        rows = rows_of(write_pairs(tmp_path / "in", 6))
        if complete:
            make(rows, tmp_path / "out", shard_size=5)
        else:
            with pytest.raises(ZeroDivisionError):
                make(rows, tmp_path / "out", shard_size=5, on_progress=lambda done, _: 1 // (done - 5))
        with pytest.raises(InputError, match=f"was begun otherwise: {message}; restore that or choose a new folder"):
            make(rows, tmp_path / "out", **{"shard_size": 5, **options})

    @pytest.mark.parametrize("name", ["new.png", "000.png", "000.txt", "000.TXT", "001.txt", "001.JSON"])
    def test_another_source_is_refused(self, tmp_path: Path, name: str) -> None:
        """Pictures and captions that are new or other, whatever their names."""
        folder = write_pairs(tmp_path / "in", 2)
        (folder / "001.txt").unlink()
        make(folder, tmp_path / "out")
        (folder / name).write_bytes(png(9))
        with pytest.raises(InputError, match="the source is another or has changed"):
            make(folder, tmp_path / "out")

    def test_other_files_are_not_mixed_with(self, tmp_path: Path) -> None:
        folder = write_pairs(tmp_path / "in", 2)
        with pytest.raises(InputError, match="holds something else; choose a new folder"):
            make(folder, folder)
        with pytest.raises(InputError, match=r"cannot be used: .*choose another"):
            make(folder, folder / "000.txt" / "x")
        with pytest.raises(InputError, match="made in a local folder"):
            make_shards(rows_of(folder), "s3://bucket/x", MakeOptions(), workers=1)


class TestFromShards:
    def test_members_keep_bytes_and_keys_keep_names(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "in", [3, 4], replaced={2: {"cls": b"7", "webp": b"not looked at"}})
        unseen = ImageOptions(verify=False)
        assert make(tmp_path / "in", tmp_path / "out", shard_size=2, images=unseen).num_shards == 4
        expected = [(name, data) for name, data in members(tmp_path / "in")]
        assert members(tmp_path / "out") == [(name, data) for name, data in sorted(expected)]

    def test_broken_pictures_of_shards_are_left_out_if_they_are_looked_at(self, tmp_path: Path) -> None:
        write_shards(tmp_path / "in", [3], replaced={1: {"png": b"no picture", "txt": b"a"}})
        assert make(tmp_path / "in", tmp_path / "a").left_out == {"unreadable picture": 1}
        assert make(tmp_path / "in", tmp_path / "b", images=ImageOptions(verify=False)).num_samples == 3

    def test_equal_keys_of_two_shards_stay_apart(self, tmp_path: Path) -> None:
        for shard in ("a", "b"):
            write_tar(tmp_path / f"{shard}.tar", [("0.txt", shard.encode()), ("0.png", png(1))])
        assert make(rows_of(tmp_path / "a.tar", tmp_path / "b.tar"), tmp_path / "out").num_samples == 2
        assert captions(tmp_path / "out") == ["a", "b"]
        assert load_index([str(tmp_path / "out")]).num_samples == 2

    def test_pictures_of_shards_are_reduced(self, tmp_path: Path) -> None:
        members_of = [("0.cls", b"1"), ("0.png", png(1, size=80)), ("1.cls", b"2")]
        write_tar(tmp_path / "a.tar", members_of)
        made = make(tmp_path / "a.tar", tmp_path / "out", images=ImageOptions(size=32))
        assert made.left_out == {"no picture": 1}
        (label, picture) = members(tmp_path / "out")
        assert label == ("0.cls", b"1")
        assert picture[0] == "0.jpg"
        assert Image.open(io.BytesIO(picture[1])).size == (32, 32)


class TestPictures:
    @pytest.mark.parametrize(
        ("options", "name", "size"),
        [
            (ImageOptions(), "png", (90, 60)),
            (ImageOptions(size=60), "png", (90, 60)),
            (ImageOptions(size=40), "jpg", (60, 40)),
            (ImageOptions(quality=80), "jpg", (90, 60)),
            (ImageOptions(size=90, quality=80), "jpg", (90, 60)),
        ],
    )
    def test_only_what_is_too_large_or_asked_for_is_encoded_anew(
        self, tmp_path: Path, options: ImageOptions, name: str, size: tuple[int, int]
    ) -> None:
        (tmp_path / "in").mkdir()
        Image.new("RGB", (90, 60), "red").save(tmp_path / "in" / "a.jpeg", "png")
        (tmp_path / "in" / "a.txt").write_text("red")
        assert make(tmp_path / "in", tmp_path / "out", images=options).extensions == {name: 1}
        stored = dict(members(tmp_path / "out"))[f"000000000.{name}"]
        assert Image.open(io.BytesIO(stored)).size == size
        assert (stored == (tmp_path / "in" / "a.jpeg").read_bytes()) == (name == "png")

    def test_what_cannot_be_decoded_is_not_looked_at_further(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "image_header", lambda data: pytest.fail("the decoder bounds what it takes"))
        with pytest.raises(UndecodableError):
            images.stored_image(b"no picture", ImageOptions())

    def test_quality_counts(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        Image.effect_noise((64, 64), 80).save(folder / "a.png")
        (folder / "a.txt").write_text("noise")
        for quality in (30, 95):
            make(folder, tmp_path / str(quality), images=ImageOptions(quality=quality))
        low, high = (len(dict(members(tmp_path / name))["000000000.jpg"]) for name in ("30", "95"))
        assert low < high / 2

    def test_sixteen_bits_keep_their_range_and_what_no_jpeg_can_hold_is_left_out(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
        Image.fromarray(ramp).save(folder / "deep.png")
        Image.new("L", (1, 65_501)).save(folder / "long.png")
        for name in ("deep", "long"):
            (folder / f"{name}.txt").write_text(name)
        made = make(folder, tmp_path / "out", images=ImageOptions(size=32, quality=95))
        assert (made.num_samples, made.left_out) == (1, {"unreadable picture": 1})
        stored = np.array(Image.open(io.BytesIO(dict(members(tmp_path / "out"))["000000000.jpg"])).convert("L"))
        assert np.abs(stored - ramp.reshape(32, 2, 32, 2).mean((1, 3)) / 256).max() < 4
