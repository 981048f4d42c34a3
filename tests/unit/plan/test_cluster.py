"""Seconds of collectives, by hand."""

import pytest

from clipx.distributed.hardware import find_gpu
from clipx.plan.cluster import Cluster, sent_bytes

CLUSTER = Cluster(
    gpu=find_gpu("H100"),
    gpus_per_node=4,
    mfu=0.5,
    intra_node_bytes_per_s=100.0,
    inter_node_bytes_per_s=10.0,
)


@pytest.mark.parametrize(
    ("collective", "world_size", "expected"),
    [
        ("all-gather", 1, 0),
        ("all-gather", 4, 3 / 4 * 800 / 100),
        ("reduce-scatter", 2, 1 / 2 * 800 / 100),
        ("all-reduce", 4, 2 * 3 / 4 * 800 / 100),
        # two machines: half of the bytes come from the other one, through four adapters
        ("all-gather", 8, 1 / 2 * 800 / 4 / 10),
        ("all-reduce", 8, 2 * 1 / 2 * 800 / 4 / 10),
        ("all-reduce", 16, 2 * 3 / 4 * 800 / 4 / 10),
        ("shift", 1, 0),
        ("shift", 4, 200 / 100),
        ("shift", 8, 100 / 10),
        ("all-to-all", 1, 0),
        ("all-to-all", 4, 3 / 4 * 200 / 100),
        ("all-to-all", 8, 4 / 8 * 100 / 10),
    ],
)
def test_the_slower_level_counts(collective: str, world_size: int, expected: float) -> None:
    assert CLUSTER.seconds(collective, 800, world_size=world_size) == pytest.approx(expected)


def test_a_fast_network_leaves_the_links_within_a_machine() -> None:
    fast = Cluster(**vars(CLUSTER) | {"inter_node_bytes_per_s": 1e9})
    assert fast.seconds("all-gather", 800, world_size=8) == pytest.approx(3 / 4 * 800 / 100)


@pytest.mark.parametrize(
    ("collective", "expected"),
    [("all-reduce", 1400), ("all-gather", 700), ("reduce-scatter", 700), ("all-to-all", 87.5), ("shift", 100)],
)
def test_what_each_rank_sends(collective: str, expected: float) -> None:
    assert sent_bytes(collective, 800, world_size=8) == expected
    assert sent_bytes(collective, 800, world_size=1) == 0


@pytest.mark.parametrize(("world_size", "nodes"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_machines_for_so_many_gpus(world_size: int, nodes: int) -> None:
    assert CLUSTER.num_nodes(world_size) == nodes
