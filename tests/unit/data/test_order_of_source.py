"""The order of one source: its caches and limits; its definition is in tests/property/test_data_order.py."""

import numpy as np
import pytest

from clipx.data import order_of_source
from clipx.data.order import DataOrder


def make_order(counts, **options):
    return DataOrder([np.array(counts, dtype=np.int64)], **{"global_batch_size": 8, "seed": 3, **options})


@pytest.mark.parametrize(("samples", "distance"), [(8, 100), (8 * 500, 500), (8 * 10**6, 10_000)])
def test_replacements_lie_within_one_lane_length_within_reason(samples, distance):
    assert make_order([samples], lanes=8).sources[0].max_replacement_distance == distance


def test_order_depends_on_the_seed_the_epoch_and_nothing_else(monkeypatch):
    counts = [40, 30, 50]
    first = [make_order(counts).sample_refs(t).sample_id_B.tolist() for t in range(20)]
    other_seed = [make_order(counts, seed=4).sample_refs(t).sample_id_B.tolist() for t in range(20)]
    assert first != other_seed
    monkeypatch.setattr(order_of_source, "_CACHED_OFFSETS", 20)  # every permutation is computed again
    monkeypatch.setattr(order_of_source, "_OFFSETS_AT_ONCE", 1)
    order = make_order(counts)
    backwards = [order.sample_refs(t).sample_id_B.tolist() for t in reversed(range(20))]
    assert backwards[::-1] == first
    (source,) = order.sources
    assert source._num_cached_offsets <= 20
    assert sum(map(len, source._permutations.values())) == source._num_cached_offsets
