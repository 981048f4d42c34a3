"""The data order in plain Python loops, straight from the definitions at the top of order_of_source.py and order.py."""

from collections.abc import Sequence
from fractions import Fraction

from clipx import counter_random
from clipx.counter_random import Stream


def signed_hash(seed: int, stream: Stream, *keys: int) -> int:
    return int(counter_random.fold(counter_random.start(seed, stream), *keys)[0])


def lane_order(counts: Sequence[int], *, seed: int, lanes: int, window: int, epoch: int, lane: int) -> list[int]:
    """Sample ids of one lane in one epoch, in reading order."""
    order = sorted(range(len(counts)), key=lambda shard: signed_hash(seed, Stream.SHARD_ORDER, epoch, shard))
    line = [sum(counts[:shard]) + index for shard in order for index in range(counts[shard])]
    origin = (signed_hash(seed, Stream.ROTATION, epoch) % 2**64 // 2) % len(line)
    circle = line[origin:] + line[:origin]
    length = len(line) // lanes
    samples = circle[lane * length : (lane + 1) * length]
    shuffled = []
    for number, start in enumerate(range(0, length, window)):
        part = samples[start : start + window]
        order = sorted(range(len(part)), key=lambda i: signed_hash(seed, Stream.WINDOW, epoch, lane, number, i))
        shuffled += [part[i] for i in order]
    return shuffled


def global_batch(
    counts: Sequence[int], *, seed: int, lanes: int, window: int, global_batch_size: int, batch_index: int
) -> list[int]:
    """Sample ids of one global batch, slot by slot."""
    length = sum(counts) // lanes
    slots_per_lane = global_batch_size // lanes
    ids = []
    for lane in range(lanes):
        for place in range(batch_index * slots_per_lane, (batch_index + 1) * slots_per_lane):
            order = lane_order(counts, seed=seed, lanes=lanes, window=window, epoch=place // length, lane=lane)
            ids.append(order[place % length])
    return ids


def shares(slots: int, weights: Sequence[Fraction]) -> list[int]:
    """How many of the first slots each source has: groups of neighbours, parted as equally as possible."""
    if len(weights) == 1:
        return [slots]
    cuts = range(1, len(weights))
    cut = min(cuts, key=lambda place: (abs(sum(weights[:place]) - sum(weights[place:])), place))
    exact = slots * sum(weights[:cut]) / sum(weights)
    first = int(exact + Fraction(1, 2))
    return shares(first, weights[:cut]) + shares(slots - first, weights[cut:])


def mixed_batch(
    lanes: Sequence[int], weights: Sequence[Fraction], *, global_batch_size: int, batch_index: int
) -> list[tuple[int, int, int]]:
    """(source, lane, place of the lane) of each slot of one global batch."""
    before = shares(batch_index * global_batch_size, weights)
    after = shares((batch_index + 1) * global_batch_size, weights)
    entries = []
    for source, number in enumerate(lanes):
        pictures = sorted(range(before[source], after[source]), key=lambda k: (k % number, k))
        for nth, k in enumerate(pictures):
            entries.append((Fraction(2 * nth + 1, 2 * len(pictures)), source, k % number, k // number))
    return [(source, lane, place) for _, source, lane, place in sorted(entries)]
