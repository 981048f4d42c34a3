"""Figures of training data: caption lengths in tokens, picture sizes, bytes, duplicates; per source.

Of a large source as many samples as asked for are read, evenly spread over its shards.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np

from clipx.config.data import Source
from clipx.config.model import ModelConfig, TransformerTextConfig
from clipx.data.captions import CaptionReader, first_present
from clipx.data.decode import UndecodableError
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.errors import RunError
from clipx.prepare.pictures import picture_header
from clipx.prepare.pool import in_processes
from clipx.prepare.rows import LeftOutError
from clipx.prepare.shard_rows import ShardRows

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_ROWS_PER_JOB = 500
_UNCUT = 1 << 20  # tokens, more than any caption has


@dataclass(frozen=True)
class Measured:
    """What was read of a source; one entry per good sample."""

    tokens: np.ndarray
    """int64: of one caption, start and end tokens included, uncut."""
    width: np.ndarray
    """int64, pixels."""
    height: np.ndarray
    """int64, pixels."""
    num_bytes: np.ndarray
    """int64, of all members."""
    image_hash: np.ndarray
    """int64, of the picture's bytes."""
    caption_hash: np.ndarray
    """int64, of the caption."""
    formats: Counter[str]
    """Pictures by the extension that fits their format."""
    num_bad: int
    """Samples without readable caption or picture header."""

    @staticmethod
    def join(parts: Sequence["Measured"]) -> "Measured":
        """All of `parts`."""
        arrays = ("tokens", "width", "height", "num_bytes", "image_hash", "caption_hash")
        formats: Counter[str] = Counter()
        for part in parts:
            formats.update(part.formats)
        return Measured(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
            formats=formats,
            num_bad=sum(part.num_bad for part in parts),
        )

    @property
    def short_side(self) -> np.ndarray:
        """int64, pixels."""
        return np.minimum(self.width, self.height)

    @property
    def aspect(self) -> np.ndarray:
        """float64, width over height."""
        return self.width / self.height

    @property
    def pair_hash(self) -> np.ndarray:
        """int64, of picture and caption."""
        return self.image_hash * 31 + self.caption_hash


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A source in numbers, as stats.json holds them; percentiles and means by name."""

    num_samples: int
    num_read: int
    num_bad: int
    tokens: dict[str, float]
    cut_captions: float
    """Share of captions with more tokens than the context length."""
    width: dict[str, float]
    height: dict[str, float]
    short_side: dict[str, float]
    aspect: dict[str, float]
    num_bytes: dict[str, float]
    duplicate_images: float
    """Share of the samples read whose picture has the bytes of an earlier one."""
    duplicate_captions: float
    duplicate_pairs: float
    formats: dict[str, int]


@dataclass(frozen=True)
class Description:
    """What was found, by source; of several, `figures` holds all of them together too."""

    figures: dict[str, Figures]
    measured: dict[str, Measured]
    context_length: int
    """Tokens at which captions are cut."""


def describe(
    sources: Sequence[Source],
    model: ModelConfig | None,
    *,
    sample: int | None,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Description:
    """Reads samples of every source, as in the first epoch of training.

    Args:
        sources: shards that are not indexed are indexed first.
        model: whose tokenizer and context length count; None: CLIP's.
        sample: most samples of each source; None: all.
        workers: processes.
        on_progress: called with (samples read, samples to read).

    Raises:
        InputError: no shards, or a tokenizer that cannot be loaded.
        RunError: a source without a readable sample, or failing storage.
    """
    text = TransformerTextConfig() if model is None else model.text
    tokenizer = build_tokenizer(replace(text, context_length=_UNCUT))
    indexes = [build_index(source.shards, index_dir=source.index) for source in sources]
    found = _measure(sources, indexes, tokenizer, sample=sample, workers=workers, on_progress=on_progress)
    measured = {source.name: each for source, each in zip(sources, found, strict=True)}
    for name, each in measured.items():
        if not len(each.tokens):
            raise RunError(
                f"source {name}: none of {each.num_bad:,} samples has a picture and a caption under its image_key and "
                "caption_key; set them to what the shards hold"
            )
    counts = [index.num_samples for index in indexes]
    of_each = zip(measured.items(), counts, strict=True)
    shown = {
        name: figures(each, num_samples=count, context_length=text.context_length) for (name, each), count in of_each
    }
    if len(found) > 1:
        together = Measured.join(found)
        shown["all"] = figures(together, num_samples=sum(counts), context_length=text.context_length)
    return Description(shown, measured, text.context_length)


def _measure(
    sources: Sequence[Source],
    indexes: Sequence[ShardIndex],
    tokenizer: Tokenizer,
    *,
    sample: int | None,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Measured]:
    """What is read of each source, evenly spread over it."""
    jobs = []
    for number, index in enumerate(indexes):
        count = index.num_samples if sample is None else min(sample, index.num_samples)
        rows = np.arange(count) * index.num_samples // count
        jobs += [(number, rows[first : first + _ROWS_PER_JOB]) for first in range(0, count, _ROWS_PER_JOB)]
    parts: list[list[Measured]] = [[] for _ in sources]
    total, done = sum(len(rows) for _, rows in jobs), 0
    work = _Measure(tuple(sources), tuple(map(ShardRows, indexes)), tokenizer)
    for (number, rows), part in zip(jobs, in_processes(work, jobs, workers=workers), strict=True):
        parts[number].append(part)
        done += len(rows)
        if on_progress is not None:
            on_progress(done, total)
    return [Measured.join(of_source) for of_source in parts]


@dataclass(frozen=True)
class _Measure:
    """What each process does."""

    sources: tuple[Source, ...]
    rows: tuple[ShardRows, ...]
    tokenizer: Tokenizer

    @cached_property
    def _captions(self) -> list[CaptionReader]:
        return [CaptionReader(source, captions_per_image=1, seed=0) for source in self.sources]

    def __call__(self, job: tuple[int, np.ndarray]) -> Measured:
        number, rows = job
        captions, figures, formats, num_bad = [], [], Counter[str](), 0
        for row in rows.tolist():
            try:
                caption, extension, of_sample = self._read(number, row)
            except (UndecodableError, LeftOutError):
                num_bad += 1
                continue
            captions.append(caption)
            formats[extension] += 1
            figures.append(of_sample)
        tokens = self.tokenizer.encode(captions)[1].numpy() if captions else np.empty(0, np.int64)
        width, height, num_bytes, image_hash, caption_hash = np.array(figures, np.int64).reshape(-1, 5).T
        return Measured(tokens, width, height, num_bytes, image_hash, caption_hash, formats, num_bad)

    def _read(self, number: int, row: int) -> tuple[str, str, tuple[int, ...]]:
        """Caption, the picture's extension, and the figures in the order of `Measured`."""
        fields = self.rows[number].read(row).fields
        caption = self._captions[number].read(fields, epoch=0, sample_id=row).texts[0]
        image_key = self.sources[number].image_key
        data = first_present(fields, image_key)
        if data is None:
            raise UndecodableError(f"no picture under {image_key!r}")
        extension, size = picture_header(data)
        return caption, extension, (*size, sum(map(len, fields.values())), _hash(data), _hash(caption.encode()))


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def figures(measured: Measured, *, num_samples: int, context_length: int) -> Figures:
    """What was read, in numbers.

    Args:
        measured: of at least one good sample.
        num_samples: of the source, read or not.
        context_length: tokens at which captions are cut.
    """
    return Figures(
        num_samples=num_samples,
        num_read=len(measured.tokens) + measured.num_bad,
        num_bad=measured.num_bad,
        tokens=_spread(measured.tokens),
        cut_captions=float((measured.tokens > context_length).mean()),
        width=_spread(measured.width),
        height=_spread(measured.height),
        short_side=_spread(measured.short_side),
        aspect=_spread(measured.aspect),
        num_bytes=_spread(measured.num_bytes),
        duplicate_images=_duplicates(measured.image_hash),
        duplicate_captions=_duplicates(measured.caption_hash),
        duplicate_pairs=_duplicates(measured.pair_hash),
        formats=dict(measured.formats.most_common()),
    )


def _spread(values: np.ndarray) -> dict[str, float]:
    points = {"min": values.min(), "mean": values.mean(), "max": values.max()}
    points |= {f"p{percent}": np.percentile(values, percent) for percent in PERCENTILES}
    return {name: round(float(value), 4) for name, value in points.items()}


def _duplicates(hashes: np.ndarray) -> float:
    return 1 - len(np.unique(hashes)) / len(hashes)
