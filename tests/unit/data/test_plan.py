"""The order's arithmetic at its edges; that it reads everything once is in tests/property/test_data_order.py."""

import tracemalloc

import numpy as np
import pytest
from reference.data_order import lane_stretch

from clipx.data import plan as plan_module
from clipx.data.plan import Plan, resolve_lanes, resolve_window
from clipx.errors import InputError


def make_plan(counts, **options):
    return Plan(np.array(counts, dtype=np.int64), **{"global_batch_size": 8, "seed": 3, **options})


@pytest.mark.parametrize(
    ("batch", "samples", "lanes"),
    [(4096, 10**9, 1024), (4096, 1000, 512), (3000, 10**6, 1000), (7, 3, 1), (1031, 10**6, 1), (12, 12, 12)],
)
def test_auto_lanes_are_the_largest_divisor_that_fits(batch, samples, lanes):
    assert resolve_lanes("auto", global_batch_size=batch, num_samples=samples) == lanes


@pytest.mark.parametrize(
    ("lanes", "samples", "message"),
    [
        (5, 100, "data.lanes=5 does not divide global_batch_size=12; nearest that fit: 4, 6, or auto"),
        (24, 100, "data.lanes=24 does not divide global_batch_size=12; nearest that fit: 12, or auto"),
        (12, 10, "data.lanes=12 is more than the 10 samples; nearest that fit: 6, or auto"),
    ],
)
def test_lanes_that_do_not_fit_are_named_with_the_nearest(lanes, samples, message):
    with pytest.raises(InputError) as caught:
        resolve_lanes(lanes, global_batch_size=12, num_samples=samples)
    assert str(caught.value) == message


def test_window_shuffles_65536_samples_in_all_lanes_but_never_fewer_than_64_in_one():
    assert [resolve_window("auto", lanes) for lanes in (1, 64, 1024, 4096)] == [65536, 1024, 64, 64]
    assert resolve_window(7, 64) == 7


def test_fewer_samples_than_the_batch_need_consent():
    with pytest.raises(InputError, match=r"7 samples, fewer than global_batch_size=8; .*data.allow_repeats=true"):
        make_plan([3, 4])
    plan = make_plan([3, 4], allow_repeats=True)
    assert (plan.lanes, plan.stretch, plan.slots_per_lane) == (4, 1, 2)
    for batch_index in range(3):
        epochs = plan.addresses(batch_index).epoch_B
        assert sorted(set(epochs.tolist())) == [2 * batch_index, 2 * batch_index + 1]


def test_addresses_name_shard_and_index_of_the_sample_id():
    counts = [3, 0, 5, 0, 0, 9, 1, 0]
    plan = make_plan(counts, lanes=2, window=4)
    where = [(shard, index) for shard, count in enumerate(counts) for index in range(count)]
    for batch_index in range(9):
        addresses = plan.addresses(batch_index)
        assert all(where[a.sample_id] == (a.shard, a.index) for a in addresses)
        assert {column.dtype for column in vars(addresses).values()} == {np.dtype(np.int64)}


def test_slots_may_be_a_slice_or_a_list():
    plan = make_plan([50, 60], lanes=4)
    whole = plan.addresses(5).sample_id_B
    np.testing.assert_array_equal(plan.addresses(5, slice(2, 7)).sample_id_B, whole[2:7])
    np.testing.assert_array_equal(plan.addresses(5, np.array([6, 0, 3])).sample_id_B, whole[[6, 0, 3]])


def test_replacement_is_the_place_so_far_ahead_in_the_lane_across_epochs():
    options = {"seed": 5, "lanes": 2, "window": 4}
    counts = [60, 161]
    plan = make_plan(counts, **options)
    slot, batch_index = 6, 3  # place 2 of lane 1's four
    stream = [(epoch, sample) for epoch in range(3) for sample in lane_stretch(counts, **options, epoch=epoch, lane=1)]
    place = batch_index * 4 + 2
    found = [plan.replacement(batch_index, slot, attempt) for attempt in range(1, plan.horizon + 1)]
    assert plan.horizon == plan.stretch == 110
    assert [(a.epoch, a.sample_id) for a in found] == stream[place + 1 : place + 1 + plan.horizon]
    assert plan.replacement(batch_index, slot, plan.horizon + 1) is None


@pytest.mark.parametrize(("samples", "horizon"), [(8, 100), (8 * 500, 500), (8 * 10**6, 10_000)])
def test_horizon_is_a_stretch_within_reason(samples, horizon):
    assert make_plan([samples], lanes=8).horizon == horizon


def test_order_depends_on_the_seed_the_epoch_and_nothing_else(monkeypatch):
    counts = [40, 30, 50]
    first = [make_plan(counts).addresses(t).sample_id_B.tolist() for t in range(20)]
    other_seed = [make_plan(counts, seed=4).addresses(t).sample_id_B.tolist() for t in range(20)]
    assert first != other_seed
    monkeypatch.setattr(plan_module, "_CACHED_OFFSETS", 20)  # every window is computed again
    monkeypatch.setattr(plan_module, "_OFFSETS_AT_ONCE", 1)
    plan = make_plan(counts)
    backwards = [plan.addresses(t).sample_id_B.tolist() for t in reversed(range(20))]
    assert backwards[::-1] == first
    assert plan._num_cached_offsets <= 20
    assert sum(map(len, plan._windows.values())) == plan._num_cached_offsets


def test_half_a_billion_samples_plan_without_state_per_sample():
    """50,000 shards, counts alone."""
    counts = np.full(50_000, 10_000, dtype=np.int64)
    tracemalloc.start()
    plan = Plan(counts, global_batch_size=4096, seed=0)
    addresses = plan.addresses(123_456)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (plan.lanes, plan.window, len(set(addresses.sample_id_B.tolist()))) == (1024, 64, 4096)
    assert peak < 32 * 2**20
