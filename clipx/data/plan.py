"""The data order: which sample stands in which slot of which global batch, as a pure function of the seed.

Nothing is read here and nothing is remembered: the caches hold what can be computed again. `stream.py` reads along it.

With N samples, L lanes, q = N // L samples in a lane's stretch, global batch size G and s = G // L slots per lane and
batch:

- In epoch e the shards stand in the order of their hashes of (seed, e), end to end on a circle of N positions whose
  origin is moved by a hash of (seed, e). Lane l owns the positions [l q, (l + 1) q); the N - L q < L samples after the
  last lane are left out, others in each epoch because the origin moves.
- Within a stretch, consecutive windows of w offsets are permuted by hashes of (seed, e, l, window).
- A lane is an endless stream, one stretch per epoch. Slot l s + j of global batch t is place t s + j of lane l's
  stream: batches cross from one epoch into the next without a gap.

Shape suffixes: B slots asked for, S shards.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Literal, NamedTuple

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.errors import InputError

# Simulated with 2,000 shards of 5,000: a pair in a batch of 4,096 meets 3.0 of its own shard; independent draws, 2.0.
_MAX_AUTO_LANES = 1024
_AUTO_SHUFFLED = 65_536  # samples under shuffle in all lanes together
_MIN_AUTO_WINDOW = 64
_CACHED_OFFSETS = 1 << 24  # of window permutations, 4 bytes each
_OFFSETS_AT_ONCE = 1 << 20  # hashed together, some 40 bytes each
_MIN_HORIZON, _MAX_HORIZON = 100, 10_000


class Place(NamedTuple):
    """Which sample of which shard."""

    source: int
    """Ordinal in the config's order."""
    shard: int
    """Ordinal in the source's index."""
    index: int
    """Place within the shard."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sample lies, and in which epoch it is read."""

    epoch: int
    shard: int
    """Ordinal in the index."""
    index: int
    """Place within the shard."""
    sample_id: int
    """Place in all shards laid end to end in the index's order: names the sample for the whole run."""


@dataclass(frozen=True, eq=False)
class Addresses:
    """The addresses of B slots, int64 (B,) each."""

    epoch_B: np.ndarray
    shard_B: np.ndarray
    index_B: np.ndarray
    sample_id_B: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_id_B)

    def __iter__(self) -> Iterator[Address]:
        columns = (self.epoch_B, self.shard_B, self.index_B, self.sample_id_B)
        return map(Address, *(column.tolist() for column in columns))


def resolve_lanes(lanes: int | Literal["auto"], *, global_batch_size: int, num_samples: int) -> int:
    """L; auto: the largest divisor of the global batch size that is at most 1024 and at most the number of samples.

    Raises:
        InputError: a number that does not divide the batch, or exceeds the samples; names the nearest that do.
    """
    small = [d for d in range(1, isqrt(global_batch_size) + 1) if global_batch_size % d == 0]
    divisors = sorted({*small, *(global_batch_size // d for d in small)})
    fitting = [d for d in divisors if d <= num_samples]
    if lanes == "auto":
        return max(d for d in fitting if d <= _MAX_AUTO_LANES)
    if lanes in fitting:
        return lanes
    nearest = [d for d in fitting if d < lanes][-1:] + [d for d in fitting if d > lanes][:1]
    rule = (
        f"is more than the {num_samples} samples"
        if lanes > num_samples
        else f"does not divide global_batch_size={global_batch_size}"
    )
    raise InputError(f"data.lanes={lanes} {rule}; nearest that fit: {', '.join(map(str, nearest))}, or auto")


def resolve_window(window: int | Literal["auto"], lanes: int) -> int:
    """w; auto: so many that all lanes together shuffle 65,536 samples, at least 64 in each."""
    return max(_MIN_AUTO_WINDOW, _AUTO_SHUFFLED // lanes) if window == "auto" else window


class _EpochOrder(NamedTuple):
    """The shards of one epoch, end to end."""

    shard_S: np.ndarray
    start_S: np.ndarray
    origin: int


class Plan:
    """The order of a run.

    Args:
        counts: int64 (S,), samples of each shard, in the index's order.
        global_batch_size: G.
        lanes: L or auto; a run keeps the number that it began with.
        window: w or auto; as `lanes`.
        seed: of the run.
        allow_repeats: permit fewer samples than G.

    Raises:
        InputError: fewer samples than G without `allow_repeats`, or lanes that do not fit (`resolve_lanes`).
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        global_batch_size: int,
        seed: int,
        lanes: int | Literal["auto"] = "auto",
        window: int | Literal["auto"] = "auto",
        allow_repeats: bool = False,
    ) -> None:
        self.counts = counts
        self.num_samples = int(counts.sum())
        self.global_batch_size = global_batch_size
        self.seed = seed
        if self.num_samples < global_batch_size and not allow_repeats:
            raise InputError(
                f"the data holds {self.num_samples} samples, fewer than global_batch_size={global_batch_size}; "
                f"lower global_batch_size, add shards, or set data.allow_repeats=true"
            )
        self.lanes = resolve_lanes(lanes, global_batch_size=global_batch_size, num_samples=self.num_samples)
        self.window = resolve_window(window, self.lanes)
        self.stretch = self.num_samples // self.lanes
        self.slots_per_lane = global_batch_size // self.lanes
        self._first_id_S = np.cumsum(counts) - counts
        self._epochs: OrderedDict[int, _EpochOrder] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._num_cached_offsets = 0

    @property
    def horizon(self) -> int:
        """How many places ahead of a bad sample its replacement may lie.

        One stretch, but not so few that two bad samples end a run on a tiny set, nor so many that a source without one
        good sample is read for more than seconds.
        """
        return min(max(self.stretch, _MIN_HORIZON), _MAX_HORIZON)

    def addresses(self, batch_index: int, slots: slice | np.ndarray = slice(None)) -> Addresses:
        """What stands in `slots` (of 0 to G-1) of global batch `batch_index`, in their order."""
        slot_B = np.arange(self.global_batch_size, dtype=np.int64)[slots]
        lane_B, place_B = np.divmod(slot_B, self.slots_per_lane)
        return self._locate(lane_B, batch_index * self.slots_per_lane + place_B)

    def replacement(self, batch_index: int, slot: int, attempt: int) -> Address | None:
        """The sample `attempt` places further in the lane of `slot`; None beyond the horizon."""
        assert attempt >= 1
        if attempt > self.horizon:
            return None
        lane, place = divmod(slot, self.slots_per_lane)
        position = batch_index * self.slots_per_lane + place + attempt
        (address,) = self._locate(np.array([lane]), np.array([position]))
        return address

    def _locate(self, lane_B: np.ndarray, position_B: np.ndarray) -> Addresses:
        """Addresses of places of the lanes' streams."""
        epoch_B, offset_B = np.divmod(position_B, self.stretch)
        circle_B = lane_B * self.stretch + self._shuffled(epoch_B, lane_B, offset_B)
        shard_B, index_B = np.empty_like(circle_B), np.empty_like(circle_B)
        for epoch in np.unique(epoch_B):
            here = epoch_B == epoch
            order = self._epoch_order(int(epoch))
            line = (circle_B[here] + order.origin) % self.num_samples
            nth = np.searchsorted(order.start_S, line, side="right") - 1  # of equal starts the last: skips empty shards
            shard_B[here] = order.shard_S[nth]
            index_B[here] = line - order.start_S[nth]
        return Addresses(epoch_B, shard_B, index_B, self._first_id_S[shard_B] + index_B)

    def _epoch_order(self, epoch: int) -> _EpochOrder:
        if epoch not in self._epochs:
            hash_S = counter_random.fold(
                counter_random.start(self.seed, Stream.SHARD_ORDER), epoch, np.arange(len(self.counts), dtype=np.int64)
            )
            shard_S = np.argsort(hash_S, kind="stable")
            count_S = self.counts[shard_S]
            origin = counter_random.key(self.seed, Stream.ROTATION, epoch) % self.num_samples
            self._epochs[epoch] = _EpochOrder(shard_S, np.cumsum(count_S) - count_S, origin)
            if len(self._epochs) > 2:  # a batch lies in one epoch or crosses into the next
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch_B: np.ndarray, lane_B: np.ndarray, offset_B: np.ndarray) -> np.ndarray:
        """The offsets after the permutation of their windows."""
        window_B, within_B = np.divmod(offset_B, self.window)
        keys, key_B = np.unique(np.stack([epoch_B, lane_B, window_B], axis=1), axis=0, return_inverse=True)
        permutations = self._permutations([(int(e), int(lane), int(w)) for e, lane, w in keys])
        chosen = (permutations[key][i] for key, i in zip(key_B.reshape(-1).tolist(), within_B.tolist(), strict=True))
        return window_B * self.window + np.fromiter(chosen, dtype=np.int64, count=len(offset_B))

    def _permutations(self, keys: list[tuple[int, int, int]]) -> list[np.ndarray]:
        """The permutation, int32, of each (epoch, lane, window)."""
        found = {key: self._windows[key] for key in keys if key in self._windows}
        for key in found:
            self._windows.move_to_end(key)
        missing: dict[int, list[tuple[int, int, int]]] = {}
        for key in keys:
            if key not in found:
                missing.setdefault(min(self.window, self.stretch - key[2] * self.window), []).append(key)
        for length, group in missing.items():
            rows = max(1, _OFFSETS_AT_ONCE // length)
            for first in range(0, len(group), rows):
                found.update(self._permute(group[first : first + rows], length))
        return [found[key] for key in keys]

    def _permute(self, keys: list[tuple[int, int, int]], length: int) -> dict[tuple[int, int, int], np.ndarray]:
        """Computes and caches the permutations of windows of one length."""
        columns = np.array(keys, dtype=np.int64).T
        bits = counter_random.fold(counter_random.start(self.seed, Stream.WINDOW), *columns)
        made = dict(zip(keys, counter_random.permutation(bits, length).astype(np.int32), strict=True))
        for key, permutation in made.items():
            self._windows[key] = permutation
            self._num_cached_offsets += length
        while self._num_cached_offsets > _CACHED_OFFSETS and len(self._windows) > 1:
            _, oldest = self._windows.popitem(last=False)
            self._num_cached_offsets -= len(oldest)
        return made
