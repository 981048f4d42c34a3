"""Ranks share the cores of their machine, not those of all machines."""

import torch.distributed as dist
from distributed.ranks import run_ranks
from teacher_stores import data_of, teacher, write_noise

from clipx.host import Cores
from clipx.prepare import teach
from clipx.pretrained import threads


def on_two_machines() -> None:
    """Two ranks on the first machine of 8 cores, the third on another."""
    machine = "first" if dist.get_rank() < 2 else "second"
    threads.own_cores = lambda: Cores(machine, frozenset(range(8)), None)


def share() -> int:
    on_two_machines()
    return threads.cores_of_rank(dist.group.WORLD)


def used_to_teach(shards: list[str], out: str) -> list[int]:
    """Threads that compute, and cores for those that read."""
    on_two_machines()
    found: list[int] = []
    read_views, side_by_side = teach.read_views, teach.side_by_side

    def watched_reading(*arguments, cores, **options):
        found.append(cores)
        return read_views(*arguments, cores=cores, **options)

    def watched_computing(*arguments, threads, **options):
        found.append(threads)
        return side_by_side(*arguments, threads=threads, **options)

    teach.read_views, teach.side_by_side = watched_reading, watched_computing
    teach.teach(data_of(shards), [teacher("small")], out, group=dist.group.WORLD)
    return found


def test_a_rank_has_its_share_of_its_machine() -> None:
    assert run_ranks(share, 3) == [4, 4, 8]


def test_teaching_uses_the_share(tmp_path) -> None:
    shards = write_noise(tmp_path / "s", [1] * 3)
    assert run_ranks(used_to_teach, 3, shards, str(tmp_path / "out")) == [[4, 4], [4, 4], [8, 8]]
