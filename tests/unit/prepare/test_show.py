"""The sheet shows what the stream gives training: the same pictures, captions and proportions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_files import png, write_shards

from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.data.build import build_order, open_reader
from clipx.data.index.shard_index import build_index
from clipx.data.stream import PairStream
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.prepare import show

SIDE = show._CELL - show._GAP  # of a shown picture: of this image size it is not resized

CONFIG = """
run_dir: unused
steps: 10
global_batch_size: {batch_size}
data:
  captions_per_image: {captions}
  sources:
    three: {{shards: [{folder}/a], weight: 3}}
    one: {{shards: [{folder}/b], weight: 1, augment: {{flip: 1.0}}}}
model: {{image: {{name: vit_base_patch32_clip_224, image_size: {side}}}}}
"""


@pytest.fixture
def make_config(tmp_path: Path):
    """Two sources, 3 to 1; the second with a bad sample, whose place another takes."""
    write_shards(tmp_path / "a", [20, 20], replaced={n: {"png": png(n, size=9), "txt": b"of a"} for n in range(40)})
    write_shards(tmp_path / "b", [20], replaced={n: {"txt": b"no picture"} for n in range(1)})

    def make(*overrides: str, batch_size: int = 16, captions: int = 1) -> RunConfig:
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.format(folder=tmp_path, batch_size=batch_size, captions=captions, side=SIDE))
        return load_config([path], overrides)

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """What is drawn on each sheet."""
    sheets: list[Sequence[Any]] = []
    draw = show._draw
    monkeypatch.setattr(show, "_draw", lambda shown, title: sheets.append(shown) or draw(shown, title))
    return sheets


def of_training(config: RunConfig, batch: int) -> np.ndarray:
    indexes = [build_index(source.shards) for source in config.data.sources.values()]
    order = build_order(config, indexes)
    reader = open_reader(indexes, order, data=config.data, image_size=SIDE, tokenizer=ClipTokenizer(77))
    return PairStream(reader, slots=range(order.global_batch_size), image_size=SIDE).load(batch).images_IHWC.numpy()


def test_pictures_are_those_of_training(make_config, tmp_path: Path) -> None:
    config = make_config()
    title = show.draw_batch(config, tmp_path / "new" / "sheet.png", batch=3, count=10)
    assert title == f"batch 3: 16 pictures (three 12, one 4); 10 shown, {SIDE} px"
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    height = (sheet.shape[0] - show._TITLE - show._GAP) // 2
    for number, picture in enumerate(of_training(config, 3)[:10]):
        left, top = show._GAP + number % 8 * show._CELL, show._TITLE + number // 8 * height
        assert np.array_equal(sheet[top : top + SIDE, left : left + SIDE], picture)
    assert (sheet[-SIDE:, -SIDE:] == 255).all()  # 10 pictures leave places of the second row empty


def test_each_picture_has_its_source_key_and_captions(make_config, drawn, tmp_path: Path) -> None:
    config = make_config("data.augment.crop_scale=[1, 1]", batch_size=32, captions=2)
    show.draw_batch(config, tmp_path / "sheet.png", batch=0, count=100)
    (shown,) = drawn
    assert len(shown) == 16
    assert sum(each.name.startswith("three  ") for each in shown) == 12
    for each in shown:
        source, key = each.name.split()
        assert list(each.captions) == (["of a"] * 2 if source == "three" else [f"picture {int(key)}"] * 2)
        assert np.asarray(each.image)[0, 0].tolist() == [int(key), 0, 0]
        assert each.name != "one  000000"


def test_what_the_device_changes_is_shown(make_config, drawn, tmp_path: Path) -> None:
    config = make_config("data.augment.grayscale=1", "data.sources.one.augment=null")
    show.draw_batch(config, tmp_path / "sheet.png", batch=0, count=4)
    for each in drawn[0]:
        pixels = np.asarray(each.image)
        assert (pixels == pixels[..., :1]).all()


def test_long_words_and_texts_stay_in_their_column(make_config, drawn, tmp_path: Path) -> None:
    font = show.ImageFont.load_default(12)
    lines = show._wrapped("W" * 100 + " and" * 200, font, SIDE, max_lines=4)
    assert len(lines) == 4
    assert all(font.getlength(line) <= SIDE for line in lines)
    assert lines[0].endswith("...")
    assert lines[3].endswith("...")
    assert show._wrapped("a b", font, SIDE, max_lines=4) == ["a b"]
    name = show._shortened("source  " + "0" * 60 + "12345", font, SIDE, tail=5)
    assert name.startswith("source  0")
    assert name.endswith("...12345")


def test_bad_input_is_one_line(make_config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*x\.png: cannot be written"):
        show.draw_batch(make_config(), tmp_path / "file" / "x.png", batch=0, count=1)
    lacking = replace(make_config(), data=replace(make_config().data, sources={}, train=[str(tmp_path / "nope")]))
    with pytest.raises(InputError, match="nope' match no tar file"):
        show.draw_batch(lacking, tmp_path / "x.png", batch=0, count=1)
