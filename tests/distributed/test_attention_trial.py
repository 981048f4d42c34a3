"""The trial of attention kernels on several ranks: all take the same, which is right everywhere."""

import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from reference.attention import packed_attention

from clipx.models.attention import trial
from clipx.models.attention.trial import Shape, fastest


def chosen(wrong_on: int | None, missing_on: int | None = None) -> str | None:
    rank = dist.get_rank()
    shape = Shape(
        name="sequences",
        lengths=(5, 5),
        num_checked=2,
        heads=1,
        channels=16,
        causal=False,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )

    def attention(name):
        def prepare(lengths):
            scale = 0.5 if name == "one_tile" and rank == wrong_on else 0.25
            return lambda qkv: packed_attention(qkv.float(), list(lengths), causal=False, scale=scale).to(qkv.dtype)

        prepare.name = name
        return prepare

    # Each rank measures otherwise: rank 0 finds `one_tile` the fastest, rank 1 finds it the slowest.
    times = {"one_tile": (0.1, 0.9), "flash": (0.2, 0.1)}
    trial._milliseconds = lambda shape, attention: times[attention.name][rank]
    there = [name for name in times if (name, rank) != ("one_tile", missing_on)]
    return fastest(shape, {name: attention(name) for name in there}, group=dist.group.WORLD)


def test_ranks_follow_the_times_of_rank_0() -> None:
    assert run_ranks(chosen, 2, None) == ["one_tile"] * 2


def test_what_is_wrong_on_one_rank_is_taken_on_none() -> None:
    assert run_ranks(chosen, 2, 1) == ["flash"] * 2


def test_what_one_rank_does_not_have_is_taken_on_none() -> None:
    assert run_ranks(chosen, 2, None, 1, timeout_s=60) == ["flash"] * 2
