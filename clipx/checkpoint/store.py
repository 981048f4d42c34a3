"""Checkpoints on disk: written aside, fsynced, checksummed and renamed, so that what bears the name is whole.

    checkpoints/step-00001000/
        .metadata, __R_0.distcp    torch.distributed.checkpoint: model and optimizer, loadable on any number of ranks
        state.json                 `RunState`
        config.yaml                the resolved config
        manifest.json              size and SHA-256 of every other file; written last

A folder without a manifest that fits its files is passed over for the one before.
"""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from clipx.checkpoint.state import RunState
from clipx.errors import InputError

log = logging.getLogger(__name__)

_PREFIX = "step-"
_ASIDE = ".saving-"
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)  # names instead of positions: loads on another wrapping


def checkpoint_name(step: int) -> str:
    """Folder name of a step; names sort as steps do."""
    return f"{_PREFIX}{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix(_PREFIX))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, verified or not."""
    folders = (run_dir / "checkpoints").glob(f"{_PREFIX}*")
    return sorted(path for path in folders if path.name.removeprefix(_PREFIX).isdecimal() and path.is_dir())


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint that verifies, or None; each broken one on the way is named in a warning."""
    for folder in reversed(list_checkpoints(run_dir)):
        problem = verify(folder)
        if problem is None:
            return folder
        log.warning("checkpoint %s is broken (%s); using the one before", folder, problem)
    return None


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file of the manifest present, of its size and SHA-256.

    Raises:
        OSError: the storage did not answer, which says nothing about the checkpoint.
    """
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        return f"manifest.json: {error}"
    for name, entry in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if _sha256(path) != entry["sha256"]:
            return f"{name} differs from its checksum"
    return None


def set_aside(run_dir: Path, *, after_step: int, reason: str) -> None:
    """Renames checkpoints after a step to `REASON-step-...`, out of the way; kept for a person to look at."""
    for folder in list_checkpoints(run_dir):
        if checkpoint_step(folder) > after_step:
            folder.replace(_free_name(folder.with_name(f"{reason}-{folder.name}")))


def save_tensors(
    aside: Path, model: nn.Module, optimizer: Optimizer, *, average: Mapping[str, Tensor] | None = None
) -> None:
    """All ranks together: writes weights and optimizer state into `aside`, each rank its part, fsynced.

    Args:
        aside: an empty folder.
        model: as it trains.
        optimizer: the same.
        average: of the weights by parameter name, where one is kept.

    Raises:
        OSError: on every rank, when any rank could not write.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_OPTIONS)
    writer = FileSystemWriter(aside, sync_files=True)
    with _without_single_process_warning():
        try:
            save(_tree(model_state, optimizer_state, average), storage_writer=writer)
        except CheckpointException as error:  # a BaseException, which no caller would think to catch
            raise OSError(_first_cause(error)) from error


def aside_folder(run_dir: Path, step: int) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return run_dir / "checkpoints" / f"{_ASIDE}{checkpoint_name(step)}"


def publish(aside: Path, state: RunState, config_text: str) -> Path:
    """Rank 0, once all ranks have written: adds state, config and manifest, then renames.

    Raises:
        OSError: the disk did not take it; `aside` is left for `discard`.
    """
    _write_synced(aside / "state.json", json.dumps(state.to_json(), indent=2))
    _write_synced(aside / "config.yaml", config_text)
    files = sorted(path for path in aside.iterdir() if path.name != "manifest.json")
    manifest = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    _write_synced(aside / "manifest.json", json.dumps(manifest, indent=2))
    _sync_folder(aside)
    final = aside.with_name(aside.name.removeprefix(_ASIDE))
    if final.exists():  # a broken one of the same step, or a step trained again after a broken one was passed over
        shutil.rmtree(final)
    aside.rename(final)
    _sync_folder(final.parent)
    return final


def discard(aside: Path) -> None:
    """Removes what an unfinished save left behind."""
    shutil.rmtree(aside, ignore_errors=True)


def discard_unfinished(run_dir: Path) -> None:
    """Removes every unfinished save of a run; called before the first save of a process."""
    for path in (run_dir / "checkpoints").glob(f"{_ASIDE}*"):
        discard(path)


def apply_retention(run_dir: Path, *, keep_last: int, keep_every: int) -> None:
    """Removes old checkpoints: all but the newest `keep_last` and every one at a multiple of `keep_every` steps."""
    folders = list_checkpoints(run_dir)
    for folder in folders[:-keep_last]:
        if not (keep_every and checkpoint_step(folder) % keep_every == 0):
            shutil.rmtree(folder)


def load_tensors(
    folder: Path, model: nn.Module, optimizer: Optimizer, *, average: Mapping[str, Tensor] | None = None
) -> None:
    """All ranks together: fills model, optimizer and average in place, whatever the number of ranks that saved.

    Weights and moments come from the checkpoint; betas, weight decay and the like stay as the config built them.
    Weights that had no update before the checkpoint, for they were locked, have no moments after it either.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    # only now: it takes a step without gradients, in which some optimizers (adan, lamb) put a count into their groups
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_OPTIONS)
    saved = _saved_names(folder)
    fresh = _without_moments(optimizer_state, saved)
    known = {
        name: value
        for name, value in optimizer_state.items()
        if f"optimizer.{name}" in saved and _owner(name) not in fresh
    }
    tree = _tree(model_state, known, average)
    with _without_single_process_warning(), _named_mismatch(folder):
        load(tree, checkpoint_id=folder)
    optimizer_state |= tree["optimizer"]  # tensors were filled in place, numbers were replaced
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state, options=_OPTIONS)
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)
    for name, parameter in model.named_parameters():
        if name.removeprefix("module.") in fresh:
            optimizer.state.pop(parameter, None)


def load_weights(folder: Path, model: nn.Module, *, average: bool = False) -> None:
    """Fills the weights of a bare model in this process, with the trained ones or their average; for inference."""
    state = get_model_state_dict(model, options=_OPTIONS)
    with _without_single_process_warning(), _named_mismatch(folder):
        load({"average" if average else "model": state}, checkpoint_id=folder, no_dist=True)
    set_model_state_dict(model, state, options=_OPTIONS)


def holds_average(folder: Path) -> bool:
    """Whether a checkpoint has an average of the weights beside them."""
    return any(name.startswith("average.") for name in _saved_names(folder))


def _tree(
    model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any], average: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    tree = {"model": dict(model_state), "optimizer": dict(optimizer_state)}
    return tree if average is None else {**tree, "average": dict(average)}


def _saved_names(folder: Path) -> frozenset[str]:
    """Dotted names of all that a checkpoint holds."""
    return frozenset(FileSystemReader(folder).read_metadata().state_dict_metadata)


def _without_moments(optimizer_state: Mapping[str, Any], saved: frozenset[str]) -> frozenset[str]:
    """Parameters of which the checkpoint lacks a part of the state: never trained, or by another optimizer."""
    states = [name for name in optimizer_state if name.startswith("state.")]
    lacking = frozenset(_owner(name) for name in states if f"optimizer.{name}" not in saved)
    if lacking:
        log.warning(
            "%d of %d parameters have no optimizer state in the checkpoint and begin with none",
            len(lacking),
            len({_owner(name) for name in states}),
        )
    return lacking


def _owner(name: str) -> str:
    """The parameter in `state.PARAMETER.MOMENT`."""
    return name.removeprefix("state.").rpartition(".")[0]


def load_state(folder: Path) -> RunState:
    """The numbers of a checkpoint."""
    return RunState.from_json(json.loads((folder / "state.json").read_text()))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file so that a reader, or a crash, sees the old or the new content and nothing between."""
    aside = path.with_name(f".{path.name}.new")
    _write_synced(aside, text)
    aside.replace(path)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    """One process without a process group is a plain case here, not one to warn of at every save."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@contextmanager
def _named_mismatch(folder: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        raise InputError(
            f"{folder} does not fit the model of this config ({_first_cause(error)}); "
            "use the config that trained it or a new run_dir"
        ) from error


def _first_cause(error: CheckpointException) -> str:
    """One line of what went wrong on the first rank where it did."""
    _, (cause, _) = min(error.failures.items())
    return (str(cause).strip() or repr(cause)).splitlines()[0]


def _free_name(path: Path) -> Path:
    """`path`, or the first of `path.1`, `path.2`, ... that does not exist."""
    candidates = chain([path], (path.with_name(f"{path.name}.{number}") for number in count(1)))
    return next(candidate for candidate in candidates if not candidate.exists())
