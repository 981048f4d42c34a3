"""Starts the run's trackers, wandb and tensorboard, through accelerate, whose object (in `Runtime`) holds them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipx.distributed.runtime import Runtime


def start_trackers(
    runtime: Runtime, *, project: str, config: dict[str, Any], wandb_mode: str, wandb_id: str, run_dir: Path
) -> None:
    """Opens, on the main process, the trackers that the runtime was started with.

    `wandb_id` is the same at each start of a run, which so continues its own wandb run; `run_dir` names it there.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    wandb = {"id": wandb_id, "resume": "allow", "mode": wandb_mode, "dir": str(run_dir), "name": run_dir.name}
    runtime.accelerator.init_trackers(project, config=_scalars(config), init_kwargs={"wandb": wandb})


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
