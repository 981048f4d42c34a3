"""The run folder: whose files lie in it, and how they stand when the steps begin.

clipx replaces, cuts and removes files here. It does so with what it wrote itself, which their content shows; a run does
not start over anything else.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from yaml import YAMLError

from clipx.checkpoint.best import EVAL_FOLDER, read_result
from clipx.checkpoint.store import CONFIG, CheckpointStore, checkpoints_of
from clipx.config.load import dump_config, warn_of_secrets
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import InputError, RunError
from clipx.pretrained.kept_texts import TEXTS, is_kept, keep_texts
from clipx.storage.folders import folder_at, write_atomically
from clipx.storage.json_rows import each_row
from clipx.train.build import Run
from clipx.train.build_selection import SAMPLES
from clipx.train.metrics.json_lines import drop_after

log = logging.getLogger(__name__)

_MARK = "# The resolved config of the latest start. Every start writes it anew, without what was changed here.\n"
_RESOLVED = frozenset({"run_dir", "seed", "global_batch_size", "data", "model", "optim", "checkpoint", "track"})


def check_folder(run_dir: Path) -> None:
    """Looks, before anything is written, for files of others under the names that a run uses.

    Raises:
        InputError: names them.
    """
    own: dict[str, Callable[[Path], bool]] = {
        CONFIG: _is_config,
        ".lock": _is_lock,
        "status.json": _is_status,
        "metrics.jsonl": _rows_with("step", "samples_seen", "data_wait_s"),
        "quarantine.jsonl": _rows_with("step", "shard", "key"),
        "rollbacks.jsonl": _rows_with("step", "back_to"),
        "starts.jsonl": _rows_with("began_at", "step", "hosts"),
        SAMPLES: _rows_with("step", "batch", "samples"),
    }
    try:
        found = {name: run_dir / name for name in own if (run_dir / name).exists()}
        others = [name for name, path in found.items() if not path.is_file() or not own[name](path)]
    except OSError as error:
        raise InputError(f"run_dir={run_dir} cannot be read ({error}); mend the storage or choose another") from error
    if others:
        raise InputError(
            f"run_dir={run_dir} holds {', '.join(others)}, not written by clipx, and a run writes files of these "
            "names; move what is there or choose another run_dir"
        )


def open_folder(run: Run) -> None:
    """The config as it now is, what reads texts; nothing left of an unfinished save, or of steps that come again.

    Written by rank 0.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        run.monitor.truncate_after(run.progress.step)
        if not run.runtime.is_main:
            return
        drop_after(run.run_dir / SAMPLES, run.progress.step)
        write_atomically(run.run_dir / CONFIG, _MARK + dump_config(run.config))
        warn_of_secrets(run.config)
        if run.progress.step == 0 or not is_kept(run.run_dir / TEXTS):
            keep_texts(run.run_dir, run.config.model, run.encoder.tokenizer)
        (run.run_dir / "status.json").unlink(missing_ok=True)
        for path in (run.run_dir / EVAL_FOLDER).glob("*.json"):
            if _result_step(path) > run.progress.step:
                path.unlink()
    except OSError as error:
        raise RunError(
            f"run_dir={run.run_dir} cannot be written ({error}); free space or mend it, then start again"
        ) from error
    _discard_unfinished(checkpoints_of(run.config))


def _discard_unfinished(store: CheckpointStore) -> None:
    try:
        store.discard_unfinished()
    except OSError as error:
        log.warning("cannot remove an unfinished checkpoint in %s (%s); it stays until the next start", store, error)


def _result_step(path: Path) -> int:
    """The step of an evaluation's result that a run wrote; 0 of any other file."""
    result = read_result(folder_at(path.parent), path.name)
    return 0 if result is None else result.step


def _is_config(path: Path) -> bool:
    """With the mark or, of earlier versions, a whole config in the dumper's own form, which has no comments."""
    text = path.read_text(errors="replace")
    if text.startswith(_MARK):
        return True
    try:
        content = read_yaml(text)
    except YAMLError:
        return False
    return isinstance(content, dict) and content.keys() >= _RESOLVED and write_yaml(content) == text


def _is_lock(path: Path) -> bool:
    text = path.read_text(errors="replace")
    return not text or text.startswith("process ")


def _is_status(path: Path) -> bool:
    content = _json(path)
    return isinstance(content, dict) and content.get("status") in {"complete", "again", "failed"}


def _rows_with(*names: str) -> Callable[[Path], bool]:
    """Whether the first row of a file of JSON lines has these names, or all of it is one line that a crash has torn."""

    def is_own(path: Path) -> bool:
        first = next(each_row(path), None)  # of a long run the whole file is larger than memory
        if first is not None:
            return first.keys() >= set(names)
        with path.open("rb") as file:
            line = file.readline()
        return line.strip(b"\0")[:1] in (b"", b"{") and not line.endswith(b"\n")

    return is_own


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(errors="replace"))
    except (ValueError, RecursionError):
        return None
