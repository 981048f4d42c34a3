"""The order's arithmetic at its edges; that it reads everything once is in tests/property/test_data_order.py."""

import tracemalloc

import numpy as np
import pytest
from reference.data_order import lane_order

from clipx.data.order import DataOrder, resolve_lanes, resolve_window
from clipx.errors import InputError


def make_order(counts, **options):
    return DataOrder([np.array(counts, dtype=np.int64)], **{"global_batch_size": 8, "seed": 3, **options})


@pytest.mark.parametrize(
    ("batch", "samples", "lanes"),
    [(8192, 10**9, 4096), (4096, 1000, 512), (9000, 10**6, 3000), (7, 3, 1), (4099, 10**6, 1), (12, 12, 12)],
)
def test_auto_lanes_are_the_largest_divisor_that_fits(batch, samples, lanes):
    assert resolve_lanes("auto", global_batch_size=batch, num_samples=samples) == lanes


@pytest.mark.parametrize(
    ("lanes", "samples", "message"),
    [
        (5, 100, "data.lanes=5 does not divide the 12 pictures of a global batch; nearest that fit: 4, 6, or auto"),
        (24, 100, "data.lanes=24 does not divide the 12 pictures of a global batch; nearest that fit: 12, or auto"),
        (12, 10, "data.lanes=12 is more than the 10 samples; nearest that fit: 6, or auto"),
    ],
)
def test_lanes_that_do_not_fit_are_named_with_the_nearest(lanes, samples, message):
    with pytest.raises(InputError) as caught:
        resolve_lanes(lanes, global_batch_size=12, num_samples=samples)
    assert str(caught.value) == message


def test_window_shuffles_65536_samples_in_all_lanes_but_never_fewer_than_16_in_one():
    assert [resolve_window("auto", lanes) for lanes in (1, 64, 4096, 8192)] == [65536, 1024, 16, 16]
    assert resolve_window(7, 64) == 7


def test_fewer_samples_than_the_batch_need_consent():
    with pytest.raises(
        InputError, match=r"the data holds 7 samples, fewer than a global batch of 8 .*; .*data.allow_repeats=true"
    ):
        make_order([3, 4])
    order = make_order([3, 4], allow_repeats=True)
    (source,) = order.sources
    assert (source.lanes, source.lane_length) == (4, 1)
    for batch_index in range(3):
        epochs = order.sample_refs(batch_index).epoch_B
        assert sorted(set(epochs.tolist())) == [2 * batch_index, 2 * batch_index + 1]


def test_addresses_name_shard_and_index_of_the_sample_id():
    counts = [3, 0, 5, 0, 0, 9, 1, 0]
    order = make_order(counts, lanes=2, window=4)
    where = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    for batch_index in range(9):
        refs = order.sample_refs(batch_index)
        assert all(where[a.sample_id] == (a.shard, a.index) for a in refs)
        assert {column.dtype for column in vars(refs).values()} == {np.dtype(np.int64)}


def test_replacement_is_the_place_so_far_ahead_in_the_lane_across_epochs():
    options = {"seed": 5, "lanes": 2, "window": 4}
    counts = [60, 161]
    order = make_order(counts, **options)
    slot, batch_index = 6, 3  # place 2 of lane 1's four
    stream = [(epoch, sample) for epoch in range(3) for sample in lane_order(counts, **options, epoch=epoch, lane=1)]
    place = batch_index * 4 + 2
    (source,) = order.sources
    found = [order.replacement(batch_index, slot, attempt) for attempt in range(1, source.max_replacement_distance + 1)]
    assert source.max_replacement_distance == source.lane_length == 110
    assert [(a.epoch, a.sample_id) for a in found] == stream[place + 1 : place + 1 + source.max_replacement_distance]
    assert order.replacement(batch_index, slot, source.max_replacement_distance + 1) is None


def test_half_a_billion_samples_are_ordered_without_state_per_sample():
    """50,000 shards, counts alone."""
    counts = np.full(50_000, 10_000, dtype=np.int64)
    tracemalloc.start()
    order = DataOrder([counts], global_batch_size=4096, seed=0)
    refs = order.sample_refs(123_456)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (order.sources[0].lanes, order.window, len(set(refs.sample_id_B.tolist()))) == (4096, 16, 4096)
    assert peak < 32 * 2**20


def test_weights_are_taken_as_they_were_written():
    order = DataOrder([np.array([100])] * 3, weights=[0.1, 0.2, 0.7], global_batch_size=10, seed=0)
    assert [order.samples_of_source(t) for t in range(3)] == [[0, 0, 0], [1, 2, 7], [2, 4, 14]]


def test_a_mixture_spreads_its_sources_over_the_slots():
    order = DataOrder([np.array([300]), np.array([100])], weights=[3, 1], global_batch_size=16, seed=0)
    assert [source.lanes for source in order.sources] == [12, 4]
    for batch_index in range(5):
        assert order.sample_refs(batch_index).source_B.tolist() == [0, 0, 1, 0] * 4


def test_sources_draw_independently_and_the_first_as_it_would_alone():
    counts = [np.array([40, 30, 50])] * 2
    mixed = DataOrder(counts, global_batch_size=24, seed=3, lanes=12)
    alone = DataOrder(counts[:1], global_batch_size=12, seed=3, lanes=12, window=mixed.window)
    for batch_index in range(15):
        refs = mixed.sample_refs(batch_index)
        first, second = (refs.sample_id_B[refs.source_B == source] for source in (0, 1))
        assert first.tolist() == alone.sample_refs(batch_index).sample_id_B.tolist()
        assert min(second) >= 120
        assert (second - 120).tolist() != first.tolist()


def test_a_source_smaller_than_its_share_is_named():
    counts = [np.array([100]), np.array([3])]
    with pytest.raises(InputError, match=r"data source little holds 3 samples, .* of which 4 are its share; lower"):
        DataOrder(counts, names=["big", "little"], global_batch_size=8, seed=0)
    order = DataOrder(counts, names=["big", "little"], global_batch_size=8, seed=0, allow_repeats=True)
    assert (order.sample_refs(0).source_B == 1).sum() == 4


def test_a_replacement_comes_from_the_same_source_and_lane():
    order = DataOrder([np.array([90]), np.array([70])], weights=[2, 1], global_batch_size=12, seed=1, lanes=4)
    for slot, ref in enumerate(order.sample_refs(2)):
        following = order.replacement(2, slot, 1)
        assert following.source == ref.source
        later = [a for t in range(2, 5) for a in order.sample_refs(t)]
        assert following in later


def test_samples_of_a_block_lie_within_the_batches_that_the_order_says():
    order = DataOrder([np.array([900]), np.array([400])], weights=[5, 1], global_batch_size=12, seed=1, window=10)
    batches = {}
    for batch_index in range(120):
        for block in order.sample_refs(batch_index).blocks():
            batches.setdefault(block, []).append(batch_index)
    longest = max(found[-1] - found[0] + 1 for found in batches.values())
    assert longest <= order.batches_per_block() <= longest + 1
