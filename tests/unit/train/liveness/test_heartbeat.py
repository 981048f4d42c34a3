"""What ranks tell each other, and who by that holds up the run."""

import itertools

import torch.distributed as dist

from clipx.train.liveness.heartbeat import LifeSigns, Sign, Stage, describe, find_culprit


def sign(stage: Stage, step: int, *, beat: int = 1, pid: int = 7) -> Sign:
    return Sign(beat=beat, stage=stage, step=step, host="node", pid=pid)


def readings(*signs: Sign, silent: tuple[int, ...] = ()) -> tuple[list[Sign], list[Sign]]:
    """The signs of some ranks, and those of some seconds later."""
    later = [one if rank in silent else one._replace(beat=one.beat + 3) for rank, one in enumerate(signs)]
    return list(signs), later


def test_signs_of_all_ranks_can_be_read_before_and_after_they_are_left() -> None:
    store = dist.HashStore()
    ranks = [LifeSigns(store, rank=rank, world_size=3) for rank in range(3)]
    ranks[0].open()
    assert [one.beat for one in ranks[2].read()] == [0, 0, 0]
    ranks[1].leave("data", 17)
    ranks[1].leave("step", 17)
    ranks[2].leave("data", 18)
    assert [(one.beat, one.stage, one.step) for one in ranks[0].read()] == [
        (0, "start", 0),
        (2, "step", 17),
        (1, "data", 18),
    ]


def test_a_verdict_reaches_all_ranks() -> None:
    store = dist.HashStore()
    one, other = (LifeSigns(store, rank=rank, world_size=2) for rank in range(2))
    assert other.verdict() is None
    one.declare("rank 3 is to blame")
    assert other.verdict() == "rank 3 is to blame"


def test_signs_do_not_grow() -> None:
    store = dist.HashStore()
    signs = LifeSigns(store, rank=0, world_size=2)
    signs.open()
    keys = store.num_keys()
    for step in range(20):
        signs.leave("step", step)
    assert store.num_keys() == keys


def test_the_silent_rank_is_named_before_one_that_is_behind() -> None:
    found = find_culprit(*readings(sign("data", 4), sign("step", 4, pid=8), sign("step", 4), silent=(1,)))
    assert found == "no sign of life from rank 1 (node, pid 8), last seen in step 5"


def test_many_ranks_are_counted() -> None:
    found = find_culprit(*readings(*[sign("save", 6)] * 9, silent=tuple(range(1, 8))))
    assert "rank 1 (node, pid 7), rank 2 (node, pid 7), rank 3 (node, pid 7), rank 4 (node, pid 7) and 3 more" in found
    assert found.endswith("last seen saving step 6")


def test_the_rank_behind_is_named() -> None:
    found = find_culprit(*readings(sign("step", 4), sign("data", 4, pid=8), sign("step", 4)))
    assert found.startswith("held up by rank 1 (node, pid 8): waiting for the data of step 5; look at the storage")


def test_stages_are_in_the_order_of_a_run() -> None:
    stages: list[Stage] = ["start", "save", "evaluation", "data", "step"]
    places: list[tuple[Stage, int]] = [*((stage, 3) for stage in stages), ("save", 4)]
    for behind, ahead in itertools.pairwise(places):
        assert "held up by rank 1 (" in find_culprit(*readings(sign(*ahead), sign(*behind)))


def test_ranks_at_one_place_wait_for_what_lies_outside() -> None:
    assert find_culprit(*readings(*[sign("step", 4)] * 3)).startswith(
        "all 3 ranks: in step 5; a collective or a kernel"
    )
    assert find_culprit(*readings(sign("data", 4))).startswith("rank 0 (node, pid 7): waiting for the data of step 5;")


def test_steps_are_numbered_as_in_the_metrics() -> None:
    assert describe(sign("evaluation", 4)) == "evaluating step 4"  # taken
    assert describe(sign("step", 4)) == "in step 5"  # under way
