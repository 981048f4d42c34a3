"""Looks whether what the arguments name is there, before torch is imported, which takes seconds.

What is found missing is asked for in the way of the library, which then says what is wrong. What is there may still be
wrong; the library finds that later. Under a launcher nothing is looked at: its ranks must find out together.
"""

import errno
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from clipx.errors import ClipxError, InputError

if TYPE_CHECKING:
    from clipx.config.data import Source
    from clipx.config.schema import JobConfig
    from clipx.data.suite_sets import SetPlace

P = ParamSpec("P")

_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID")


def is_alone() -> bool:
    """Whether this process is no rank of several."""
    return not any(os.environ.get(name) for name in _RANK_VARIABLES)


def _alone(check: Callable[P, None]) -> Callable[P, None]:
    """The check, where this process is no rank of several."""

    @wraps(check)
    def check_if_alone(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_alone():
            check(*args, **kwargs)

    return check_if_alone


@_alone
def require_model(path: Path | str) -> None:
    """Raises InputError if there is no model at `path`."""
    from clipx.checkpoint import find

    find.require_model(path)


@_alone
def require_evaluation_set(folder: Path, *, split: str = "test") -> None:
    """Raises InputError if there is no evaluation set, or it lacks a file that its kind needs, or the split."""
    from clipx.data.labelled import open_set

    open_set(str(folder), split=split)


@_alone
def require_places(places: "Sequence[SetPlace]", *, skip_missing: bool, training: bool = False) -> None:
    """Raises InputError if evaluation sets are not there, or if none is there that may be missing.

    Args:
        training: sets with one class per image must have a training part, and one set must be such a set.
    """
    from clipx.data.labelled import type_of
    from clipx.data.suite_sets import faults, without

    present = without(places, faults(places, training=training), skip_missing=skip_missing)
    if training and not any(type_of(place.opened()) == "classification" for place in present):
        raise InputError("--probe and --knn need a set with one class per image and a training part; name one")


@_alone
def require_shards(sources: "Iterable[Source]") -> None:
    """Raises InputError if a local shard, folder or pattern of a source is not there."""
    for source in sources:
        for pattern in source.shards:
            _require(pattern)


@_alone
def require_pictures(place: str | None) -> None:
    """Raises InputError if the local folder or shards that --pictures names are not there."""
    if place is None:
        return
    try:
        _require(place)
    except InputError as error:
        raise InputError(f"--pictures: {error}") from error


@_alone
def require_inputs(config: "JobConfig") -> None:
    """Raises InputError if local shards or evaluation data of a run are not there, or the model that it starts from.

    As after every failed start, status.json says so.
    """
    try:
        _require_inputs(config)
    except InputError as error:
        from clipx.train.liveness.run_lock import run_lock
        from clipx.train.liveness.status import write_failure

        run_dir = Path(config.run_dir)
        with suppress(ClipxError, OSError), run_lock(run_dir):
            write_failure(run_dir, error, step=0, rank=0)
        raise


def _require_inputs(config: "JobConfig") -> None:
    from clipx.config.data import sources
    from clipx.config.geometry import resolve_geometry
    from clipx.config.phases import check_stages

    captions = config.data.captions_per_image
    resolve_geometry(config.global_batch_size, config.micro_batch_size, 1, captions_per_image=captions)
    check_stages(config)
    require_folder(config.run_dir, option="run_dir")
    require_folder(config.checkpoint.folder, option="checkpoint.folder")
    require_shards(sources(config.data))
    if config.job == "pretrain" and config.teachers is not None:
        from clipx.data.teachers import teachers_of

        teachers_of(config)
    for evaluation in config.evaluate.values():
        if evaluation.type == "zeroshot" or (Path(evaluation.data) / "test").is_dir():
            require_evaluation_set(Path(evaluation.data), split=evaluation.split)
        else:
            _require(evaluation.data)
    if config.start_from is not None and _begins(config):
        try:
            require_model(config.start_from)
        except InputError as error:
            raise InputError(f"{'encoder.from' if config.job == 'fit' else 'start_from'}: {error}") from error


def _begins(config: "JobConfig") -> bool:
    """Whether nothing was saved yet; not asked of a store. A run that goes on needs the model no more."""
    from clipx.checkpoint.store import checkpoints_of

    store = checkpoints_of(config)
    try:
        return store.root.path is not None and not store.checkpoints()
    except OSError:
        return False


@_alone
def require_writable(path: Path | None, *, option: str) -> None:
    """Raises InputError if a file for results, if one is asked for, could not be written when they are there."""
    if path is None:
        return
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if path.is_dir():
        reason = errno.EISDIR
    elif nearest != path and not nearest.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(nearest, os.W_OK):
        reason = errno.EACCES
    else:
        return
    raise InputError(f"{option} {path}: cannot be written: {os.strerror(reason)}")


def require_outputs(files: Mapping[str, Path | None]) -> None:
    """Raises InputError if files for results could not be written, would replace each other, or somebody's non-JSON.

    Args:
        files: by option, those that are asked for; that of --json holds JSON.
    """
    from clipx.cli.output import require_json

    options: dict[str, str] = {}  # by file
    for option, path in files.items():
        if path is None:
            continue
        if option == "--json":
            require_json(path, option=option)
        require_writable(path, option=option)
        is_file = path.is_file() or not path.exists()  # /dev/stdout takes everything
        if is_file and (other := options.setdefault(os.path.realpath(path), option)) != option:
            raise InputError(f"{option} {path} is the file of {other}, too; name another")


@_alone
def require_folder(path: Path | str | None, *, option: str) -> None:
    """Raises InputError if a folder for results, if one is asked for and is local, cannot be there."""
    from clipx.storage.files import is_local

    if path is None or not is_local(str(path)):
        return
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise InputError(f"{option} {path} cannot be used: {nearest} is no folder; choose another")


def _require(pattern: str) -> None:
    from braceexpand import braceexpand

    from clipx.storage.files import is_local
    from clipx.storage.remote import PIPE

    for part in [pattern] if pattern.startswith(PIPE) else pattern.split("::"):
        if is_local(part):
            first = next(iter(braceexpand(part)), part)
            found = os.listdir(first) if os.path.isdir(first) else glob.glob(first) or os.path.lexists(first)
            if not found:
                from clipx.data.index.shard_list import expand_shards

                expand_shards([part])
