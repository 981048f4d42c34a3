"""The data order: equal to its definition, and the same for every number of ranks, workers and starting batches."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.data_order import global_batch, lane_order, mixed_batch

from clipx.data.order import DataOrder, shares

COUNTS = {
    "many shards": [7, 3, 11, 5, 0, 13, 2, 9, 8, 6, 10, 4, 1, 12],
    "fewer shards than lanes": [50, 47],
    "one shard": [97],
    "hardly larger than the batch": [6, 7],
}


def divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def orders(draw):
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda c: sum(c) >= 2))
    size = draw(st.integers(2, min(24, sum(counts))))
    lanes = draw(st.sampled_from([d for d in divisors(size) if d <= sum(counts)]))
    return DataOrder(
        [np.array(counts, dtype=np.int64)],
        global_batch_size=size,
        seed=draw(st.integers(0, 2**64 - 1)),
        lanes=lanes,
        window=draw(st.integers(1, 30)),
    )


def read_epoch(order, epoch):
    """Every sample id of an epoch, lane by lane, through `DataOrder.sample_refs`."""
    (source,) = order.sources
    per_lane = order.global_batch_size // source.lanes
    places = range(epoch * source.lane_length, (epoch + 1) * source.lane_length)
    first, last = places.start // per_lane, places[-1] // per_lane
    read = [ref for t in range(first, last + 1) for ref in order.sample_refs(t)]
    return [ref.sample_id for ref in read if ref.epoch == epoch]


@settings(max_examples=60)
@given(orders(), st.integers(0, 40))
def test_order_equals_the_definition(order, batch_index):
    expected = global_batch(
        order.sources[0].counts_S.tolist(),
        seed=order.seed,
        lanes=order.sources[0].lanes,
        window=order.window,
        global_batch_size=order.global_batch_size,
        batch_index=batch_index,
    )
    assert order.sample_refs(batch_index).sample_id_B.tolist() == expected


@settings(max_examples=60)
@given(orders(), st.integers(0, 3))
def test_an_epoch_reads_every_sample_once_but_fewer_than_lanes(order, epoch):
    read = read_epoch(order, epoch)
    assert len(read) == len(set(read))
    assert order.num_samples - len(read) == order.num_samples % order.sources[0].lanes < order.sources[0].lanes


MIXED_WEIGHTS = st.sampled_from([1, 2, 0.1, 0.333333333333, 7.5, 1e-9, 1e9])


@st.composite
def mixtures(draw):
    """The arguments of a mixture's order."""
    number = draw(st.sampled_from([1, 2, 3, 5, 20]))
    counts = [draw(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(sum)) for _ in range(number)]
    return {
        "counts": [np.array(of_source, dtype=np.int64) for of_source in counts],
        "weights": draw(st.lists(MIXED_WEIGHTS, min_size=number, max_size=number)),
        "global_batch_size": draw(st.integers(2, 24)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "window": draw(st.integers(1, 30)),
        "allow_repeats": True,
    }


@settings(max_examples=60)
@given(mixtures(), st.data())
def test_any_split_of_the_slots_reads_the_same_batch(arguments, data):
    order = DataOrder(**arguments)
    batch_index = data.draw(st.integers(0, 20))
    whole = order.sample_refs(batch_index)
    cuts = sorted(data.draw(st.lists(st.integers(0, order.global_batch_size), max_size=5)))
    ends = [0, *cuts, order.global_batch_size]
    fresh = DataOrder(**arguments)
    parts = [fresh.sample_refs(batch_index, slice(*part)) for part in itertools.pairwise(ends)]
    for column in vars(whole):
        np.testing.assert_array_equal(np.concatenate([vars(part)[column] for part in parts]), vars(whole)[column])


@settings(max_examples=60)
@given(mixtures(), st.integers(0, 10**6))
def test_a_mixture_equals_the_definition(arguments, batch_index):
    order = DataOrder(**arguments)
    layout = order._layout(batch_index, range(order.global_batch_size))
    expected = mixed_batch(
        [source.lanes for source in order.sources],
        [Fraction(str(weight)) for weight in arguments["weights"]],
        global_batch_size=order.global_batch_size,
        batch_index=batch_index,
    )
    assert list(zip(*(column.tolist() for column in layout), strict=True)) == expected


WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)


@settings(max_examples=200)
@given(WEIGHTS, st.integers(0, 10**12), st.integers(1, 10**6))
def test_every_range_of_slots_holds_the_proportions(weights, start, length):
    total = sum(weights)
    before, after = shares(start, weights), shares(start + length, weights)
    assert sum(after) == start + length
    limit = 0.5 if len(weights) == 2 else 2
    for first, last, weight in zip(before, after, weights, strict=True):
        assert abs(last * total - (start + length) * weight) <= limit * total
        assert abs((last - first) * total - length * weight) <= 2 * limit * total


@settings(max_examples=100)
@given(WEIGHTS, st.integers(0, 10**12))
def test_each_slot_belongs_to_one_source(weights, slot):
    steps = [last - first for first, last in zip(shares(slot, weights), shares(slot + 1, weights), strict=True)]
    assert sorted(steps) == [0] * (len(weights) - 1) + [1]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_left_out_samples_differ_between_epochs(counts):
    order = DataOrder([np.array(counts, dtype=np.int64)], global_batch_size=12, seed=1, lanes=12)
    everything = set(range(order.num_samples))
    left_out = [frozenset(everything - set(read_epoch(order, epoch))) for epoch in range(6)]
    assert {len(ids) for ids in left_out} == {order.num_samples % 12} != {0}
    assert len(set(left_out)) > 3


def test_shuffle_reorders_within_windows_only():
    counts, options = [400], {"seed": 2, "lanes": 4}
    plain = [lane_order(counts, **options, window=1, epoch=0, lane=lane) for lane in range(4)]
    mixed = [lane_order(counts, **options, window=10, epoch=0, lane=lane) for lane in range(4)]
    assert plain != mixed
    for lane, other in zip(plain, mixed, strict=True):
        for start in range(0, 100, 10):
            assert sorted(lane[start : start + 10]) == sorted(other[start : start + 10])
