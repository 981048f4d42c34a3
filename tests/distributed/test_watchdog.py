"""A rank that hangs, whatever hangs it, ends the run on all ranks within seconds of the limit, and is named."""

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest
from distributed.ranks import run_ranks
from distributed.stalls import HANGS_AT, Case, start
from tiny import tiny_config

from clipx.config.schema import RunConfig
from clipx.distributed.runtime import start_runtime
from clipx.train.liveness.heartbeat import Activity, join_heartbeats

CASES = {
    "read": Case("read", rank=1, world_size=4),
    "stopped": Case("stopped", rank=2, world_size=3),
    "rank 0 stopped": Case("stopped", rank=0, world_size=2),
    "with the GIL": Case("with the GIL", rank=1, world_size=2),
    "alone": Case("alone", rank=0, world_size=1),
}
ENDS_WITHIN_S = 120  # of the start; on a calm machine all have ended in 20


class Ended(NamedTuple):
    """How a case went, of each rank."""

    exit_codes: list[int | None]
    """None: it had not ended when the others had, since it was stopped."""
    pids: list[int | None]
    printed: list[str]
    reasons: list[str]
    stacks: list[str]
    leaked: list[int]
    """Loader processes of the ended that were still there."""
    afterwards: int | None
    """The exit code of the stopped one, once it was continued."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All cases, at the same time: most of it is waiting."""
    folders = {name: tmp_path_factory.mktemp("stall") for name in CASES}
    ranks = {name: start(case, folders[name]) for name, case in CASES.items()}
    try:
        deadline = time.monotonic() + ENDS_WITHIN_S
        yield {name: end(case, ranks[name], folders[name], deadline) for name, case in CASES.items()}
    finally:
        for process in [process for processes in ranks.values() for process in processes]:
            process.kill()
            process.join()


def end(case: Case, ranks: list[ForkServerProcess], folder: Path, deadline: float) -> Ended:
    stopped = ranks[case.rank] if case.name == "stopped" else None
    for process in ranks:
        if process is not stopped:
            process.join(max(0.0, deadline - time.monotonic()))
    exit_codes = [process.exitcode for process in ranks]
    loaders = [
        int((folder / f"loader-{rank}.txt").read_text()) for rank, code in enumerate(exit_codes) if code is not None
    ]
    while any(map(is_alive, loaders)) and time.monotonic() < deadline:
        time.sleep(0.1)  # killed with its rank, it needs a moment
    if stopped is not None:
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.join(30)

    def texts(name: str) -> list[str]:
        paths = [folder / name.format(rank=rank) for rank in range(len(ranks))]
        return [path.read_text() if path.exists() else "" for path in paths]

    return Ended(
        exit_codes=exit_codes,
        pids=[process.pid for process in ranks],
        printed=texts("rank-{rank}.txt"),
        reasons=texts("reason-{rank}.txt"),
        stacks=texts("stacks/rank-{rank:05d}.txt"),
        leaked=[pid for pid in loaders if is_alive(pid)],
        afterwards=None if stopped is None else stopped.exitcode,
    )


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_read_that_hangs_is_named_and_shown_by_all_ranks(ended: dict[str, Ended]) -> None:
    case = ended["read"]
    assert case.exit_codes == [1] * 4
    straggler = f"pid {case.pids[1]}): waiting for the data of step {HANGS_AT + 1}"
    for printed, reason, stacks in zip(case.printed, case.reasons, case.stacks, strict=True):
        (headline,) = [line for line in printed.splitlines() if line.startswith("STALLED")]
        assert "held up by rank 1 (" in headline
        assert straggler in headline
        assert straggler in reason
        assert stacks.startswith(headline)
        assert "in _live" in stacks  # of the rank
        assert "in _live" in printed
    reading = [stacks.count("in read_that_never_returns") for stacks in case.stacks]
    assert reading == [0, 1, 0, 0]  # of its loader process
    assert case.leaked == []


def test_a_stopped_rank_is_named_and_ends_once_it_is_continued(ended: dict[str, Ended]) -> None:
    case = ended["stopped"]
    assert case.exit_codes == [1, 1, None]
    for rank in (0, 1):
        assert "no sign of life from rank 2 (" in case.reasons[rank]
        assert f"pid {case.pids[2]}), last seen in step {HANGS_AT + 1}" in case.reasons[rank]
        assert "in _live" in case.stacks[rank]
    assert case.afterwards == 1


def test_a_stopped_rank_0_takes_the_store_with_it_and_is_named(ended: dict[str, Ended]) -> None:
    case = ended["rank 0 stopped"]
    assert case.exit_codes == [None, 1]
    assert "no sign of life from rank 0" in case.reasons[1]
    assert case.afterwards == 1


def test_a_hang_with_the_gil_is_ended_by_the_timer_in_c(ended: dict[str, Ended]) -> None:
    case = ended["with the GIL"]
    assert case.exit_codes == [1, 1]
    assert "no sign of life from rank 1 (" in case.reasons[0]
    assert case.reasons[1] == ""
    assert "in hang" in case.printed[1]


def test_a_rank_alone_ends_too(ended: dict[str, Ended]) -> None:
    case = ended["alone"]
    assert case.exit_codes == [1]
    assert f"in step {HANGS_AT + 1}" in case.reasons[0]
    assert "in hang" in case.stacks[0]
    assert case.leaked == []


def exchange(config: RunConfig) -> tuple[list[tuple[Activity, int]], str | None, str | None]:
    """What this rank reads of both, the stall that one publishes, and what the next start sees of it."""
    with start_runtime(config) as runtime:
        heartbeats = join_heartbeats(runtime)
        heartbeats.publish("step", 5 + runtime.rank)
        if runtime.is_main:
            heartbeats.publish_stall("held up")
        runtime.barrier()
        next_start = join_heartbeats(runtime)  # in the same store, as after a restart by torchrun
        return [(one.activity, one.step) for one in heartbeats.read()], heartbeats.read_stall(), next_start.read_stall()


def test_ranks_meet_in_the_store_that_brought_them_together(tmp_path: Path) -> None:
    expected = ([("step", 5), ("step", 6)], "held up", None)
    assert run_ranks(exchange, 2, tiny_config(tmp_path, "none.tar"), timeout_s=60) == [expected] * 2
