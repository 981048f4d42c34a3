"""A process that has imported clipx and forks into `clipx train` on request: a start without seconds of imports.

Run as a script. Each line on its standard input is a request, answered on standard output by the process id of the new
process, which belongs to whoever started this script (its subreaper), leads a session of its own, and ends as an
interpreter ends. Requests are JSON: {"arguments": [...], "environment": {...}, "log": FILE}.
"""

import atexit
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

PRELOAD = (
    "clipx.cli",
    "clipx.train.trainer",
    "numpy.ma",
    "simplejpeg",
    "torch.utils.serialization.config",
)


def serve() -> dict[str, Any]:
    """Answers requests; returns in each child with what it shall do, and ends this process when the input does."""
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        assert len(os.listdir("/proc/self/task")) == 1, "a thread of this process would be missing in its forks"
        answer, ours = os.pipe()
        middle = os.fork()
        if middle == 0:
            child = os.fork()
            if child == 0:
                return dict(request)
            os.write(ours, str(child).encode())
            os._exit(0)  # the child is an orphan now, and goes to the subreaper
        os.waitpid(middle, 0)
        print(os.read(answer, 20).decode(), flush=True)
        os.close(answer)
        os.close(ours)
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Makes this fork what a fresh interpreter with these arguments, environment and output would be."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = ["clipx", *request["arguments"]]


def leave(code: object) -> None:
    """Ends this process as the interpreter does, but for freeing each object, which in a fork copies all memory."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for name in PRELOAD:
        __import__(name)
    from clipx.config.schema import RunConfig
    from clipx.config.sections import sections

    sections(RunConfig)  # pydantic's work on the schema, which it keeps
    gc.freeze()
    become(serve())
    from faults.injections import apply

    from clipx.cli import main

    apply()
    try:
        main()
    except SystemExit as end:
        leave(end.code)
