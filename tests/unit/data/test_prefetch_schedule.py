"""Every remote sample is announced once, whole windows at a time, before it is read and not much earlier."""

import numpy as np
import pytest

from clipx.data.order import Plan
from clipx.data.prefetch_schedule import LookAhead


class Shards:
    """Writes down what it is told."""

    def __init__(self, remote_sources=frozenset({0, 1})):
        self.remote_sources = remote_sources
        self.expected = []
        self.forgotten = []

    def expect(self, places, *, until):
        self.expected.append((list(places), until))

    def forget(self, before):
        self.forgotten.append(before)


@pytest.fixture
def plan():
    return Plan([np.array([300, 500]), np.array([400])], weights=[3, 1], global_batch_size=16, seed=1, window=10)


def run(plan, *, slots, start, stop, sources=frozenset({0, 1}), depth=2):
    """(announced during batch, places, until), and the places read in each batch."""
    shards, announced, read = Shards(sources), [], {}
    look_ahead = LookAhead(plan, shards, slots=slots, read_ahead_batches=depth)
    for batch_index in range(start, stop):
        look_ahead.before(batch_index)
        announced += [(batch_index, *item) for item in shards.expected]
        shards.expected = []
        read[batch_index] = [a.place for a in plan.addresses(batch_index, slice(slots.start, slots.stop))]
    assert shards.forgotten == list(range(start, stop))
    return announced, read


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("slots", [range(16), range(5, 11)])
def test_each_sample_is_announced_once_before_it_is_read_and_kept_until_then(plan, slots, start):
    announced, read = run(plan, slots=slots, start=start, stop=start + 40)
    when = [(place, batch, until) for batch, places, until in announced for place in places]
    for batch_index, places in read.items():
        for place in places:
            told = [batch for other, batch, until in when if other == place and batch <= batch_index < until]
            assert len(told) == 1


def test_windows_come_whole_and_shortly_before_their_first_use(plan):
    announced, read = run(plan, slots=range(16), start=0, stop=40)
    for batch, places, _ in announced:
        assert len({(place.source, place.shard) for place in places}) <= 2  # a window crosses at most one border
        first_use = next((t for t, used in read.items() if t >= batch and set(places) & set(used)), None)
        assert first_use is None or first_use <= batch + 2
    full = [len(places) for batch, places, _ in announced if batch > 0]
    assert np.mean(full) > 7


def test_local_sources_are_not_announced(plan):
    announced, _ = run(plan, slots=range(16), start=0, stop=10, sources=frozenset({1}))
    assert {place.source for _, places, _ in announced for place in places} == {1}


def test_a_jump_starts_anew(plan):
    shards = Shards()
    look_ahead = LookAhead(plan, shards, slots=range(16), read_ahead_batches=2)
    look_ahead.before(3)
    shards.expected = []
    look_ahead.before(90)
    told = {place for places, _ in shards.expected for place in places}
    assert {a.place for a in plan.addresses(90)} <= told
