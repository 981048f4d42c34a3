import csv
import io
from pathlib import Path

import loader
import numpy as np
import pytest
from pictures import jpeg, natural_picture, write_shards
from PIL import Image

from clipx.data.index.shard_index import build_index


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_cost_what_photographs_cost() -> None:
    image = natural_picture(0, width=256, height=256)
    assert natural_picture(0, width=256, height=256) == image
    assert natural_picture(1, width=256, height=256) != image
    assert 2 < 8 * len(jpeg(image)) / 256**2 < 4  # bits per pixel
    assert 20 < np.asarray(image).std() < 80
    power = abs(np.fft.rfft2(np.asarray(image.convert("L")) / 255.0)) ** 2
    assert power[2:8, 2:8].mean() > 100 * power[60:120, 60:120].mean()


def test_shards_hold_pictures_in_turn_with_captions_of_their_own(tmp_path: Path) -> None:
    pictures = [jpeg(natural_picture(seed, width=24, height=16)) for seed in range(2)]
    shards = write_shards(tmp_path, pictures, count=130)
    assert build_index(shards, index_dir=None).counts.tolist() == [64, 64, 2]
    assert Image.open(io.BytesIO(pictures[1])).size == (24, 16)


def test_rows_of_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loader.SIZES, "256", (300, 240))
    monkeypatch.setattr(loader, "BATCH", 8)
    monkeypatch.setattr(loader, "TURN", {"256": 16})
    monkeypatch.setattr(loader, "IMAGE_SIZE", 32)
    arguments = ["--sizes", "256", "--pictures", "4", "--repetitions", "2", "--warmup", "0", "--out", str(tmp_path)]
    loader.main(arguments)
    rows = {(row["part"], row["contender"]): row for row in read(tmp_path / "loader.csv")}
    assert list(rows) == [
        *((part, name) for part in ("loader", "transform") for name in ("fast", "scaled", "pil", "open_clip")),
        ("decode", "fast"),
        ("decode", "pil"),
    ]
    images_bytes = {name: float(rows["loader", name]["bytes_per_image"]) for name in ("fast", "open_clip")}
    assert 3 * 32**2 < images_bytes["fast"] < 3 * 32**2 + 1000
    assert images_bytes["open_clip"] == 4 * 3 * 32**2 + 8 * 77
    assert all(
        float(row["cpu_ms_p50"]) > float(row["main_ms"]) > 0 for (part, _), row in rows.items() if part == "loader"
    )
    assert rows["loader", "open_clip"]["times_open_clip_p50"] == "1"
    assert 0 < float(rows["transform", "fast"]["difference_to_pillow"]) < 0.03
    assert 0.03 < float(rows["transform", "scaled"]["difference_to_pillow"]) < 3


def test_rows_of_the_tokenizers(tmp_path: Path) -> None:
    loader.main(["--tokens", "--captions", "40", "--repetitions", "2", "--out", str(tmp_path)])
    ours, theirs = read(tmp_path / "loader.csv")
    assert (ours["contender"], theirs["contender"]) == ("clipx", "open_clip")
    assert float(ours["captions_per_s_p20"]) <= float(ours["captions_per_s_p50"]) <= float(ours["captions_per_s_p80"])
    assert theirs["times_open_clip_p50"] == "1"
