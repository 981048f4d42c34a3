"""The data order in plain Python loops, straight from the definition at the top of clipx/data/plan.py."""

from collections.abc import Sequence

from clipx import counter_random
from clipx.counter_random import Stream


def signed_hash(seed: int, stream: Stream, *keys: int) -> int:
    return int(counter_random.fold(counter_random.start(seed, stream), *keys)[0])


def lane_stretch(counts: Sequence[int], *, seed: int, lanes: int, window: int, epoch: int, lane: int) -> list[int]:
    """Sample ids of one lane in one epoch, in reading order."""
    order = sorted(range(len(counts)), key=lambda shard: signed_hash(seed, Stream.SHARD_ORDER, epoch, shard))
    line = [sum(counts[:shard]) + index for shard in order for index in range(counts[shard])]
    origin = (signed_hash(seed, Stream.ROTATION, epoch) % 2**64 // 2) % len(line)
    circle = line[origin:] + line[:origin]
    length = len(line) // lanes
    stretch = circle[lane * length : (lane + 1) * length]
    shuffled = []
    for number, start in enumerate(range(0, length, window)):
        part = stretch[start : start + window]
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
            stretch = lane_stretch(counts, seed=seed, lanes=lanes, window=window, epoch=place // length, lane=lane)
            ids.append(stretch[place % length])
    return ids
