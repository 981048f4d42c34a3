"""The data order: which sample stands in which slot of which global batch, as a pure function of the seed.

Nothing is read here and nothing is remembered. `order_of_source.py` is the order of one source, `samples.py` reads
along it. A slot is a position in the global batch and holds one image; global batch t has the slots t G to
(t + 1) G - 1 of the run.

- Mixing. Of the first n slots of a run, source s has N_s(n): the weights are divided again and again into two groups of
  neighbours as equal as possible, and the first group of each takes round(n x its share), the second the rest. N_s(n)
  grows by at most one from slot to slot and stays within 2 of n times its share (1/2 for two sources), so any range of
  batches holds the proportions to within 4 images (1 for two sources), anywhere in the run.
- Lanes. Image k of source s is at position k // L_s of its lane k mod L_s.
- Slots. Within a batch, a source's images stand lane by lane, so that ranks and loader processes keep their lanes; the
  sources are spread evenly between one another, so that every rank has its share of each. A single source whose L
  divides G gives lane l the slots [l G / L, (l + 1) G / L).

Shape suffixes: B slots asked for, G slots of a batch, S sources, L lanes, N images of all sources in a batch.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from itertools import accumulate
from math import isqrt, lcm
from typing import Literal, NamedTuple

import numpy as np

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.order_of_source import SourceOrder
from clipx.data.sample_refs import SampleRef, SampleRefs
from clipx.errors import InputError

# Simulated on 2,000 shards of one topic each (benchmarks/data_order.py): a pair in a batch of 4,096, 16,384 or 65,536
# meets 1.1, 7.4 or 33 of its own shard; independent draws 2.0, 8.2, 33; with 1,024 lanes of blocks of 64 3.0, 15, 63.
_MAX_AUTO_LANES = 4096
_AUTO_SHUFFLED = 65_536  # samples under shuffle in all lanes together
_MIN_AUTO_WINDOW = 16
_BATCHES_AT_ONCE, _SLOTS_AT_ONCE = 16, 4096  # the most: numpy takes as long for ten slots as for hundreds
_CACHED_RANGES = 4  # of batches: what is read and what is prefetched are at different ones


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
    """w; auto: all lanes together shuffle 65,536 samples, each at least 16."""
    return max(_MIN_AUTO_WINDOW, _AUTO_SHUFFLED // lanes) if window == "auto" else window


def shares(slots: int, weights: Sequence[int]) -> list[int]:
    """N_s(n): how many of the first `slots` slots of a run each source has."""
    if len(weights) == 1:
        return [slots]
    sums = list(accumulate(weights))
    total = sums[-1]
    cut = min(range(1, len(weights)), key=lambda i: abs(2 * sums[i - 1] - total))
    first = (2 * slots * sums[cut - 1] + total) // (2 * total)
    return shares(first, weights[:cut]) + shares(slots - first, weights[cut:])


class _Layout(NamedTuple):
    """The position in a lane that stands in each of B slots."""

    source_B: np.ndarray
    lane_B: np.ndarray
    position_B: np.ndarray


class DataOrder:
    """The order of a run's samples.

    Args:
        counts: for each source int64 (S,), samples of each shard in the index's order.
        weights: of the sources; None means all equal.
        names: of the sources, for messages; None means their numbers.
        global_batch_size: G, images of a global batch.
        lanes: L or auto; a run keeps the number that it began with. In a mixture it is the maximum for each source.
        window: w, samples of a shuffle block, or auto; a run keeps the number that it began with.
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
        self.weights = _integers(weights or [1.0] * len(counts))
        sizes = [int(counts_S.sum()) for counts_S in counts]
        self.num_samples = sum(sizes)
        if not allow_repeats:
            self._check_sizes(sizes, names or [str(number) for number in range(len(counts))])
        self.lanes = _MAX_AUTO_LANES if lanes == "auto" else lanes
        if len(counts) == 1:
            self.lanes = resolve_lanes(lanes, global_batch_size=global_batch_size, num_samples=self.num_samples)
        lanes_per_source = self._lanes_per_source(sizes)
        self.window = resolve_window(window, sum(lanes_per_source))
        self.sources = tuple(
            SourceOrder(
                counts_S,
                lanes=source_lanes,
                window=self.window,
                seed=_source_seed(seed, source),
                number=source,
                first_id=sum(sizes[:source]),
            )
            for source, (counts_S, source_lanes) in enumerate(zip(counts, lanes_per_source, strict=True))
        )
        self._cached: OrderedDict[tuple[int, int, int], SampleRefs] = OrderedDict()

    def _check_sizes(self, sizes: Sequence[int], names: Sequence[str]) -> None:
        total = sum(self.weights)
        for num_samples, name, weight in zip(sizes, names, self.weights, strict=True):
            slots = self.global_batch_size * weight // total
            if num_samples < slots:
                source = f"data source {name}" if len(sizes) > 1 else "the data"
                its_share = f", of which {slots} are its share" if len(sizes) > 1 else ""
                raise InputError(
                    f"{source} holds {num_samples} samples, fewer than a global batch of {self.global_batch_size} "
                    f"pictures{its_share}; lower global_batch_size, add shards, or set data.allow_repeats=true"
                )

    def _lanes_per_source(self, sizes: Sequence[int]) -> list[int]:
        if len(sizes) == 1:
            return [self.lanes]
        total = sum(self.weights)
        slots = [-(-self.global_batch_size * weight // total) for weight in self.weights]
        return [min(self.lanes, *limits) for limits in zip(slots, sizes, strict=True)]

    def samples_of_source(self, batch_index: int) -> list[int]:
        """How many images each source has in the global batches before this one."""
        return shares(batch_index * self.global_batch_size, self.weights)

    def sample_refs(self, batch_index: int, slots: slice = slice(None)) -> SampleRefs:
        """The samples in `slots` (of 0 to G-1) of global batch `batch_index`, in their order."""
        start, stop, _ = slots.indices(self.global_batch_size)
        num_batches = min(_BATCHES_AT_ONCE, max(1, _SLOTS_AT_ONCE // max(stop - start, 1)))
        number, batch = divmod(batch_index, num_batches)
        key = (number, start, stop)
        if key not in self._cached:
            first = number * num_batches
            layouts = [self._layout(index, range(start, stop)) for index in range(first, first + num_batches)]
            self._cached[key] = self._locate(_Layout(*map(np.concatenate, zip(*layouts, strict=True))))
            if len(self._cached) > _CACHED_RANGES:
                self._cached.popitem(last=False)
        self._cached.move_to_end(key)
        return self._cached[key][batch * (stop - start) : (batch + 1) * (stop - start)]

    def _locate(self, layout: _Layout) -> SampleRefs:
        source_B, lane_B, position_B = layout
        result = SampleRefs(*np.empty((len(fields(SampleRefs)), len(source_B)), dtype=np.int64))
        for number, source in enumerate(self.sources):
            here = np.flatnonzero(source_B == number)
            if len(here):
                refs = source.locate(lane_B[here], position_B[here])
                for column_B, values in zip(result.columns(), refs.columns(), strict=True):
                    column_B[here] = values
        return result

    def replacement(self, batch_index: int, slot: int, attempt: int) -> SampleRef | None:
        """The sample `attempt` positions further in the lane of `slot`, or None beyond `max_replacement_distance`."""
        assert attempt >= 1
        source_B, lane_B, position_B = self._layout(batch_index, range(slot, slot + 1))
        source = self.sources[int(source_B[0])]
        if attempt > source.max_replacement_distance:
            return None
        (result,) = source.locate(lane_B, position_B + attempt)
        return result

    def batches_per_block(self) -> int:
        """The maximum number of global batches over which the samples of one shuffle block are spread."""
        total = sum(self.weights)
        spans = (
            -(-source.window * source.lanes * total // (self.global_batch_size * weight))
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        return 1 + max(spans)

    def _layout(self, batch_index: int, slots: range) -> _Layout:
        """The lanes and positions in `slots` of a batch, without those in the other slots, which may be 65,536.

        Image i of a source's n images is due at (2 i + 1) / 2 n of the batch, and slots are filled in the order of due
        times, equal ones in the order of the sources. With G = 8 slots, source a with n = 6 and source b with n = 2:

            due    1/12  3/12  3/12  5/12  7/12  9/12  9/12  11/12
            image  a0    a1    b0    a2    a3    a4    b1    a5
            slot   0     1     2     3     4     5     6     7

        Of the images due in the first x of a batch each source has n x to within 1/2. So the image in slot k of S
        sources is due between (k - S) / G and (k + S) / G, and only the images that are due there have to be sorted.
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
        source_B, nth_B = source_N[taken_B], nth_N[taken_B]
        lane_B, position_B = np.empty_like(nth_B), np.empty_like(nth_B)
        for s in np.unique(source_B):
            here = source_B == s
            lane_B[here], position_B[here] = _by_lane(nth_B[here], first_S[s], num_S[s], self.sources[s].lanes)
        return _Layout(source_B, lane_B, position_B)


def _by_lane(nth_B: np.ndarray, first: int, num: int, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Lane and position of the n-th of a source's images in a batch, int64 (B,) both; they stand lane by lane.

    The batch has the images k = first to first + num - 1 of the source, and image k is at position k // lanes of lane
    k mod lanes. With lanes = 4, first = 6 and num = 7:

        k         8  12  9  6  10  7  11
        lane      0  0   1  2  2   3  3
        position  2  3   2  1  2   1  2
        n-th      0  1   2  3  4   5  6

    So the lanes are entered in the order 2, 3, 0, 1, and the first num mod lanes of this order have one image more.
    """
    turn_L = (np.arange(lanes) - first) % lanes  # of each lane in that order
    count_L = num // lanes + (turn_L < num % lanes)
    end_L = np.cumsum(count_L)
    lane_B = np.searchsorted(end_L, nth_B, side="right")
    before_B = (end_L - count_L)[lane_B]
    return lane_B, (first + turn_L[lane_B]) // lanes + nth_B - before_B


def _integers(weights: Sequence[float]) -> list[int]:
    """The weights as they were written, as integers of the same proportions."""
    exact = [Fraction(str(weight)) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return [int(weight * unit) for weight in exact]


def _source_seed(seed: int, source: int) -> int:
    """Sources draw independently; the first draws as it would alone."""
    return seed if source == 0 else counter_random.key(seed, Stream.SOURCE, source)
