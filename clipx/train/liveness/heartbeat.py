"""Heartbeats that ranks publish for each other, and the search for the rank that holds up the run.

They go through the store by which the ranks found each other, and not through collectives, which are what hangs. The
store is served by rank 0's process or by torchrun's agent. When that process hangs, so does every call here: call these
functions in a thread of their own (`clipx.train.liveness.watchdog`).
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

Activity = Literal["start", "save", "evaluation", "data", "step", "end"]
"""What the main thread of a rank is doing."""

# In the order in which a run does them after the same number of steps.
_DESCRIPTION: dict[Activity, str] = {
    "start": "starting at step {taken}",
    "save": "saving step {taken}",
    "evaluation": "evaluating step {taken}",
    "data": "waiting for the data of step {next}",
    "step": "in step {next}",
    "end": "ending at step {taken}",
}
_USUAL_CAUSE: dict[Activity, str] = {
    "start": "the stacks say where",
    "save": "look at the storage of the checkpoints",
    "evaluation": "look at the storage of the evaluation sets",
    "data": "look at the storage of data.train and at the loader processes' stacks",
    "step": "a collective or a kernel does not complete: look at the network and the devices",
    "end": "look at the trackers",
}
_ORDER: dict[Activity, int] = {activity: index for index, activity in enumerate(_DESCRIPTION)}
_MAX_NAMED = 4  # ranks in one line


class Heartbeat(NamedTuple):
    """What one rank publishes about itself."""

    sequence: int
    """Grows with every heartbeat. Machines' clocks differ, so it is a change of this number that shows life."""
    activity: Activity
    step: int
    """Optimizer steps taken."""
    host: str
    pid: int


class HeartbeatExchange:
    """One rank's access to the heartbeats of all: one key per rank, overwritten each time, and one for a stall.

    Args:
        store: used by this start of the run only, and in this process by one thread only; see `Store.clone`.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        self._store = store
        self.world_size = world_size
        self._rank = rank
        self._keys = [f"rank-{number}" for number in range(world_size)]
        self._sequence = 0

    def open(self) -> None:
        """Writes every key. Rank 0 calls this before any rank reads: a read waits for a key that does not exist."""
        unheard = json.dumps(Heartbeat(sequence=0, activity="start", step=0, host="unknown host", pid=0))
        for key in self._keys:
            self._store.set(key, unheard)

    def publish(self, activity: Activity, step: int) -> None:
        """Tells all ranks that this rank lives and what it is doing."""
        self._sequence += 1
        heartbeat = Heartbeat(self._sequence, activity, step, socket.gethostname(), os.getpid())
        self._store.set(self._keys[self._rank], json.dumps(heartbeat))

    def read(self) -> list[Heartbeat]:
        """The latest heartbeat of every rank."""
        return [Heartbeat(*json.loads(value)) for value in self._store.multi_get(self._keys)]

    def publish_stall(self, reason: str) -> None:
        """Tells all ranks that the run is stalled, and why."""
        self._store.set("stall", reason)

    def read_stall(self) -> str | None:
        """The reason that a rank has published for a stall; None if no rank has."""
        return self._store.get("stall").decode() if self._store.check(["stall"]) else None


def join_heartbeats(runtime: Runtime) -> HeartbeatExchange:
    """Makes this rank's access to the heartbeats. All ranks call this; it does one broadcast."""
    # A clone has a connection of its own: calls through one connection wait for each other.
    store = dist.HashStore() if runtime.world_size == 1 else _get_default_store().clone()  # type: ignore[attr-defined]
    # A launcher that restarts ranks may keep its store, with the keys of the start before: each start has its own name.
    name = f"clipx-heartbeats-{secrets.token_hex(8)}"

    def exchange(name: str) -> HeartbeatExchange:
        return HeartbeatExchange(PrefixStore(name, store), rank=runtime.rank, world_size=runtime.world_size)

    if runtime.is_main:
        exchange(name).open()
    return exchange(runtime.broadcast_from_rank0(name))


def find_straggler(earlier: Sequence[Heartbeat], later: Sequence[Heartbeat]) -> str:
    """Says in one line which rank holds up the run.

    The first of these that exists: ranks whose heartbeat has not changed, since they are stopped or dead or cannot
    reach the store; ranks that are behind the others, since the others wait for them; what all ranks wait for. Both
    arguments are the heartbeats of all ranks, `later` some seconds later.
    """
    silent = [rank for rank, (one, two) in enumerate(zip(earlier, later, strict=True)) if one.sequence == two.sequence]
    if silent:
        return f"no sign of life from {_named(silent, later)}, last seen {describe(later[silent[0]])}"
    behind = min(map(_position, later))
    late = [rank for rank, heartbeat in enumerate(later) if _position(heartbeat) == behind]
    if len(late) < len(later):
        whose = f"held up by {_named(late, later)}"
    else:
        whose = f"all {len(late)} ranks" if len(late) > 1 else _named(late, later)
    heartbeat = later[late[0]]
    return f"{whose}: {describe(heartbeat)}; {_USUAL_CAUSE[heartbeat.activity]}"


def describe(heartbeat: Heartbeat) -> str:
    """What a rank is doing; steps are numbered from 1, like in metrics.jsonl."""
    return _DESCRIPTION[heartbeat.activity].format(taken=heartbeat.step, next=heartbeat.step + 1)


def _position(heartbeat: Heartbeat) -> tuple[int, int]:
    return heartbeat.step, _ORDER[heartbeat.activity]


def _named(ranks: Sequence[int], heartbeats: Sequence[Heartbeat]) -> str:
    shown = [f"rank {rank} ({heartbeats[rank].host}, pid {heartbeats[rank].pid})" for rank in ranks[:_MAX_NAMED]]
    more = len(ranks) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
