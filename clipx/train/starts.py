"""starts.jsonl: every start of a run, where it went on, and on which machines. For `clipx report`."""

import socket
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import torch

from clipx.host import own_cores
from clipx.printable import redacted
from clipx.storage.json_rows import read_rows
from clipx.train.build import Run
from clipx.train.metrics.json_lines import JsonLines

STARTS = "starts.jsonl"


def record_start(run: Run, *, began_at: datetime) -> None:
    """Adds a row for a start, once, though its phases and rollbacks come here too; all ranks call this.

    A row that cannot be written costs the row, never the run.
    """
    ranks = Counter(run.runtime.gather_objects((socket.gethostname(), _device(run.runtime.device))))
    path = Path(run.run_dir) / STARTS
    began = began_at.isoformat(timespec="milliseconds")
    if not run.runtime.is_main:
        return
    with suppress(OSError):
        if any(row.get("began_at") == began for row in read_rows(path)):
            return
    row = {
        "began_at": began,
        "step": run.progress.step,
        "hosts": [{"host": host, "device": device, "ranks": count} for (host, device), count in ranks.items()],
        "cores": len(own_cores().numbers),
        "micro_batch_size": run.stepper.micro_batch_size,
        "versions": run.state.versions,
    }
    JsonLines(path).append([redacted(row)])


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
