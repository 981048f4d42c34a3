"""Every remote sample is announced once, whole shuffle blocks at a time, before it is read and not much earlier."""

import numpy as np
import pytest

from clipx.data.order import DataOrder
from clipx.data.prefetch_schedule import PrefetchSchedule


class Shards:
    """Writes down what it is told."""

    def __init__(self, remote_sources=frozenset({0, 1})):
        self.remote_sources = remote_sources
        self.expected = []
        self.forgotten = []

    def expect(self, refs, *, until):
        self.expected.append((list(refs), until))

    def forget(self, before):
        self.forgotten.append(before)


@pytest.fixture
def order():
    return DataOrder([np.array([300, 500]), np.array([400])], weights=[3, 1], global_batch_size=16, seed=1, window=10)


def run(order, *, slots, start, stop, sources=frozenset({0, 1}), depth=2):
    """(announced during batch, refs, until), and the refs read in each batch."""
    shards, announced, read = Shards(sources), [], {}
    schedule = PrefetchSchedule(order, shards, slots=slots, read_ahead_batches=depth)
    for batch_index in range(start, stop):
        schedule.announce(batch_index)
        announced += [(batch_index, *item) for item in shards.expected]
        shards.expected = []
        read[batch_index] = list(order.sample_refs(batch_index, slice(slots.start, slots.stop)))
    assert shards.forgotten == list(range(start, stop))
    return announced, read


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("slots", [range(16), range(5, 11)])
def test_each_sample_is_announced_once_before_it_is_read_and_kept_until_then(order, slots, start):
    announced, read = run(order, slots=slots, start=start, stop=start + 40)
    when = [(ref, batch, until) for batch, refs, until in announced for ref in refs]
    for batch_index, refs in read.items():
        for ref in refs:
            told = [batch for other, batch, until in when if other == ref and batch <= batch_index < until]
            assert len(told) == 1


def test_blocks_come_whole_and_shortly_before_their_first_use(order):
    announced, read = run(order, slots=range(16), start=0, stop=40)
    for batch, refs, _ in announced:
        assert len({(ref.source, ref.shard) for ref in refs}) <= 2  # a block crosses at most one border
        first_use = next((t for t, used in read.items() if t >= batch and set(refs) & set(used)), None)
        assert first_use is None or first_use <= batch + 2
    full = [len(refs) for batch, refs, _ in announced if batch > 0]
    assert np.mean(full) > 7


def test_local_sources_are_not_announced(order):
    announced, _ = run(order, slots=range(16), start=0, stop=10, sources=frozenset({1}))
    assert {ref.source for _, refs, _ in announced for ref in refs} == {1}


def test_a_jump_starts_anew(order):
    shards = Shards()
    schedule = PrefetchSchedule(order, shards, slots=range(16), read_ahead_batches=2)
    schedule.announce(3)
    shards.expected = []
    schedule.announce(90)
    told = {ref for refs, _ in shards.expected for ref in refs}
    assert set(order.sample_refs(90)) <= told
