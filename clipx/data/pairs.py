"""Single pairs and parts of batches: shards -> picture and captions -> `Part`, along the plan.

`PairReader` reads the picture of one slot and its captions; `PartReader` reads a contiguous part of a rank's slots of
a batch, and puts the next good sample of the lane in the place of a bad one. A part is a function of (plan, batch,
slots), so neither ranks nor loader processes nor the batch that a run starts at can change what is read.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.captions import CaptionReader, Captions, alternatives, first_present
from clipx.data.decode import UndecodableError
from clipx.data.order import Address, Plan
from clipx.data.prefetch_schedule import LookAhead
from clipx.data.shards import TRUNCATED, BadSampleError, ShardReader
from clipx.data.tokenizer import Tokenizer
from clipx.errors import RunError
from clipx.types import BadSample


class ImageTransform(Protocol):
    """A picture's bytes to uint8 (S, S, 3), a pure function of the bytes and the seed."""

    def __call__(self, data: bytes, *, seed: int, out: Tensor) -> bool:
        """Writes the picture into `out`; returns whether Pillow had to decode it."""


@dataclass(frozen=True)
class SourceReader:
    """How samples of one source become pairs."""

    name: str
    image_key: str
    caption_key: str
    captions: CaptionReader
    transform: ImageTransform

    @property
    def extensions(self) -> frozenset[str]:
        """The members that are read."""
        return self.captions.extensions | {extension for extension, _ in alternatives(self.image_key)}


class PairReader:
    """Reads, decodes and augments the picture of one slot and its captions.

    Args:
        shards: with the sources in the same order.
        sources: how to read each.
        seed: of the run.
    """

    def __init__(self, shards: ShardReader, sources: Sequence[SourceReader], *, seed: int) -> None:
        self.shards = shards
        self.sources = sources
        self._seed = seed

    def augment_seed(self, address: Address) -> int:
        """What decides the augmentation: of (seed, epoch, sample), 63 bits."""
        return counter_random.key(self._seed, Stream.AUGMENT, address.epoch, address.sample_id)

    def read(self, address: Address, *, out: Tensor) -> tuple[Captions, bool]:
        """The captions of the sample at `address`; its picture, uint8 (S, S, 3), goes into `out`.

        Returns:
            Captions, and whether Pillow had to decode the picture.

        Raises:
            BadSampleError: picture or caption is absent or undecodable, or the shard is cut.
            RunError: the storage failed.
        """
        fields = self.shards.read(address.place).fields
        source = self.sources[address.place.source]
        try:
            captions = source.captions.read(fields, epoch=address.epoch, sample_id=address.sample_id)
            data = first_present(fields, source.image_key)  # after the captions: they are cheaper to find absent
            if data is None:
                raise BadSampleError(f"no picture under {source.image_key!r}")
            return captions, source.transform(data, seed=self.augment_seed(address), out=out)
        except UndecodableError as error:
            raise BadSampleError(str(error)) from error


@dataclass(frozen=True, eq=False)
class Part:
    """What a contiguous part of a rank's slots holds, but for the pictures; numpy, which crosses processes by value."""

    index: int
    tokens_T: np.ndarray
    lengths_B: np.ndarray
    sample_id_I: np.ndarray
    slot_I: np.ndarray
    source_I: np.ndarray
    group_id_B: np.ndarray | None
    augment_seeds: tuple[int, ...]
    bad: tuple[BadSample, ...]
    num_fallbacks: int
    read_wait_s: float


class PartReader:
    """Reads parts of batches.

    Args:
        plan: the order.
        pairs: reads the picture and captions of an address.
        tokenizer: of the text tower.
        captions_per_image: K.
        groups: whether captions name groups whose pairs are no negatives.
        read_ahead_batches: how many batches before their turn remote samples are asked for.
    """

    def __init__(
        self,
        plan: Plan,
        pairs: PairReader,
        tokenizer: Tokenizer,
        *,
        captions_per_image: int = 1,
        groups: bool = False,
        read_ahead_batches: int = 2,
    ) -> None:
        self._plan = plan
        self._pairs = pairs
        self._tokenizer = tokenizer
        self.captions_per_image = captions_per_image
        self._groups = groups
        self._read_ahead_batches = read_ahead_batches
        self._look_ahead: LookAhead | None = None
        self._known_bad: dict[int, BadSample] = {}

    def read(self, batch_index: int, slots: range, *, out: Tensor, look_ahead: bool = True) -> Part:
        """`slots` of global batch `batch_index`; the pictures go into `out`, uint8 (len(slots), S, S, 3).

        Remote samples of the batches to come are asked for with it, unless nothing more will be read.

        Raises:
            RunError: no good sample within the plan's horizon, or the storage failed.
        """
        waited_before = self._pairs.shards.wait_s
        if look_ahead and self._pairs.shards.remote_sources:
            self._ask_ahead(batch_index, slots)
        bad: dict[int, BadSample] = {}
        used: list[Address] = []
        captions: list[Captions] = []
        num_fallbacks = 0
        addresses = self._plan.addresses(batch_index, slice(slots.start, slots.stop))
        for slot, address, row in zip(slots, addresses, out, strict=True):
            good, texts, by_pillow = self._first_good(batch_index, slot, address, out=row, bad=bad)
            used.append(good)
            captions.append(texts)
            num_fallbacks += by_pillow
        tokens_T, lengths_B = self._tokenizer.encode([text for of_image in captions for text in of_image.texts])
        sample_id_I = np.array([address.sample_id for address in used])
        return Part(
            index=batch_index,
            tokens_T=tokens_T.numpy(),
            lengths_B=lengths_B.numpy(),
            sample_id_I=sample_id_I,
            slot_I=np.arange(slots.start, slots.stop),
            source_I=np.array([address.place.source for address in used]),
            group_id_B=self._group_ids(captions, sample_id_I) if self._groups else None,
            augment_seeds=tuple(map(self._pairs.augment_seed, used)),
            bad=tuple(bad.values()),
            num_fallbacks=num_fallbacks,
            read_wait_s=self._pairs.shards.wait_s - waited_before,
        )

    def _ask_ahead(self, batch_index: int, slots: range) -> None:
        if self._look_ahead is None or self._look_ahead.slots != slots:
            self._look_ahead = LookAhead(
                self._plan,
                self._pairs.shards,
                slots=slots,
                read_ahead_batches=self._read_ahead_batches,
            )
        self._look_ahead.before(batch_index)

    def _group_ids(self, captions: Sequence[Captions], sample_id_I: np.ndarray) -> np.ndarray:
        """int64 (B,): the captions' groups; a pair without one is alone with its sample, below zero."""
        own = zip(captions, sample_id_I.tolist(), strict=True)
        ids = [-1 - sample_id if texts.group_id is None else texts.group_id for texts, sample_id in own]
        return np.repeat(np.array(ids), self.captions_per_image)

    def _first_good(
        self, batch_index: int, slot: int, address: Address, *, out: Tensor, bad: dict[int, BadSample]
    ) -> tuple[Address, Captions, bool]:
        """What fills a slot: its sample, or the next good one of its lane; what is bad on the way goes into `bad`."""
        tried: Address | None = address
        for attempt in itertools.count(1):
            if tried is None:
                raise self._nothing_good(address, attempt - 1, bad)
            if tried.sample_id not in self._known_bad:
                try:
                    return tried, *self._pairs.read(tried, out=out)
                except BadSampleError as error:
                    self._known_bad[tried.sample_id] = self._record(tried, str(error))
            bad[tried.sample_id] = self._known_bad[tried.sample_id]
            tried = self._plan.replacement(batch_index, slot, attempt)
        raise AssertionError("unreachable")

    def _record(self, address: Address, reason: str) -> BadSample:
        name = self._pairs.shards.name(address.place)
        return BadSample(
            self._pairs.sources[address.place.source].name, name.shard, name.key, reason, address.sample_id
        )

    def _nothing_good(self, address: Address, tries: int, bad: dict[int, BadSample]) -> RunError:
        first = bad[address.sample_id]
        members = self._pairs.shards.name(address.place).members
        source = self._pairs.sources[address.place.source]
        mend = (
            "the shard was longer when it was indexed: restore it"
            if first.reason == TRUNCATED
            else f"looked for a picture under {source.image_key!r} and a caption under {source.caption_key!r}: "
            "set data.image_key and data.caption_key to what the shards hold"
        )
        return RunError(
            f"none of {tries} samples in a row is a readable pair, from {first.key} of {first.shard} on "
            f"({first.reason}; members there: {', '.join(members)}); {mend}"
        )
