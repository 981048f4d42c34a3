"""Starts the run's trackers, wandb and tensorboard, through accelerate, whose object (in `Runtime`) holds them."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipx.config.paths import expand_home
from clipx.distributed.runtime import Runtime
from clipx.printable import redacted

log = logging.getLogger(__name__)

_LESS_TO_MORE = ("disabled", "offline", "online")
# What the config says, and wandb reads from the environment as well, some of it before what it is told.
_GIVEN = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "WANDB_NAME")


def start_trackers(
    runtime: Runtime, *, project: str, config: dict[str, Any], wandb_mode: str, wandb_id: str, run_dir: Path
) -> None:
    """Opens, on the main process, the trackers that the runtime was started with.

    `wandb_id` is the same at each start of a run, which so continues its own wandb run; `run_dir` names it there.
    """
    mode = least_tracking(wandb_mode, os.environ)
    given = {name: value for name in _GIVEN if (value := os.environ.pop(name, ""))}
    ignored = [name for name in given if name != "WANDB_DISABLED" and given[name].lower() not in (mode, "dryrun")]
    if ignored and mode != "disabled":
        log.warning("wandb goes by the config; ignored from the environment: %s", ", ".join(ignored))
    os.environ.setdefault("WANDB_SILENT", "true")
    if not _has_user_cache():  # else wandb's service writes its log to the terminal
        os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
    # of the machine wandb uploads the command line too, unless it holds secrets
    settings = {"x_disable_meta": redacted(sys.argv) != sys.argv}
    wandb = {"id": wandb_id, "resume": "allow", "mode": mode, "dir": str(run_dir), "name": run_dir.name}
    init = {"wandb": {**wandb, "settings": settings}}
    runtime.accelerator.init_trackers(project, config=_scalars(config), init_kwargs=init)


def _has_user_cache() -> bool:
    """Whether the user's cache folder can be written; in a container there may be no home."""
    if not os.environ.get("HOME"):
        return False
    folder = Path(os.environ.get("XDG_CACHE_HOME") or expand_home("~/.cache"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def least_tracking(mode: str, environment: Mapping[str, str]) -> str:
    """The mode of wandb: the config's, or that of WANDB_MODE or WANDB_DISABLED if less leaves this machine."""
    asked = environment.get("WANDB_MODE", "").strip().lower()
    asked = {"dryrun": "offline"}.get(asked, asked)
    if environment.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        asked = "disabled"
    return min(mode, asked if asked in _LESS_TO_MORE else mode, key=_LESS_TO_MORE.index)


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
