"""Statistics of training data: caption lengths in tokens, picture sizes, bytes, duplicates; per source.

Of a large source as many samples as asked for are read, evenly spread over its shards.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from clipx.config.data import Source
from clipx.config.model import ModelConfig, TransformerTextConfig
from clipx.data.decode import UndecodableError
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.parallel import in_processes
from clipx.data.rows.row import LeftOutError
from clipx.data.rows.shard_rows import ShardRows
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.errors import RunError
from clipx.making.images import image_header
from clipx.prepare.samples import StoredSampleReader, UnusableSampleError

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_ROWS_PER_JOB = 500
_UNCUT = 1 << 20  # tokens, more than any caption has
_SAMPLE = np.dtype(
    [
        ("width", "<i8"),  # pixels
        ("height", "<i8"),
        ("num_bytes", "<i8"),  # of all members
        ("image_hash", "<i8"),  # of the encoded image
        ("caption_hash", "<i8"),
        ("tokens", "<i8"),  # of one caption, start and end tokens included, uncut
    ]
)
_SPREADS = ("tokens", "width", "height", "short_side", "aspect", "num_bytes")


@dataclass(frozen=True)
class Measured:
    """What was read of a source."""

    samples: np.ndarray
    """`_SAMPLE` (N,), one entry per good sample."""
    formats: Counter[str]
    """Images by the extension that fits their format."""
    num_bad: int
    """Samples without readable caption or image header."""

    @staticmethod
    def join(parts: Sequence["Measured"]) -> "Measured":
        """All of `parts`."""
        samples = np.concatenate([part.samples for part in parts])
        formats = sum((part.formats for part in parts), Counter[str]())
        return Measured(samples, formats, sum(part.num_bad for part in parts))

    def values(self, name: str) -> np.ndarray:
        """A column of `samples`, or what follows from it: `short_side` in pixels, `aspect` as width over height."""
        if name == "short_side":
            return np.minimum(self.samples["width"], self.samples["height"])
        if name == "aspect":
            return self.samples["width"] / self.samples["height"]
        return self.samples[name]


@dataclass(frozen=True, kw_only=True)
class SetStatistics:
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
    """The figures and what was read, by source; of several sources, `figures` holds all of them together too."""

    figures: dict[str, SetStatistics]
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
    """Reads samples of every source, at most `sample` of each, as in the first epoch of training.

    Tokenizer and context length are the model's, or CLIP's. `on_progress` gets (samples read, samples to read).

    Raises:
        InputError: no shards, or a tokenizer that cannot be loaded.
        RunError: a source without a readable sample, or failing storage.
    """
    text = TransformerTextConfig() if model is None else model.text
    indexes = [build_index(source.shards, index_dir=source.index) for source in sources]
    measure = _Measure(
        tuple(sources), tuple(map(ShardRows, indexes)), build_tokenizer(text, context_length=_UNCUT, pad=False)
    )
    parts = _measure(measure, indexes, sample=sample, workers=workers, on_progress=on_progress)
    measured = {source.name: part for source, part in zip(sources, parts, strict=True)}
    for name, part in measured.items():
        if not len(part.samples):
            raise RunError(
                f"source {name}: none of {part.num_bad:,} samples has a picture and a caption under its image_key and "
                "caption_key; set them to what the shards hold"
            )
    counts = [index.num_samples for index in indexes]
    shown = {
        name: figures(part, num_samples=count, context_length=text.context_length)
        for (name, part), count in zip(measured.items(), counts, strict=True)
    }
    if len(parts) > 1:
        shown["all"] = figures(Measured.join(parts), num_samples=sum(counts), context_length=text.context_length)
    return Description(shown, measured, text.context_length)


def _measure(
    measure: "_Measure",
    indexes: Sequence[ShardIndex],
    *,
    sample: int | None,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Measured]:
    """What is read of each source, evenly spread over it."""
    jobs = []
    for source, index in enumerate(indexes):
        count = index.num_samples if sample is None else min(sample, index.num_samples)
        rows = np.arange(count) * index.num_samples // count
        jobs += [(source, rows[first : first + _ROWS_PER_JOB]) for first in range(0, count, _ROWS_PER_JOB)]
    parts: list[list[Measured]] = [[] for _ in indexes]
    total, done = sum(len(rows) for _, rows in jobs), 0
    for (source, rows), part in zip(jobs, in_processes(measure, jobs, workers=workers), strict=True):
        parts[source].append(part)
        done += len(rows)
        if on_progress is not None:
            on_progress(done, total)
    return list(map(Measured.join, parts))


@dataclass(frozen=True)
class _Measure:
    """What each process does."""

    sources: tuple[Source, ...]
    rows: tuple[ShardRows, ...]
    tokenizer: Tokenizer

    @cached_property
    def _readers(self) -> list[StoredSampleReader]:
        return [StoredSampleReader(source) for source in self.sources]

    def __call__(self, job: tuple[int, np.ndarray]) -> Measured:
        source, rows = job
        captions, columns, formats, num_bad = [], [], Counter[str](), 0
        for row in rows.tolist():
            try:
                fields = self.rows[source].read(row).fields
                caption, image = self._readers[source].read(fields, sample_id=row)
                extension, size = image_header(image)
            except (UndecodableError, LeftOutError, UnusableSampleError):
                num_bad += 1
                continue
            captions.append(caption)
            formats[extension] += 1
            columns.append((*size, sum(map(len, fields.values())), _hash(image), _hash(caption.encode()), 0))
        samples = np.zeros(len(rows) - num_bad, _SAMPLE)
        if captions:
            samples[:] = columns
            samples["tokens"] = self.tokenizer.encode(captions)[1].numpy()
        return Measured(samples, formats, num_bad)


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def figures(measured: Measured, *, num_samples: int, context_length: int) -> SetStatistics:
    """Puts what was read, at least one good sample, in numbers."""
    samples = measured.samples
    return SetStatistics(
        num_samples=num_samples,
        num_read=len(samples) + measured.num_bad,
        num_bad=measured.num_bad,
        cut_captions=float((samples["tokens"] > context_length).mean()),
        duplicate_images=_duplicates(samples["image_hash"]),
        duplicate_captions=_duplicates(samples["caption_hash"]),
        duplicate_pairs=_duplicates(samples["image_hash"] * 31 + samples["caption_hash"]),
        formats=dict(measured.formats.most_common()),
        **{name: _spread(measured.values(name)) for name in _SPREADS},
    )


def _spread(values: np.ndarray) -> dict[str, float]:
    points = {"min": values.min(), "mean": values.mean(), "max": values.max()}
    points |= {f"p{percent}": np.percentile(values, percent) for percent in PERCENTILES}
    return {name: round(float(value), 4) for name, value in points.items()}


def _duplicates(hashes: np.ndarray) -> float:
    return 1 - len(np.unique(hashes)) / len(hashes)
