"""What ranks tell each other, and who by that holds up the run."""

import itertools

import torch.distributed as dist

from clipx.train.liveness.heartbeat import Activity, Heartbeat, HeartbeatExchange, describe, find_straggler


def at(activity: Activity, step: int, *, sequence: int = 1, pid: int = 7) -> Heartbeat:
    return Heartbeat(sequence=sequence, activity=activity, step=step, host="node", pid=pid)


def readings(*heartbeats: Heartbeat, silent: tuple[int, ...] = ()) -> tuple[list[Heartbeat], list[Heartbeat]]:
    """The heartbeats of some ranks, and those of some seconds later."""
    later = [one if rank in silent else one._replace(sequence=one.sequence + 3) for rank, one in enumerate(heartbeats)]
    return list(heartbeats), later


def test_heartbeats_of_all_ranks_can_be_read_before_and_after_they_are_published() -> None:
    store = dist.HashStore()
    ranks = [HeartbeatExchange(store, rank=rank, world_size=3) for rank in range(3)]
    ranks[0].open()
    assert [one.sequence for one in ranks[2].read()] == [0, 0, 0]
    ranks[1].publish("data", 17)
    ranks[1].publish("step", 17)
    ranks[2].publish("data", 18)
    assert [(one.sequence, one.activity, one.step) for one in ranks[0].read()] == [
        (0, "start", 0),
        (2, "step", 17),
        (1, "data", 18),
    ]


def test_a_stall_reaches_all_ranks() -> None:
    store = dist.HashStore()
    one, other = (HeartbeatExchange(store, rank=rank, world_size=2) for rank in range(2))
    assert other.read_stall() is None
    one.publish_stall("rank 3 is to blame")
    assert other.read_stall() == "rank 3 is to blame"


def test_heartbeats_do_not_grow() -> None:
    store = dist.HashStore()
    heartbeats = HeartbeatExchange(store, rank=0, world_size=2)
    heartbeats.open()
    keys = store.num_keys()
    for step in range(20):
        heartbeats.publish("step", step)
    assert store.num_keys() == keys


def test_the_silent_rank_is_named_before_one_that_is_behind() -> None:
    found = find_straggler(*readings(at("data", 4), at("step", 4, pid=8), at("step", 4), silent=(1,)))
    assert found == "no sign of life from rank 1 (node, pid 8), last seen in step 5"


def test_many_ranks_are_counted() -> None:
    found = find_straggler(*readings(*[at("save", 6)] * 9, silent=tuple(range(1, 8))))
    assert "rank 1 (node, pid 7), rank 2 (node, pid 7), rank 3 (node, pid 7), rank 4 (node, pid 7) and 3 more" in found
    assert found.endswith("last seen saving step 6")


def test_the_rank_behind_is_named() -> None:
    found = find_straggler(*readings(at("step", 4), at("data", 4, pid=8), at("step", 4)))
    assert found.startswith("held up by rank 1 (node, pid 8): waiting for the data of step 5; look at the storage")


def test_activities_are_in_the_order_of_a_run() -> None:
    activities: list[Activity] = ["start", "save", "evaluation", "data", "step"]
    positions: list[tuple[Activity, int]] = [*((activity, 3) for activity in activities), ("save", 4)]
    for behind, ahead in itertools.pairwise(positions):
        assert "held up by rank 1 (" in find_straggler(*readings(at(*ahead), at(*behind)))


def test_ranks_at_one_position_wait_for_what_lies_outside() -> None:
    assert find_straggler(*readings(*[at("step", 4)] * 3)).startswith(
        "all 3 ranks: in step 5; a collective or a kernel"
    )
    assert find_straggler(*readings(at("data", 4))).startswith("rank 0 (node, pid 7): waiting for the data of step 5;")


def test_steps_are_numbered_as_in_the_metrics() -> None:
    assert describe(at("evaluation", 4)) == "evaluating step 4"  # taken
    assert describe(at("step", 4)) == "in step 5"  # under way
