"""What a run goes on from, and what of its config has changed since: some of it stops the resume, the rest is said."""

import logging
import platform
import subprocess
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipx import __version__
from clipx.checkpoint.best import stop_rule
from clipx.checkpoint.find import find_model
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import Checkpoint, checkpoints_of
from clipx.config.changes import Changes, changes_between, named
from clipx.config.fit import FitConfig
from clipx.config.model import ModelConfig
from clipx.config.schema import JobConfig, RunConfig
from clipx.data.teachers.description import Description
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError, RunError
from clipx.storage.folders import folder_at

log = logging.getLogger(__name__)

_SAME_CURVE = (
    # where and when things are written, read, measured and stopped
    *("run_dir", "checkpoint.*", "track.*", "evaluate*", "stop*", "keep_features"),
    *("max_minutes", "max_skipped_steps", "stop_signals", "stall_timeout_s"),
    *("data.workers", "data.prefetch_batches", "data.remote.*", "data.cache*", "data.index", "data.max_bad_fraction"),
    # how the same is computed, to rounding
    *("micro_batch_size", "activation_checkpointing", "attention", "compile", "deterministic", "parallel.*"),
    # the start, which is over
    *("start_from", "start_from_anyway", "branch_from"),
    *("model.init_*", "model.image.pretrained", "model.text.pretrained"),
    *("encoder.from", "encoder.image.pretrained", "encoder.text.pretrained"),
    # what evaluation alone does
    *("model.image.resize", "model.image.crop"),
    # what DataOrderRecord compares
    *("seed", "data.train", "data.sources", "data.sources.*.shards", "data.sources.*.weight"),
    *("data.sources.*.index", "data.lanes", "data.shuffle_window", "data.allow_*", "data.*_shards"),
)
"""Keys whose change leaves the rest of the run as it would have been."""


def newest_checkpoint(config: JobConfig, runtime: Runtime) -> Checkpoint | None:
    """What the run goes on from: rank 0 looks through its checkpoints, every rank learns which."""
    store, step = checkpoints_of(config), None
    with runtime.raise_on_all_ranks():
        if runtime.is_main:
            try:
                newest = store.newest()
                if newest is None and store.checkpoints():
                    raise RunError(f"no checkpoint in {store} is whole; move them away to start from the beginning")
                if newest is not None:
                    step = newest.step
                    store.set_aside(after_step=step, reason="broken")
            except OSError as problem:
                raise InputError(
                    f"the checkpoints in {store} cannot be read ({problem}); mend the storage or choose another place"
                ) from problem
    step = runtime.broadcast_from_rank0(step)
    return _branched_from(config, runtime) if step is None else store.checkpoint(step)


def _branched_from(config: JobConfig, runtime: Runtime) -> Checkpoint | None:
    """The checkpoint of `branch_from`; None without it.

    Raises:
        InputError: there is none, or it is broken; on all ranks alike.
    """
    if not isinstance(config, RunConfig) or config.branch_from is None:
        return None
    address = ""
    with runtime.raise_on_all_ranks():
        if runtime.is_main:
            found = find_model(config.branch_from, newest=True)
            if found.kind != "checkpoint":
                raise InputError(
                    f"branch_from={config.branch_from} has no training state; give a run folder or one of its "
                    "checkpoints"
                )
            if wrong := Checkpoint(found.folder).problem():
                raise InputError(f"branch_from={config.branch_from} is broken ({wrong}); give another checkpoint")
            address = found.folder.address
            log.info("branches from %s", address)
    return Checkpoint(folder_at(runtime.broadcast_from_rank0(address)))


def is_branch(config: JobConfig, checkpoint: Checkpoint | None) -> bool:
    """Whether the run goes on from another one's checkpoint, and has none of its own yet."""
    return checkpoint is not None and str(checkpoint) != str(checkpoints_of(config).checkpoint(checkpoint.step))


def compatible_state(
    config: JobConfig, checkpoint: Checkpoint, record: DataOrderRecord, *, taught: Description | None
) -> RunState:
    """The state to resume from.

    Args:
        config: of the run.
        checkpoint: what it goes on from.
        record: of the data order.
        taught: of the store of teachers' embeddings that it reads; None without one.

    Raises:
        InputError: model, data order or teachers are not those that the run began with, or it has gone further than its
            end.
    """
    saved, begun = checkpoint.state(), checkpoint.config()
    _go_on(saved, config, record)
    if config.checkpoint.folder is not None and begun.run_dir != config.run_dir:
        log.warning(
            "%s was written by the run in %s; if that one still lives, give this one a checkpoint.folder of its own, "
            "or they remove each other's checkpoints",
            checkpoint,
            begun.run_dir,
        )
    if wrong := changes_between(_shape(begun.model), _shape(config.model)):
        values = changes_between(begun.model, config.model)
        wrong = {key: values[key] for key in wrong}
        raise InputError(f"{named(wrong, 'model.')}: not the model of {checkpoint}; restore it or choose a new run_dir")
    changes = [
        change.replace("global_batch_size:", f"{config.pairs_read_key}:", 1)
        for change in saved.data_order.differences(record)
    ]
    changes += _retaught(saved, config, taught)
    if changes and not config.data.allow_change:
        raise InputError(
            f"the data order of {config.run_dir} has changed since {checkpoint.name}: {'; '.join(changes)}; "
            "restore it, choose a new run_dir, or go on with the new data by data.allow_change=true"
        )
    if changes:
        log.warning("going on with a changed data order: %s", "; ".join(changes))
    _say_changes(saved, begun, config, is_batch_said=saved.data_order.global_batch_size != record.global_batch_size)
    return saved


def _retaught(saved: RunState, config: JobConfig, taught: Description | None) -> list[str]:
    """What changed if the store of teachers holds something else, whatever its path: other views or other vectors.

    Where one was added, or taken away, the config says it.
    """
    if not isinstance(config, RunConfig) or config.teachers is None or taught is None or saved.teachers is None:
        return []
    before, after = saved.teachers, taught.fingerprint()
    key, folder = config.teachers
    return [] if before == after else [f"store {key}={folder}: {before[:8]} -> {after[:8]}"]


def _say_changes(saved: RunState, begun: JobConfig, config: JobConfig, *, is_batch_said: bool) -> None:
    """Names what is computed in another way from here on; where a model or data are others, the resume has ended."""
    changes = {
        key: values
        for key, values in changes_between(begun, config).items()
        if not any(fnmatchcase(key, pattern) for pattern in _SAME_CURVE)
    }
    if is_batch_said:  # with `select` the data order's record has what is read, and not what is trained on
        changes.pop("global_batch_size", None)
    if changes:
        log.warning("going on from step %d with a changed config: %s", saved.progress.step, named(changes))
    before, rule = stop_rule(begun), stop_rule(config)
    is_same = before is None or rule is None or before.evaluation != rule.evaluation or before.measured == rule.measured
    if rule is not None and not is_same:
        log.warning(
            "evaluate.%s measures another thing than before step %d (other batches, loss or captions); "
            "of its results, those from here on count for `stop`",
            rule.evaluation,
            saved.progress.step,
        )
    libraries = {name: (saved.versions.get(name, now), now) for name, now in versions().items() if name != "git_commit"}
    updated: Changes = {name: pair for name, pair in libraries.items() if pair[0] != pair[1]}
    if updated:
        log.warning("going on from step %d with other versions: %s", saved.progress.step, named(updated))


def _go_on(saved: RunState, config: JobConfig, record: DataOrderRecord) -> None:
    """Brings the progress to global batches of the config's size.

    Raises:
        InputError: the run has gone further than the config's end.
    """
    progress, before, after = saved.progress, saved.data_order.global_batch_size, record.global_batch_size
    if before != after:
        progress.change_batch(before=before, after=after)
    changes = [(step, seen) for step, seen in progress.batch_changes]
    if config.length(changes).samples_seen(progress.step) != progress.samples_seen:
        progress.batch_changes.append([progress.step, progress.samples_seen])
        changes.append((progress.step, progress.samples_seen))
    if progress.step > config.length(changes).num_steps:
        done, key, end = _end_of(config, progress)
        raise InputError(f"{config.run_dir} has {done}, more than {key}={end}; raise {key} or choose a new run_dir")


def _end_of(config: JobConfig, progress: Progress) -> tuple[str, str, object]:
    """What the run has done, and the key that says where it ends, with its value."""
    if isinstance(config, FitConfig):
        return f"done {progress.step} steps", "epochs", config.epochs
    if config.samples is not None:
        return f"seen {progress.samples_seen} pairs", "samples", config.samples
    return f"done {progress.step} steps", "steps", config.steps


def _shape(model: ModelConfig) -> ModelConfig:
    """The model without what may change in a run: starting points, the clamp, patch dropout, evaluation's crop."""
    return replace(
        model,
        image=replace(model.image, patch_drop=0.0, pretrained=False, resize="shortest", crop="round"),
        init_logit_scale=1.0,
        init_logit_bias=None if model.init_logit_bias is None else 0.0,
        max_logit_scale=1.0,
    )


def versions() -> dict[str, str]:
    """What computed this: recorded in every checkpoint."""
    names = ("torch", "torchvision", "timm", "transformers", "accelerate", "webdataset", "numpy")
    found = {"python": platform.python_version(), "clipx": __version__}
    for name in names:
        with suppress(PackageNotFoundError):  # imported from a folder and not installed
            found[name] = version(name)
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with suppress(OSError):  # no git on this machine
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            found["git_commit"] = commit.stdout.strip()
    return found
