"""Runs any function on N processes that form a gloo group over the loopback interface.

Processes are forked from a server that has imported torch and nothing of the test, so they start in milliseconds and
inherit no threads. A test that fails, dies or hangs on any rank ends with that rank's traceback, and no process stays.
"""

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = ["pytest", "hypothesis", "clipx.train.trainer", "torch.distributed.tensor"]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Calls `function(*args)` on every rank of a new gloo group.

    Inside, torch.distributed is initialised, RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE are set, torch has one
    thread, and the environment and the working folder are the caller's.

    Args:
        function: defined at the top level of its module, which need not be importable by name.
        world_size: processes.
        args: picklable.
        timeout_s: seconds from the start of the last process to the last result.

    Returns:
        What each rank returned (picklable), in the order of ranks.

    Raises:
        Whatever the first failing rank raised, with its traceback as a note; RuntimeError for a rank that died, or
        when the time is up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "file": str(Path(function.__code__.co_filename).resolve()),
            "module": function.__module__,
            "name": function.__qualname__,
            "args": pickle.dumps(args),
            "store": f"file://{folder}/store",
            "world_size": world_size,
            "timeout_s": timeout_s,
            "environment": dict(os.environ),
        }
        connections, processes = [], []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(rank, job, theirs), name=f"rank {rank}")
                process.start()
                theirs.close()
                connections.append(ours)
                processes.append(process)
            return _collect(connections, timeout_s)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for connection in connections:
                connection.close()  # a rank waits for this before it leaves the group
            for process in processes:
                process.join()


def _collect(connections: list[Connection], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s  # the server's own start, once per session, does not count
    results: dict[int, Any] = {}
    while len(results) < len(connections):
        missing = [rank for rank in range(len(connections)) if rank not in results]
        ready = wait([connections[rank] for rank in missing], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RuntimeError(f"ranks {missing} of {len(connections)} gave no result within {timeout_s} s")
        for rank in missing:
            if connections[rank] in ready:
                results[rank] = _receive(connections[rank], rank)
    return [results[rank] for rank in range(len(connections))]


def _receive(connection: Connection, rank: int) -> Any:
    try:
        succeeded, payload, trace = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        raise RuntimeError(f"rank {rank} died without a word") from None
    if succeeded:
        return pickle.loads(payload)
    error = RuntimeError(f"rank {rank} failed") if payload is None else pickle.loads(payload)
    error.add_note(f"on rank {rank}:\n{trace}")
    raise error


def _work(rank: int, job: dict[str, Any], connection: Connection) -> None:
    """The life of one rank; it stays until the parent hangs up, so that no other rank sees a lost connection first."""
    try:
        message = (True, pickle.dumps(_call(rank, job)), "")
    except BaseException as error:
        message = (False, _pickled_or_none(error), traceback.format_exc())
    connection.send_bytes(pickle.dumps(message))
    connection.poll(None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _call(rank: int, job: dict[str, Any]) -> Any:
    import torch
    import torch.distributed as dist

    os.environ.clear()
    os.environ.update(job["environment"])
    size = str(job["world_size"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    timeout = timedelta(seconds=job["timeout_s"])
    dist.init_process_group("gloo", init_method=job["store"], rank=rank, world_size=job["world_size"], timeout=timeout)
    return getattr(_load(job["module"], job["file"]), job["name"])(*pickle.loads(job["args"]))


def _load(name: str, file: str) -> Any:
    """The test's module, loaded from its file under the name that it has in the parent, for pickles refer to it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _pickled_or_none(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        return None
    return pickled
