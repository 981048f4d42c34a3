"""Draws pictures of a training batch with their captions, read through the stream that training reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from clipx.config.data import device_part, sources
from clipx.config.fit import FitConfig
from clipx.config.phases import phase_at
from clipx.config.schema import JobConfig
from clipx.data.build import ALL_CAPTIONED, build_order, open_reader
from clipx.data.columns import Images, Wanted
from clipx.data.device_augment import DeviceAugment
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.teachers import teachers_of
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.errors import InputError
from clipx.prepare.own_files import PNG_MARK, require_own_png
from clipx.pretrained.kept_texts import with_kept_texts
from clipx.printable import printable

_CELL = 208  # pixels from one picture to the next
_GAP = 12
_LINE = 15
_NAME_LINES, _CAPTION_LINES = 1, 4  # of a picture, for each of its captions
_COLUMNS = 8
_NAME_TAIL = 10  # letters: keys often differ in their last alone
_TITLE = 40
_INK, _GREY, _PAPER = (20, 20, 20), (120, 120, 120), (255, 255, 255)


@dataclass(frozen=True)
class _Shown:
    image: Image.Image
    name: str
    captions: Sequence[str]


def draw_batch(config: JobConfig, path: Path, *, batch: int, count: int) -> str:
    """Writes the first `count` pictures of global batch `batch` (from 0), or all it has, as a PNG.

    The pictures are those of training: same order, crops, captions and replacements, augmentations of the device
    included. Sources take turns within a batch, so its first pictures show their proportions.

    Returns:
        The sheet's title: the batch and how many pictures each source has in it.

    Raises:
        InputError: the data is not there, the PNG cannot be written, or another file has its name.
        RunError: no readable sample, or failing storage.
    """
    require_own_png(path)
    phase = phase_at(config, batch)
    described = sources(config.data)
    indexes = [build_index(source.shards, index_dir=source.index) for source in described]
    plan = build_order(config, indexes)
    model = with_kept_texts(config.model, [Path(config.run_dir)])
    texts = _RecordedTexts(build_tokenizer(model.text, context_length=phase.context_length))
    reader = open_reader(
        indexes,
        plan,
        data=config.data,
        image_size=phase.image_size,
        tokenizer=texts,
        image=model.image,
        wanted=_wanted(config),
        teachers=teachers_of(config),
    )
    count = min(count, plan.global_batch_size)
    images_IHWC = torch.empty((count, phase.image_size, phase.image_size, 3), dtype=torch.uint8)
    part = reader.read(batch, range(count), out=images_IHWC, prefetch=False)
    augment = described[0].augment
    if augment is not None and any(device_part(augment)):
        images_IHWC = DeviceAugment(augment)(images_IHWC, torch.from_numpy(part.columns["augment_seed_I"]))
    of_batch = np.subtract(plan.samples_of_source(batch + 1), plan.samples_of_source(batch)).tolist()
    counts = ", ".join(f"{source.name} {count_in:,}" for source, count_in in zip(described, of_batch, strict=True))
    title = f"batch {batch}: {plan.global_batch_size:,} pictures ({counts}); {count} shown, {phase.image_size} px"
    captions = config.data.captions_per_image
    source_I, sample_id_I = (part.columns[name].tolist() for name in ("source_I", "sample_id_I"))
    shown = [
        _Shown(
            Image.fromarray(images_IHWC[i].numpy()),
            printable(f"{described[source].name}  {_key(indexes, source, sample_id)}"),
            texts.seen[i * captions : (i + 1) * captions],
        )
        for i, (source, sample_id) in enumerate(zip(source_I, sample_id_I, strict=True))
    ]
    _save(_draw(shown, printable(title)), path)
    return title


def _wanted(config: JobConfig) -> Wanted:
    """What a run has read of every sample, as far as it is shown."""
    if not isinstance(config, FitConfig):
        return ALL_CAPTIONED
    images: Images = "optional" if "image" in config.modalities else "unread"
    columns = (FitColumns(config, training=True),)
    return Wanted(columns=columns, texts=JoinedText(config.text_columns), images=images)


def _save(sheet: Image.Image, path: Path) -> None:
    """Writes the sheet with the marks by which `require_own_png` knows it."""
    marks = PngInfo()
    for name, value in PNG_MARK.items():
        marks.add_text(name, value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG", pnginfo=marks)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}; choose another") from error


class _RecordedTexts:
    """A tokenizer that keeps the texts it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.context_length = tokenizer.vocab_size, tokenizer.context_length
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.seen += texts
        return self._tokenizer.encode(texts)

    def save(self, folder: Path) -> None:
        self._tokenizer.save(folder)


def _key(indexes: Sequence[ShardIndex], source: int, sample_id: int) -> str:
    """The key of the sample that has this id in a run with these sources."""
    shard, place = indexes[source].locate(sample_id - sum(index.num_samples for index in indexes[:source]))
    return indexes[source].offsets(shard).key(place)


def _draw(shown: Sequence[_Shown], title: str) -> Image.Image:
    """A grid of pictures, name and captions below each."""
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    side = _CELL - _GAP
    height = _CELL + _LINE * (_NAME_LINES + _CAPTION_LINES * max(len(cell.captions) for cell in shown)) + _GAP
    font = ImageFont.load_default(12)
    title_font = ImageFont.load_default(18)
    width = max(columns * _CELL + _GAP, int(title_font.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (width, _TITLE + rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, _INK, title_font)
    for i, cell in enumerate(shown):
        left, top = _GAP + i % columns * _CELL, _TITLE + i // columns * height
        smooth = Image.Resampling.LANCZOS if cell.image.width > side else Image.Resampling.NEAREST
        sheet.paste(cell.image.resize((side, side), smooth), (left, top))
        lines = [(_shortened(cell.name, font, side, tail=_NAME_TAIL), _GREY)]
        for caption in cell.captions:
            lines += [(line, _INK) for line in _wrapped(caption, font, side, max_lines=_CAPTION_LINES)]
        for line, (text, colour) in enumerate(lines):
            draw.text((left, top + side + 4 + line * _LINE), text, colour, font)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, *, max_lines: int) -> list[str]:
    """The text in lines of `width` pixels; what does not fit into the last ends in dots."""
    lines = [""]
    for word in map(printable, text.split()):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [_shortened(line, font, width) for line in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, *, tail: int = 0) -> str:
    """The text, or as much of it as fits beside dots; its last `tail` letters stay."""
    if font.getlength(text) <= width:
        return text
    start, end = text[: len(text) - tail], text[len(text) - tail :]
    while start and font.getlength(f"{start}...{end}") > width:
        start = start[:-1]
    return f"{start}...{end}"
