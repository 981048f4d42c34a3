"""Starts the run's trackers, wandb and tensorboard, through accelerate, whose object (in `Runtime`) holds them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipx.distributed.runtime import Runtime
from clipx.printable import redacted


def start_trackers(
    runtime: Runtime, *, project: str, config: dict[str, Any], wandb_mode: str, wandb_id: str, run_dir: Path
) -> None:
    """Opens, on the main process, the trackers that the runtime was started with.

    `wandb_id` is the same at each start of a run, which so continues its own wandb run; `run_dir` names it there.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # of the machine wandb uploads the command line too, unless it holds secrets
    settings = {"x_disable_meta": redacted(sys.argv) != sys.argv}
    wandb = {"id": wandb_id, "resume": "allow", "mode": wandb_mode, "dir": str(run_dir), "name": run_dir.name}
    init = {"wandb": {**wandb, "settings": settings}}
    runtime.accelerator.init_trackers(project, config=_scalars(config), init_kwargs=init)


def _scalars(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config with flat dotted keys and scalar values, which every tracker accepts."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _scalars(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + name] = value
        elif isinstance(value, Sequence) or value is None:
            flat[prefix + name] = str(value)
    return flat
