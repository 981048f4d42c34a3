"""Single samples and parts of batches: shards -> image, captions and columns -> `PartialBatch`, along the data order.

`SampleReader` reads one sample; `BatchReader` reads a contiguous part of a rank's share of a batch, and replaces a bad
sample by the next good one of its lane. A part is a function of (order, batch, slots), so neither ranks nor loader
processes nor the batch that a run starts at can change what is read.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.captions import Captions, TextReader, alternatives, first_present
from clipx.data.columns import ColumnReader, Images, RawSample, read_columns
from clipx.data.decode import UndecodableError
from clipx.data.order import DataOrder
from clipx.data.sample_refs import SampleName, SampleRef, SampleSource
from clipx.data.shards import TRUNCATED, BadSampleError, ShardReader
from clipx.data.tokenizer import Tokenizer
from clipx.data.transforms import Decoding, FixedTransform, TrainTransform
from clipx.errors import RunError, some_names
from clipx.storage.tar import KEYS_END_AT_DOTS, MANY_MEMBERS
from clipx.types import BadSample, Batch, axis_of, tensor_fields

if TYPE_CHECKING:  # needed only for remote sources
    from clipx.data.prefetch_schedule import PrefetchSchedule


@dataclass(frozen=True)
class SourceReader:
    """How the samples of one source are read."""

    name: str
    image_key: str
    caption_key: str
    captions: TextReader
    transform: TrainTransform | FixedTransform
    images: Images = "needed"

    @property
    def extensions(self) -> frozenset[str]:
        """The members of a sample that are read."""
        if self.images == "unread":
            return self.captions.extensions
        return self.captions.extensions | {extension for extension, _ in alternatives(self.image_key)}


class SampleContent(NamedTuple):
    """A sample without its image."""

    captions: Captions
    columns: Mapping[str, np.ndarray]
    decoding: Decoding
    augment_seed: int


class View(NamedTuple):
    """An augmentation of a sample."""

    number: int | None
    """Of those that teachers saw; None if there are none, and each epoch has its own."""
    seed: int
    """Of the augmentation, 63 bits."""


class Views(Protocol):
    """Chooses among the augmentations of a sample that teachers saw (`clipx.data.teachers.views`)."""

    def drawn(self, ref: SampleRef, name: SampleName) -> View:
        """That of a sample in an epoch.

        Raises:
            RunError: the sample's shard is none that was taught.
        """


class SampleReader:
    """Reads, decodes and augments the image of one sample, and reads its captions and columns.

    The `sources` of the samples are in the order of those of `shards`, which reads the bytes. With `views` a sample's
    augmentation is one of those, and is drawn anew in every epoch without.
    """

    def __init__(
        self,
        shards: SampleSource,
        sources: Sequence[SourceReader],
        *,
        seed: int,
        column_readers: Sequence[ColumnReader] = (),
        views: Views | None = None,
    ) -> None:
        self.shards = shards
        self.sources = sources
        self._seed = seed
        self.column_readers = column_readers
        self._views = views

    def read(self, ref: SampleRef, *, out: Tensor) -> SampleContent:
        """Reads a sample; its image, uint8 (S, S, 3), goes into `out`.

        Raises:
            BadSampleError: image, caption or column is absent and needed, or undecodable, or the shard is cut.
            RunError: the storage failed, or a column is not what its reader promised.
        """
        return self.decoded(ref, self.shards.read(ref), out=out)

    def decoded(self, ref: SampleRef, members: Mapping[str, bytes], *, out: Tensor) -> SampleContent:
        """What `read` makes of the members of a sample; several threads may call it at once.

        Raises:
            BadSampleError: image, caption or column is absent or undecodable.
            RunError: a column is not what its reader promised.
        """
        source = self.sources[ref.source]
        try:
            captions = source.captions.read(members, epoch=ref.epoch, sample_id=ref.sample_id)
            view, name = self._view(ref)
            columns: dict[str, np.ndarray] = {}
            if self.column_readers:
                raw = RawSample(members=members, texts=captions.texts, ref=ref, name=name, view=view.number)
                columns = read_columns(self.column_readers, raw)
            # last: the others are cheaper to find absent
            data = None if source.images == "unread" else first_present(members, source.image_key)
            if data is not None:
                decoding = source.transform(data, seed=view.seed, out=out)
            elif source.images == "needed":
                raise BadSampleError(f"no picture under {source.image_key!r}")
            else:
                out.zero_()
                decoding = Decoding(by_pillow=False, deep=False)
        except UndecodableError as error:
            raise BadSampleError(str(error)) from error
        return SampleContent(captions, columns, decoding, view.seed)

    def _view(self, ref: SampleRef) -> tuple[View, Callable[[], SampleName]]:
        """The augmentation, a function of (seed, epoch, sample); and what gives the sample's name."""
        if self._views is None:
            seed = counter_random.key(self._seed, Stream.AUGMENT, ref.epoch, ref.sample_id)
            return View(None, seed), partial(self.shards.name, ref)
        name = self.shards.name(ref)
        return self._views.drawn(ref, name), lambda: name

    def bad(self, ref: SampleRef, reason: str) -> BadSample:
        """The record of a sample that cannot be read."""
        name = self.shards.name(ref)
        return BadSample(self.sources[ref.source].name, name.shard, name.key, reason, ref.sample_id)


@dataclass(frozen=True, eq=False)
class PartialBatch:
    """A contiguous part of a rank's share of a batch without its images; numpy, which crosses processes by value."""

    index: int
    columns: Mapping[str, np.ndarray]
    """The tensors of `Batch` by name, and further columns."""
    bad: tuple[BadSample, ...]
    counts: Mapping[str, float]
    read_wait_s: float


def columns_of(
    refs: Sequence[SampleRef],
    samples: Sequence[SampleContent],
    *,
    tokenizer: Tokenizer,
    first_slot: int,
) -> dict[str, np.ndarray]:
    """The columns of a part of a batch whose slots, from `first_slot` on, hold these samples, at least one.

    Raises:
        RunError: a column of axis T does not fit the tokens.
    """
    tokens_T, lengths_B = tokenizer.encode([text for sample in samples for text in sample.captions.texts])
    columns = {
        "tokens_T": tokens_T.numpy(),
        "lengths_B": lengths_B.numpy(),
        "sample_id_I": np.array([ref.sample_id for ref in refs]),
        "slot_I": np.arange(first_slot, first_slot + len(refs)),
        "source_I": np.array([ref.source for ref in refs]),
        "augment_seed_I": np.array([sample.augment_seed for sample in samples]),
    }
    for name in samples[0].columns:
        columns[name] = np.concatenate([sample.columns[name] for sample in samples])
        if axis_of(name) == "T" and len(columns[name]) != len(tokens_T):
            raise RunError(f"column {name} has {len(columns[name])} rows, not {len(tokens_T)} (tokens); mend it")
    return columns


def counts_of(samples: Sequence[SampleContent]) -> dict[str, float]:
    """What is counted of these samples, the same names whatever they are."""
    return {
        "pillow_images": sum(sample.decoding.by_pillow for sample in samples),
        "deep_images": sum(sample.decoding.deep for sample in samples),
    }


def join_parts(parts: Sequence[PartialBatch], images_IHWC: Tensor, *, captions_per_image: int) -> Batch:
    """Joins consecutive parts, and the images of all of them, to a batch."""
    names = tensor_fields(Batch)
    tensors = {
        name: torch.from_numpy(np.concatenate([part.columns[name] for part in parts])) for name in parts[0].columns
    }
    return Batch(
        index=parts[0].index,
        images_IHWC=images_IHWC,
        max_length=int(tensors["lengths_B"].max()),
        **{name: tensor for name, tensor in tensors.items() if name in names},
        columns={name: tensor for name, tensor in tensors.items() if name not in names},
        captions_per_image=captions_per_image,
        bad=tuple(bad for part in parts for bad in part.bad),
        counts={name: sum(part.counts[name] for part in parts) for name in parts[0].counts},
        read_wait_s=sum(part.read_wait_s for part in parts),
    )


class PartReader(Protocol):
    """Reads parts of batches."""

    @property
    def captions_per_image(self) -> int:
        """K."""

    def read(self, batch_index: int, slots: range, *, out: Tensor, prefetch: bool = True) -> PartialBatch:
        """See `BatchReader.read`."""


class BatchReader:
    """Reads parts of batches.

    Args:
        captions_per_image: K.
        groups: whether captions name groups whose pairs are no negatives.
        read_ahead_batches: how many batches before they are read remote samples are asked for.
    """

    def __init__(
        self,
        order: DataOrder,
        samples: SampleReader,
        tokenizer: Tokenizer,
        *,
        captions_per_image: int = 1,
        groups: bool = False,
        read_ahead_batches: int = 2,
    ) -> None:
        self._order = order
        self._samples = samples
        self._tokenizer = tokenizer
        self.captions_per_image = captions_per_image
        self._groups = groups
        self._read_ahead_batches = read_ahead_batches
        self._schedule: PrefetchSchedule | None = None
        self._known_bad: dict[int, BadSample] = {}

    def read(self, batch_index: int, slots: range, *, out: Tensor, prefetch: bool = True) -> PartialBatch:
        """Reads `slots` of global batch `batch_index`; the images go into `out`, uint8 (len(slots), S, S, 3).

        With `prefetch` it also asks for the remote samples of the batches to come: no use if nothing more will be read.

        Raises:
            RunError: no good sample within `max_replacement_distance`, or the storage failed.
        """
        waited_before = self._samples.shards.wait_s
        if prefetch and self._samples.shards.remote_sources:
            self._announce(batch_index, slots)
        bad: dict[int, BadSample] = {}
        used: list[SampleRef] = []
        samples: list[SampleContent] = []
        refs = self._order.sample_refs(batch_index, slice(slots.start, slots.stop))
        for slot, ref, row in zip(slots, refs, out, strict=True):
            good, sample = self._first_good(batch_index, slot, ref, out=row, bad=bad)
            used.append(good)
            samples.append(sample)
        columns = columns_of(used, samples, tokenizer=self._tokenizer, first_slot=slots.start)
        if self._groups:
            columns["group_id_B"] = self._group_ids(samples, columns["sample_id_I"])
        return PartialBatch(
            index=batch_index,
            columns=columns,
            bad=tuple(bad.values()),
            counts=counts_of(samples),
            read_wait_s=self._samples.shards.wait_s - waited_before,
        )

    def _announce(self, batch_index: int, slots: range) -> None:
        if self._schedule is None or self._schedule.slots != slots:
            from clipx.data.prefetch_schedule import PrefetchSchedule

            shards = self._samples.shards
            assert isinstance(shards, ShardReader), "nothing else is remote"
            self._schedule = PrefetchSchedule(
                self._order, shards, slots=slots, read_ahead_batches=self._read_ahead_batches
            )
        self._schedule.announce(batch_index)

    def _group_ids(self, samples: Sequence[SampleContent], sample_id_I: np.ndarray) -> np.ndarray:
        """int64 (B,): the captions' groups; one without is alone with its sample, below zero."""
        return np.array(
            [
                sample.captions.group_ids or [-1 - own] * self.captions_per_image
                for sample, own in zip(samples, sample_id_I.tolist(), strict=True)
            ]
        ).reshape(-1)

    def _first_good(
        self, batch_index: int, slot: int, ref: SampleRef, *, out: Tensor, bad: dict[int, BadSample]
    ) -> tuple[SampleRef, SampleContent]:
        """The sample of a slot, or the next good one of its lane; bad ones before it are added to `bad`."""
        tried: SampleRef | None = ref
        for attempt in itertools.count(1):
            if tried is None:
                raise self._nothing_good(ref, attempt - 1, bad)
            if tried.sample_id not in self._known_bad:
                try:
                    return tried, self._samples.read(tried, out=out)
                except BadSampleError as error:
                    self._known_bad[tried.sample_id] = self._samples.bad(tried, str(error))
            bad[tried.sample_id] = self._known_bad[tried.sample_id]
            tried = self._order.replacement(batch_index, slot, attempt)
        raise AssertionError("unreachable")

    def _nothing_good(self, ref: SampleRef, tries: int, bad: dict[int, BadSample]) -> RunError:
        first = bad[ref.sample_id]
        members = self._samples.shards.name(ref).members
        source = self._samples.sources[ref.source]
        if len(members) > MANY_MEMBERS:
            hint = f"there are {len(members)}: {KEYS_END_AT_DOTS}"
        elif first.reason == TRUNCATED:
            hint = "the shard was longer when it was indexed: restore it"
        else:
            hint = (
                f"looked for a picture under {source.image_key!r} and a caption under {source.caption_key!r}: "
                "set data.image_key and data.caption_key to what the shards hold; `clipx data check` looks through them"
            )
            kinds = {extension for extension, _ in alternatives(source.image_key)}
            if any(dot and kind in kinds for _, dot, kind in (member.rpartition(".") for member in members)):
                hint += f"; {KEYS_END_AT_DOTS}"
        return RunError(
            f"none of {tries} samples in a row is a readable pair, from {first.key} of {first.shard} on "
            f"({first.reason}; members there: {some_names(members)}); {hint}"
        )
