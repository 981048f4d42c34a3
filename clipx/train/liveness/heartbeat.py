"""Signs of life that ranks leave for each other, and what they say about who holds up a run.

They go through the store by which the ranks found each other, and not through collectives, which are what hangs. The
store is served by rank 0's process or by torchrun's agent; when that one hangs, so does every call here: calls belong
in a thread of their own (`clipx.train.liveness.watchdog`).
"""

import json
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from clipx.distributed.runtime import Runtime

Stage = Literal["start", "save", "evaluation", "data", "step", "end"]

# In the order in which they follow each other while so many steps are taken.
_DOING: dict[Stage, str] = {
    "start": "starting at step {taken}",
    "save": "saving step {taken}",
    "evaluation": "evaluating step {taken}",
    "data": "waiting for the data of step {next}",
    "step": "in step {next}",
    "end": "ending at step {taken}",
}
_USUAL_CAUSE: dict[Stage, str] = {
    "start": "the stacks say where",
    "save": "look at the storage of the checkpoints",
    "evaluation": "look at the storage of the evaluation sets",
    "data": "look at the storage of data.train and at the loader processes' stacks",
    "step": "a collective or a kernel does not complete: look at the network and the devices",
    "end": "look at the trackers",
}
_ORDER: dict[Stage, int] = {stage: number for number, stage in enumerate(_DOING)}
_MOST_NAMED = 4  # ranks, in one line


class Sign(NamedTuple):
    """What one rank says of itself."""

    beat: int
    """Grows with every sign: machines' clocks differ, a change does not lie."""
    stage: Stage
    step: int
    """Optimizer steps taken."""
    host: str
    pid: int


class LifeSigns:
    """One rank's end of the exchange: a key per rank, overwritten each time, and one for a verdict.

    Args:
        store: for this start of the run alone, and for this thread alone; see `Store.clone`.
        rank: this one.
        world_size: W.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        self._store = store
        self.world_size = world_size
        self._rank = rank
        self._keys = [f"rank-{number}" for number in range(world_size)]
        self._beat = 0

    def open(self) -> None:
        """Rank 0, before any other rank uses the store: reading a key that no one has written would wait for it."""
        unheard = json.dumps(Sign(beat=0, stage="start", step=0, host="unknown host", pid=0))
        for key in self._keys:
            self._store.set(key, unheard)

    def leave(self, stage: Stage, step: int) -> None:
        """Says that this rank lives, and where it stands."""
        self._beat += 1
        sign = Sign(self._beat, stage, step, socket.gethostname(), os.getpid())
        self._store.set(self._keys[self._rank], json.dumps(sign))

    def read(self) -> list[Sign]:
        """The latest sign of every rank."""
        return [Sign(*json.loads(value)) for value in self._store.multi_get(self._keys)]

    def declare(self, verdict: str) -> None:
        """Tells all ranks that the run is stalled, and why."""
        self._store.set("verdict", verdict)

    def verdict(self) -> str | None:
        """What a rank has declared, if any has."""
        return self._store.get("verdict").decode() if self._store.check(["verdict"]) else None


def join_life_signs(runtime: Runtime) -> LifeSigns:
    """This rank's end, on all ranks together. Communicates: one broadcast."""
    # A clone has a connection of its own: calls through one connection wait for each other.
    store = dist.HashStore() if runtime.world_size == 1 else _get_default_store().clone()  # type: ignore[attr-defined]
    # A launcher that restarts ranks may keep its store, and in it what the last start has left: no two share a name.
    name = f"clipx-life-{secrets.token_hex(8)}"

    def signs(name: str) -> LifeSigns:
        return LifeSigns(PrefixStore(name, store), rank=runtime.rank, world_size=runtime.world_size)

    if runtime.is_main:
        signs(name).open()
    return signs(runtime.broadcast_from_rank0(name))


def find_culprit(earlier: Sequence[Sign], later: Sequence[Sign]) -> str:
    """Who holds up the run, in one line, from two readings of all ranks' signs some seconds apart.

    Ranks whose signs have not changed: they are stopped or dead, or their machines out of reach. Else those that are
    furthest behind, for the others wait for them. Else what all wait for.
    """
    silent = [rank for rank, (one, two) in enumerate(zip(earlier, later, strict=True)) if one.beat == two.beat]
    if silent:
        return f"no sign of life from {_named(silent, later)}, last seen {describe(later[silent[0]])}"
    behind = min(map(_place, later))
    late = [rank for rank, sign in enumerate(later) if _place(sign) == behind]
    if len(late) < len(later):
        whose = f"held up by {_named(late, later)}"
    else:
        whose = f"all {len(late)} ranks" if len(late) > 1 else _named(late, later)
    sign = later[late[0]]
    return f"{whose}: {describe(sign)}; {_USUAL_CAUSE[sign.stage]}"


def describe(sign: Sign) -> str:
    """What a rank is doing; steps are numbered as in metrics.jsonl, from 1."""
    return _DOING[sign.stage].format(taken=sign.step, next=sign.step + 1)


def _place(sign: Sign) -> tuple[int, int]:
    return sign.step, _ORDER[sign.stage]


def _named(ranks: Sequence[int], signs: Sequence[Sign]) -> str:
    named = ", ".join(f"rank {rank} ({signs[rank].host}, pid {signs[rank].pid})" for rank in ranks[:_MOST_NAMED])
    more = len(ranks) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named
