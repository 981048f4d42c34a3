"""The data order: which sample stands in which slot of which global batch, as a pure function of the seed.

Nothing is read here and nothing is remembered. `lanes.py` is the order of one source, `stream.py` reads along it. A
slot holds one picture; global batch t has the slots t G to (t + 1) G - 1 of the run.

- Mixing. Of the first n slots of a run, source s has N_s(n): the weights are parted again and again into two groups of
  neighbours as equal as possible, and the first group of each takes round(n x its share), the second the rest. N_s(n)
  grows by at most one from slot to slot and stays within 2 of n times its share (1/2 for two sources), so any stretch
  of batches holds the proportions to within 4 pictures (1 for two sources), wherever in the run it lies.
- Lanes. The k-th picture of source s is place k // L_s of its lane k mod L_s.
- Slots. Within a batch, a source's pictures stand lane by lane, so that ranks and loader processes keep their lanes;
  the sources are spread evenly between one another, so that every rank has its share of each. A single source whose L
  divides G gives lane l the slots [l G / L, (l + 1) G / L).

Shape suffixes: B slots asked for, G slots of a batch, N pictures of one source in a batch.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import accumulate
from math import isqrt, lcm
from typing import Literal, NamedTuple

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.order_of_source import Lanes
from clipx.errors import InputError

# Simulated on 2,000 shards of one topic each (benchmarks/data_order.py): a pair in a batch of 4,096, 16,384 or 65,536
# meets 1.1, 7.4 or 33 of its own shard; independent draws 2.0, 8.2, 33; with 1,024 lanes of windows of 64 3.0, 15, 63.
_MAX_AUTO_LANES = 4096
_AUTO_SHUFFLED = 65_536  # samples under shuffle in all lanes together
_MIN_AUTO_WINDOW = 16
_BATCHES_AT_ONCE, _SLOTS_AT_ONCE = 16, 4096  # the most: numpy takes as long for ten slots as for hundreds
_CACHED_STRETCHES = 4  # what is read and what is asked for ahead are at different batches


@dataclass(frozen=True, slots=True)
class Place:
    """Which sample of which shard."""

    source: int
    """Ordinal in the config's order."""
    shard: int
    """Ordinal in the source's index."""
    index: int
    """Place within the shard."""


class Window(NamedTuple):
    """Samples of a lane that are shuffled together; what a remote reader fetches at once."""

    source: int
    epoch: int
    lane: int
    number: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where the picture of a slot lies, and in which epoch of its source it is read."""

    place: Place
    epoch: int
    sample_id: int
    """Place in all shards of all sources laid end to end in the indexes' order: names the sample for the whole run."""


@dataclass(frozen=True, eq=False)
class Addresses:
    """The addresses of B slots, int64 (B,) each."""

    source_B: np.ndarray
    lane_B: np.ndarray
    epoch_B: np.ndarray
    window_B: np.ndarray
    shard_B: np.ndarray
    index_B: np.ndarray
    sample_id_B: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_id_B)

    def __iter__(self) -> Iterator[Address]:
        columns = (self.source_B, self.shard_B, self.index_B, self.epoch_B, self.sample_id_B)
        for source, shard, index, epoch, sample_id in zip(*(column.tolist() for column in columns), strict=True):
            yield Address(Place(source, shard, index), epoch, sample_id)

    def __getitem__(self, slots: slice) -> "Addresses":
        """Those of some of the slots."""
        return Addresses(*(getattr(self, column.name)[slots] for column in fields(self)))

    def windows(self) -> Iterator[Window]:
        """The window of each slot."""
        columns = (self.source_B, self.epoch_B, self.lane_B, self.window_B)
        return map(Window, *(column.tolist() for column in columns))


def resolve_lanes(lanes: int | Literal["auto"], *, global_batch_size: int, num_samples: int) -> int:
    """L of a single source; auto: the largest divisor of the slots that is at most 4096 and at most the samples.

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
        else f"does not divide the {global_batch_size} pictures of a global batch"
    )
    raise InputError(f"data.lanes={lanes} {rule}; nearest that fit: {', '.join(map(str, nearest))}, or auto")


def resolve_window(window: int | Literal["auto"], lanes: int) -> int:
    """w; auto: so many that all lanes together shuffle 65,536 samples, at least 16 in each."""
    return max(_MIN_AUTO_WINDOW, _AUTO_SHUFFLED // lanes) if window == "auto" else window


def shares(slots: int, weights: Sequence[int]) -> list[int]:
    """N_s(n): how many of the first `slots` slots of a run each source has."""
    if len(weights) == 1:
        return [slots]
    sums = list(accumulate(weights))
    total = sums[-1]
    cut = min(range(1, len(weights)), key=lambda place: abs(2 * sums[place - 1] - total))
    first = (2 * slots * sums[cut - 1] + total) // (2 * total)
    return shares(first, weights[:cut]) + shares(slots - first, weights[cut:])


class _Layout(NamedTuple):
    """Which place of which lane stands in each of B slots."""

    source_B: np.ndarray
    lane_B: np.ndarray
    position_B: np.ndarray


class Plan:
    """The order of a run.

    Args:
        counts: of each source int64 (S,), samples of each shard in the index's order.
        weights: of the sources; none: all equal.
        names: of the sources, for messages; none: their numbers.
        global_batch_size: G, pictures of a global batch.
        lanes: L or auto; a run keeps the number that it began with. Of a mixture: the most that a source has.
        window: w or auto; as `lanes`.
        seed: of the run.
        allow_repeats: permit a source with fewer samples than it has slots in a batch.

    Raises:
        InputError: too few samples without `allow_repeats`, or lanes that do not fit (`resolve_lanes`).
    """

    def __init__(
        self,
        counts: Sequence[np.ndarray],
        *,
        global_batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        lanes: int | Literal["auto"] = "auto",
        window: int | Literal["auto"] = "auto",
        allow_repeats: bool = False,
    ) -> None:
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.weights = _whole_numbers(weights or [1.0] * len(counts))
        self.num_samples = sum(int(counts_S.sum()) for counts_S in counts)
        if not allow_repeats:
            self._check_sizes(counts, names or [str(number) for number in range(len(counts))])
        self.lanes = _MAX_AUTO_LANES if lanes == "auto" else lanes
        if len(counts) == 1:
            self.lanes = resolve_lanes(lanes, global_batch_size=global_batch_size, num_samples=self.num_samples)
        lanes_of = self._lanes_of_sources(counts)
        self.window = resolve_window(window, sum(lanes_of))
        self.sources = tuple(
            Lanes(counts_S, lanes=number, window=self.window, seed=_source_seed(seed, source))
            for source, (counts_S, number) in enumerate(zip(counts, lanes_of, strict=True))
        )
        self._first_id = [0, *accumulate(source.num_samples for source in self.sources)]
        self._lanes_S = np.array([source.lanes for source in self.sources])
        self._stretches: OrderedDict[tuple[int, int, int], Addresses] = OrderedDict()

    def _check_sizes(self, counts: Sequence[np.ndarray], names: Sequence[str]) -> None:
        total = sum(self.weights)
        for counts_S, name, weight in zip(counts, names, self.weights, strict=True):
            num_samples, slots = int(counts_S.sum()), self.global_batch_size * weight // total
            if num_samples < slots:
                of_source = f"data source {name}" if len(counts) > 1 else "the data"
                its_share = f", of which {slots} are its share" if len(counts) > 1 else ""
                raise InputError(
                    f"{of_source} holds {num_samples} samples, fewer than a global batch of {self.global_batch_size} "
                    f"pictures{its_share}; lower global_batch_size, add shards, or set data.allow_repeats=true"
                )

    def _lanes_of_sources(self, counts: Sequence[np.ndarray]) -> list[int]:
        if len(counts) == 1:
            return [self.lanes]
        total = sum(self.weights)
        slots = [-(-self.global_batch_size * weight // total) for weight in self.weights]
        return [min(self.lanes, most, int(counts_S.sum())) for most, counts_S in zip(slots, counts, strict=True)]

    def samples_of_source(self, batch_index: int) -> list[int]:
        """How many pictures each source has in the global batches before this one."""
        return shares(batch_index * self.global_batch_size, self.weights)

    def addresses(self, batch_index: int, slots: slice = slice(None)) -> Addresses:
        """What stands in `slots` (of 0 to G-1) of global batch `batch_index`, in their order."""
        start, stop, _ = slots.indices(self.global_batch_size)
        num_batches = min(_BATCHES_AT_ONCE, max(1, _SLOTS_AT_ONCE // max(stop - start, 1)))
        number, batch = divmod(batch_index, num_batches)
        key = (number, start, stop)
        if key not in self._stretches:
            first = number * num_batches
            layouts = [self._layout(index, range(start, stop)) for index in range(first, first + num_batches)]
            self._stretches[key] = self._locate(_Layout(*map(np.concatenate, zip(*layouts, strict=True))))
            if len(self._stretches) > _CACHED_STRETCHES:
                self._stretches.popitem(last=False)
        self._stretches.move_to_end(key)
        return self._stretches[key][batch * (stop - start) : (batch + 1) * (stop - start)]

    def _locate(self, layout: _Layout) -> Addresses:
        source_B, lane_B, position_B = layout
        others = np.empty((5, len(source_B)), dtype=np.int64)
        for number, source in enumerate(self.sources):
            here = np.flatnonzero(source_B == number)
            if len(here):
                others[:, here] = source.locate(lane_B[here], position_B[here])
                others[4, here] += self._first_id[number]
        return Addresses(source_B, lane_B, *others)

    def replacement(self, batch_index: int, slot: int, attempt: int) -> Address | None:
        """The sample `attempt` places further in the lane of `slot`; None beyond the horizon."""
        assert attempt >= 1
        number, lane, position = (int(column_B[0]) for column_B in self._layout(batch_index, range(slot, slot + 1)))
        source = self.sources[number]
        if attempt > source.horizon:
            return None
        located = source.locate(np.array([lane]), np.array([position + attempt]))
        epoch, _, shard, index, sample = (int(column_B[0]) for column_B in located)
        return Address(Place(number, shard, index), epoch, self._first_id[number] + sample)

    def batches_per_window(self) -> int:
        """The most global batches over which the slots of one window are spread."""
        total = sum(self.weights)
        places = (
            -(-source.window * source.lanes * total // (self.global_batch_size * weight))
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        return 1 + max(places)

    def _layout(self, batch_index: int, slots: range) -> _Layout:
        """What stands in these slots, by arithmetic on them alone: a batch may have 65,536, a loader process reads few.

        The i-th of a source's n pictures is due at (2 i + 1) / 2 n of the batch, and pictures stand as they are due. Of
        those due in the first x of a batch each source has n x to within 1/2, so a picture's slot is known to within S.
        """
        first_S = np.array(self.samples_of_source(batch_index))
        num_S = np.array(self.samples_of_source(batch_index + 1)) - first_S
        reach = len(self.sources)
        low_S = np.maximum(num_S * (slots.start - reach) // self.global_batch_size, 0)
        high_S = np.minimum(-(-num_S * (slots.stop + reach) // self.global_batch_size), num_S)
        near_S = high_S - low_S
        source_N = np.repeat(np.arange(len(self.sources)), near_S)
        nth_N = np.arange(len(source_N)) + np.repeat(low_S - np.cumsum(near_S) + near_S, near_S)
        due_N = (2 * nth_N + 1) / (2 * num_S[source_N])
        skipped = int(low_S.sum())
        taken_B = np.argsort(due_N, kind="stable")[slots.start - skipped : slots.stop - skipped]
        source_B = source_N[taken_B]
        return _Layout(source_B, *_by_lane(nth_N[taken_B], source_B, first_S, num_S, self._lanes_S))


def _by_lane(
    nth_B: np.ndarray, source_B: np.ndarray, first_S: np.ndarray, num_S: np.ndarray, lanes_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lane and position of the n-th of a source's pictures in a batch, where they stand lane by lane.

    The batch has pictures k = first to first + num - 1 of the source; k is place k // lanes of lane k mod lanes. So all
    lanes have num // lanes of them, and the num mod lanes that follow first mod lanes, round the circle, one more.
    """
    each_S, extra_S = np.divmod(num_S, lanes_S)
    start_S = first_S % lanes_S
    wraps_S = start_S + extra_S > lanes_S
    # three runs of lanes, of which the outer two have equally many pictures
    second_S = np.where(wraps_S, start_S + extra_S - lanes_S, start_S)
    third_S = np.where(wraps_S, start_S, start_S + extra_S)
    outer_S, middle_S = each_S + wraps_S, each_S + ~wraps_S
    before_second_S = second_S * outer_S
    before_third_S = before_second_S + (third_S - second_S) * middle_S
    run_B = (nth_B >= before_second_S[source_B]).astype(int) + (nth_B >= before_third_S[source_B])
    run_lane_S3 = np.stack([np.zeros_like(second_S), second_S, third_S], axis=1)
    before_S3 = np.stack([np.zeros_like(second_S), before_second_S, before_third_S], axis=1)
    size_S3 = np.stack([outer_S, middle_S, outer_S], axis=1)
    lane_B, within_B = np.divmod(nth_B - before_S3[source_B, run_B], size_S3[source_B, run_B])
    lane_B += run_lane_S3[source_B, run_B]
    lanes_B, start_B = lanes_S[source_B], start_S[source_B]
    position_B = (first_S[source_B] + (lane_B - start_B) % lanes_B) // lanes_B + within_B
    return lane_B, position_B


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """The weights as they were written, in whole numbers of the same proportions."""
    exact = [Fraction(str(weight)) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return [int(weight * unit) for weight in exact]


def _source_seed(seed: int, source: int) -> int:
    """Sources draw independently; the first draws as it would alone."""
    return seed if source == 0 else counter_random.key(seed, Stream.SOURCE, source)
