"""Which sample: what the data order gives and the readers take."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One sample, and the epoch in which it is read."""

    source: int
    """Index of the data source, in the config's order."""
    shard: int
    """Index of the shard, in the source's index."""
    index: int
    """Index of the sample in its shard."""
    epoch: int
    """Epoch of the source."""
    sample_id: int
    """Names the sample for the whole run: its index in all shards of all sources, laid end to end in this order."""


class SampleName(NamedTuple):
    """What a person needs to find a sample."""

    shard: str
    key: str
    members: tuple[str, ...]
    """Extensions of all its members."""


class SampleSource(Protocol):
    """Where samples are read: shards (`clipx.data.shards.ShardReader`), or whatever has their form."""

    remote_sources: frozenset[int]
    """Sources whose samples are better asked for ahead of their turn."""
    wait_s: float
    """Seconds for which remote storage was waited for."""

    def read(self, ref: SampleRef) -> dict[str, bytes]:
        """The content of a sample's members by extension.

        Raises:
            BadSampleError: they cannot be read because of what they are.
            RunError: the storage failed.
        """

    def name(self, ref: SampleRef) -> SampleName:
        """The names of a sample."""


class ShuffleBlock(NamedTuple):
    """Samples of a lane that are shuffled together; a remote reader fetches them at once."""

    source: int
    epoch: int
    lane: int
    number: int


@dataclass(frozen=True, eq=False)
class SampleRefs:
    """B samples, int64 (B,) each."""

    source_B: np.ndarray
    lane_B: np.ndarray
    epoch_B: np.ndarray
    block_B: np.ndarray
    """Number of the shuffle block, from 0 in each epoch of a lane."""
    shard_B: np.ndarray
    index_B: np.ndarray
    sample_id_B: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_id_B)

    def __iter__(self) -> Iterator[SampleRef]:
        columns = (self.source_B, self.shard_B, self.index_B, self.epoch_B, self.sample_id_B)
        return map(SampleRef, *(column.tolist() for column in columns))

    def __getitem__(self, rows: slice) -> "SampleRefs":
        return SampleRefs(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[np.ndarray, ...]:
        """All arrays, in the order of the fields."""
        return tuple(getattr(self, column.name) for column in fields(self))

    def blocks(self) -> Iterator[ShuffleBlock]:
        """The shuffle block of each sample."""
        columns = (self.source_B, self.epoch_B, self.lane_B, self.block_B)
        return map(ShuffleBlock, *(column.tolist() for column in columns))
