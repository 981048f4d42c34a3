"""The process that runs the steps of `gpu_plan.py`: orders come by standard input, outcomes go by standard output.

An order is a JSON object with `step`, `entry` and `limit_s`; the outcome is a line. All that is printed goes to
standard error, which is the log. After a step that fails the process is of no more use: CUDA's errors stay.
"""

import faulthandler
import gc
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpu_report import Report


def run(order: dict[str, object], report: Report) -> str:
    """Runs a step; returns `ok` or one line that says what failed."""
    report.step = str(order["step"])
    report.failures.clear()
    print(f"\n== {report.step}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback_later(max(0.1, float(str(order["limit_s"])) - 1))  # where it hangs, before it is ended
    try:
        module, _, function = str(order["entry"]).partition(":")
        getattr(importlib.import_module(module), function)(report)
        _clean_up()
    except BaseException as error:
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return f"wrong: {'; '.join(report.failures)[:300]}" if report.failures else "ok"


class Said(logging.Handler):
    """Makes rows of what clipx warns of, a fall-back for instance, and of which attention a trial chose."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Once for each message and step: the closing table has each message once."""
        if record.levelno >= logging.WARNING or record.name == "clipx.models.attention.trial":
            self._report.say(what=record.levelname.lower(), mode=record.getMessage()[:250])


def _clean_up() -> None:
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.compiler.reset()  # another model's shapes would be dynamic ones of the same code
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def main(folder: Path, modules: Sequence[str], *, rehearse: bool) -> None:
    """Imports the modules, then runs what is ordered until there are no more orders."""
    outcomes = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and children print is no outcome
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # what was chosen, what fell back
    report = Report(folder, rehearse=rehearse)
    logging.getLogger("clipx").addHandler(Said(report))
    began = time.monotonic()
    with suppress(Exception):  # the first step that needs the module says it
        for module in modules:
            importlib.import_module(module)
    report.imported_s = time.monotonic() - began
    if rehearse and "torch" in sys.modules:  # a CUDA that computes nothing has no cuDNN
        sys.modules["torch"].backends.cuda.enable_cudnn_sdp(False)
        sys.modules["torch"].backends.cudnn.enabled = False
    for line in sys.stdin:
        print(run(json.loads(line), report), file=outcomes, flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--rehearse"]
    main(Path(words[0]), words[1:], rehearse="--rehearse" in sys.argv)
