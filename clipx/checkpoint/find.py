"""Finds what a person calls a model: a run folder, a checkpoint, an export, or another library's folder.

Imports no torch, so that a wrong name is said at once.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipx.checkpoint.best import best_first, read_scores, stop_rule
from clipx.checkpoint.manifest import MANIFEST
from clipx.checkpoint.store import CONFIG, STATE, Checkpoint, CheckpointStore, checkpoints_of, stored_config
from clipx.errors import InputError
from clipx.storage.folders import Folder, folder_at
from clipx.storage.hub import hub_folder, hub_model

log = logging.getLogger(__name__)

EXPORT_CONFIG = "clipx_config.yaml"
"""The file of an export that has the resolved config of the run."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a stored model, and its kind."""

    kind: Literal["checkpoint", "export", "transformers", "open_clip"]
    folder: Folder
    config: str
    """Name of the file, in the folder, that describes the model: of the run that trained it, or the library's."""

    @property
    def local(self) -> Path:
        """The folder on the disk, wherever a later process stands; only checkpoints may lie elsewhere."""
        assert self.folder.path is not None, f"{self.folder} is not on the disk"
        return self.folder.path.absolute()


def find_model(path: Path | str, *, newest: bool = False) -> ModelFiles:
    """Finds a stored model, the MODEL of the command line.

    That is a run folder, a checkpoint, an export, a folder of transformers' or open_clip's with a config, or one of the
    last three at the hub (hf://ORG/NAME[@REVISION]), which is downloaded if it is not in the cache.

    For a run folder it is the newest good checkpoint; of a run with `stop` the best good one, once it was evaluated.
    Checkpoints, and a folder of them, may have an address (s3://...); a run folder knows the address of its own.

    Args:
        path: or address.
        newest: of a run folder the newest good checkpoint, also where another one is the best: what a resume takes.

    Raises:
        InputError: the path is none of these or cannot be read, the checkpoint is broken, or the run has no good one.
    """
    folder = _folder(path)
    with _readable_errors(folder):
        found = _look(folder)
        if isinstance(found, _Checkpoints):
            return _newest(folder, found.store) if newest else _best(folder, found)
        if found.kind == "checkpoint" and (problem := Checkpoint(folder).problem()):
            raise InputError(f"{folder}: the checkpoint is broken ({problem}); give another, or the run folder")
        return found


def find_config(path: Path | str) -> ModelFiles:
    """Finds what describes a stored model: no weights are read, not even to see whether they are whole.

    Raises:
        InputError: the path is none of `find_model`'s or cannot be read, or the run has no checkpoint.
    """
    folder = _folder(path, weights=False)
    with _readable_errors(folder):
        found = _look(folder)
        if isinstance(found, ModelFiles):
            return found
        named = reversed(found.store.checkpoints())
        whole = (checkpoint for checkpoint in named if {MANIFEST, CONFIG} <= set(checkpoint.folder.names()))
        newest = next(whole, None)
        return _newest(folder, found.store) if newest is None else ModelFiles("checkpoint", newest.folder, CONFIG)


def require_model(path: Path | str) -> None:
    """Looks whether a local folder, or a model at the hub, has the files of a model; their content may be long.

    Raises:
        InputError: `find_model` would raise it, too.
    """
    folder = _folder(path, weights=False)
    if folder.path is None:
        return
    with _readable_errors(folder):
        found = _look(folder)
        if isinstance(found, _Checkpoints) and not found.store.checkpoints():
            _newest(folder, found.store)


def address_of(path: Path | str) -> str:
    """A path as it is; an address with both its slashes, of which pathlib takes one."""
    return re.sub(r"^(\w+):/(?!/)", r"\1://", str(path))


def _folder(path: Path | str, *, weights: bool = True) -> Folder:
    """The folder at a path or address; that of a model at the hub, with weights or without, lies in its cache."""
    address = address_of(path)
    model = hub_model(address)
    return folder_at(address if model is None else hub_folder(model, weights=weights))


@contextmanager
def _readable_errors(folder: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error}); check the address and the storage") from error


@dataclass(frozen=True)
class _Checkpoints:
    """The checkpoints of which one is the model."""

    store: CheckpointStore
    best_first: Sequence[int] = ()
    """The steps that come before the newest one, where the run says which of them are good."""


def _look(folder: Folder) -> ModelFiles | _Checkpoints:
    """The files of a model, or the store that may hold them; no checkpoint is read."""
    if folder.path is not None and not folder.path.is_dir():
        fault = "is a file" if folder.path.exists() else "no such folder"
        raise InputError(
            f"{folder}: {fault}; give a run folder, a checkpoint, an export, a model of transformers or open_clip, or "
            "hf://ORG/NAME"
        )
    names = folder.names()
    if EXPORT_CONFIG in names:
        return ModelFiles("export", folder, EXPORT_CONFIG)
    if MANIFEST in names:
        return ModelFiles("checkpoint", folder, CONFIG)
    if CONFIG in names and STATE not in names:
        config = replace(stored_config(folder), run_dir=folder.address)  # it may have been moved
        rule = stop_rule(config)
        return _Checkpoints(checkpoints_of(config), best_first(read_scores(folder, rule), rule) if rule else ())
    if "checkpoints" in names:
        return _Checkpoints(CheckpointStore(f"{folder}/checkpoints"))
    if OPEN_CLIP_CONFIG in names and folder.path is not None:  # the two together: what open_clip puts on the hub
        return ModelFiles("open_clip", folder, OPEN_CLIP_CONFIG)
    if TRANSFORMERS_CONFIG in names and folder.path is not None:
        return ModelFiles("transformers", folder, TRANSFORMERS_CONFIG)
    store = CheckpointStore(folder.address)
    if not store.checkpoints():
        raise InputError(
            f"{folder} is neither a run folder, nor a checkpoint, nor an export, nor a model of transformers or "
            "open_clip (it has none of their files)"
        )
    return _Checkpoints(store)


def _best(folder: Folder, found: _Checkpoints) -> ModelFiles:
    """The best good checkpoint; the newest good one where none has a score."""
    saved = {checkpoint.step: checkpoint for checkpoint in found.store.checkpoints()} if found.best_first else {}
    for place, step in enumerate(found.best_first):
        wrong = saved[step].problem() if step in saved else "there is none"
        if wrong is None:
            return ModelFiles("checkpoint", saved[step].folder, CONFIG)
        if place == 0 or step in saved:  # of those that were less good, most are not kept
            log.warning("%s: the checkpoint of step %d is not usable (%s); using the next best", folder, step, wrong)
    return _newest(folder, found.store)


def _newest(folder: Folder, store: CheckpointStore) -> ModelFiles:
    checkpoint = store.newest()
    if checkpoint is None:
        broken = len(store.checkpoints())
        hint = f"all {broken} are broken, train it anew" if broken else "train until its first save"
        raise InputError(f"{folder}: the run has no good checkpoint; {hint}")
    return ModelFiles("checkpoint", checkpoint.folder, CONFIG)
