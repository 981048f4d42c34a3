"""The checkpoints of a run: a folder of folders, each of which is complete or does not count.

    step-00001000/
        .metadata, __R_0.distcp    torch.distributed.checkpoint: model and optimizer, for any number of ranks
        state.json                 `RunState`
        config.yaml                the resolved config
        manifest.json              size and SHA-256 of every other file; written last

On a disk a checkpoint is written under `.saving-step-...`, fsynced and renamed. An object store cannot rename: there
the files have their final names at once, and the manifest makes them a checkpoint. A checkpoint that does not fit its
manifest is passed over for the one before.

Others may keep their folders here too. What is removed is clipx's by what it holds: a checkpoint's manifest lists all
of it, a save under way has the mark `.unfinished`, or on a disk its hidden name and no file that clipx would not write.
"""

import json
import logging
import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

from clipx.checkpoint.manifest import MANIFEST, Entry, find_problem, read_manifest, recorded, write_manifest
from clipx.checkpoint.state import RunState
from clipx.config.load import load_config
from clipx.config.schema import JobConfig
from clipx.errors import InputError
from clipx.storage.folders import Folder, folder_at

log = logging.getLogger(__name__)

STATE, CONFIG = "state.json", "config.yaml"
_PREFIX = "step-"
_ASIDE = ".saving-"
_UNFINISHED = ".unfinished"
_OWN_FILES = re.compile(rf"{re.escape(STATE)}|{re.escape(CONFIG)}|{MANIFEST}|{_UNFINISHED}|\.metadata|__[\d_]+\.distcp")
# of its files, those that no other program's checkpoints have: torch's own names have two numbers
_OWN_SIGNS = re.compile(rf"{re.escape(STATE)}|{MANIFEST}|{_UNFINISHED}|__\d+_\d+_\d+\.distcp")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, by its folder. It may be broken or not exist."""

    folder: Folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """Name of the folder; names sort in the order of steps."""
        return self.folder.name

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return int(self.name.removeprefix(_PREFIX))

    def problem(self) -> str | None:
        """Reads all of it; returns what is wrong with it, or None.

        Raises:
            OSError: the storage did not answer, which says nothing about the checkpoint.
        """
        return find_problem(self.folder, checksums=True)

    def state(self) -> RunState:
        """The content of its state.json.

        Raises:
            InputError: it has another form.
            OSError: the storage did not answer.
        """
        try:
            return RunState.from_json(json.loads(self.folder.read(STATE)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{self}: {STATE} is not what clipx writes; take another checkpoint (move this one away)"
            ) from error

    def is_scheduled(self) -> bool:
        """Whether it is whole enough to say that it was saved by the count of steps (`RunState.scheduled`).

        Raises:
            OSError: the storage did not answer.
        """
        with suppress(FileNotFoundError, InputError):
            return self.state().scheduled
        return False

    def config(self) -> JobConfig:
        """The config of the run when it was saved."""
        return stored_config(self.folder)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        address: path or URL of the folder that holds them.
    """

    def __init__(self, address: Path | str) -> None:
        self.root = folder_at(address)
        self._left: set[str] = set()
        """Folders of others that have been named."""

    def __str__(self) -> str:
        return str(self.root)

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint of a step, whether it exists or not."""
        return Checkpoint(self.root.child(f"{_PREFIX}{step:08d}"))

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, oldest first, broken ones too; in an object store only those with a manifest.

        Raises:
            OSError: the storage did not answer.
        """
        named = self._named()
        return named if self.root.renames else [checkpoint for checkpoint in named if _completed(checkpoint)]

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is not broken, or None; logs a warning for each newer one that is broken.

        Raises:
            OSError: the storage did not answer.
        """
        for checkpoint in reversed(self.checkpoints()):
            wrong = checkpoint.problem()
            if wrong is None:
                return checkpoint
            log.warning("checkpoint %s is broken (%s); using the one before", checkpoint, wrong)
        return None

    def draft(self, step: int) -> Folder:
        """The folder into which the files of a new checkpoint are written."""
        final = self.checkpoint(step).folder
        return self.root.child(_ASIDE + final.name) if self.root.renames else final

    def begin(self, step: int) -> None:
        """Marks the draft as a save under way. Rank 0, before any rank writes.

        Raises:
            OSError: the storage did not take it, or something that is not clipx's is in the way.
        """
        for folder in (self.draft(step), self.checkpoint(step).folder):
            _check_own(folder)
        draft = self.draft(step)
        draft.make()
        draft.write(_UNFINISHED, "")

    def publish(self, step: int, entries: Mapping[str, Entry], *, state: RunState, config_text: str) -> Checkpoint:
        """Adds state, config and manifest to the draft and makes it a checkpoint. Rank 0, after all ranks have written.

        `entries` are those of the files that all ranks wrote.

        Raises:
            OSError: the storage did not take it, or another program's folder has the name; the draft is left for
                `discard`.
        """
        draft, checkpoint, entries = self.draft(step), self.checkpoint(step), dict(entries)
        for name, text in ((STATE, json.dumps(state.to_json(), indent=2)), (CONFIG, config_text)):
            with recorded(draft, name, entries) as file:
                file.write(text.encode())
        write_manifest(draft, entries)
        draft.remove_file(_UNFINISHED)
        if self.root.renames:
            _check_own(checkpoint.folder)
            checkpoint.folder.remove()  # a broken one of the same step
            draft.move(checkpoint.name)
        return checkpoint

    def discard(self, step: int) -> None:
        """Removes the files of an unfinished save; if the storage fails, they stay."""
        with suppress(OSError):
            _remove_unfinished(self.draft(step))

    def discard_unfinished(self) -> None:
        """Removes all unfinished saves; call it before the first save of a process."""
        if self.root.renames:
            unfinished = [self.root.child(_ASIDE + name) for name in _step_names(self.root, prefix=_ASIDE)]
        else:
            unfinished = [checkpoint.folder for checkpoint in self._named() if not _completed(checkpoint)]
        for folder in unfinished:
            _remove_unfinished(folder)

    def set_aside(self, *, after_step: int, reason: str) -> None:
        """Renames the checkpoints after a step to `REASON-step-...`. They count no more; a person can look at them."""
        taken = self.root.names()
        for checkpoint in self.checkpoints():
            if checkpoint.step > after_step and not _is_foreign(checkpoint.folder):
                wanted = f"{reason}-{checkpoint.name}"
                candidates = chain([wanted], (f"{wanted}.{number}" for number in count(1)))
                checkpoint.folder.move(next(name for name in candidates if name not in taken))

    def scheduled_before(self, step: int, *, skipping: int, keep_last: int, keep_every: int) -> list[int]:
        """The steps before `step` at which the schedule alone would have a checkpoint now, newest first.

        The last of them is the newest that is at least `skipping` steps before, if there is one; then the list ends.

        Raises:
            OSError: the storage did not answer.
        """
        steps: list[int] = []
        for checkpoint in reversed(self.checkpoints()):
            kept = len(steps) < keep_last or (keep_every and checkpoint.step % keep_every == 0)
            if checkpoint.step < step and kept and checkpoint.is_scheduled():
                steps.append(checkpoint.step)
                if checkpoint.step <= step - skipping:
                    break
        return steps

    def apply_retention(self, *, keep_last: int, keep_every: int, keep: Container[int] = ()) -> None:
        """Removes old checkpoints: all but the newest `keep_last`, multiples of `keep_every` steps, and `keep`.

        A checkpoint counts only if its files are there and have their sizes, so that the last good one stays whatever
        else has the name of a checkpoint. Broken ones that are newer than the oldest of the `keep_last` stay too.
        """
        checkpoints = self.checkpoints()
        good = [checkpoint for checkpoint in checkpoints if find_problem(checkpoint.folder, checksums=False) is None]
        oldest_kept = good[-keep_last:][0].step if good else 0
        for checkpoint in checkpoints:
            kept = checkpoint.step in keep or (keep_every and checkpoint.step % keep_every == 0)
            if checkpoint.step < oldest_kept and not kept:
                self._remove(checkpoint)

    def _remove(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint whose manifest lists all that is in it; anything else stays, and is named once."""
        folder, names, listed = checkpoint.folder, set(checkpoint.folder.names()), set[str]()
        with suppress(FileNotFoundError, ValueError):
            listed = {*read_manifest(folder), MANIFEST}
        if _UNFINISHED in names or ({STATE, CONFIG} <= listed and names <= listed):
            self._take_apart(checkpoint)
        elif checkpoint.name not in self._left:
            self._left.add(checkpoint.name)
            others = sorted(names - listed)
            why = f"holds {others[0]}, which no manifest of clipx's lists" if others else "has no manifest of clipx's"
            log.warning("%s stays: it %s; remove it yourself if nobody needs it", checkpoint, why)

    def _take_apart(self, checkpoint: Checkpoint) -> None:
        """Removes it so that, broken off anywhere, it does not count and `discard_unfinished` finds the rest."""
        folder = checkpoint.folder
        if folder.renames:
            _remove_unfinished(self.root.child(_ASIDE + checkpoint.name))  # the rest of an earlier one
            folder = folder.move(_ASIDE + checkpoint.name)
        else:
            folder.write(_UNFINISHED, "")
            folder.remove_file(MANIFEST)
        folder.remove()

    def _named(self) -> list[Checkpoint]:
        """All folders with the name of a checkpoint, oldest first."""
        return [Checkpoint(self.root.child(name)) for name in _step_names(self.root)]


def _step_names(root: Folder, *, prefix: str = "") -> list[str]:
    """Names of a checkpoint's form, as they stand in a folder behind a prefix."""
    names = (name.removeprefix(prefix) for name in root.names() if name.startswith(prefix + _PREFIX))
    numbers = ((name, name.removeprefix(_PREFIX)) for name in names)
    return [name for name, number in numbers if number.isdecimal() and name == f"{_PREFIX}{int(number):08d}"]


def _check_own(folder: Folder) -> None:
    """Refuses a folder that clipx has not written, whole or damaged.

    Raises:
        OSError: it is not empty, and its files are not those of a checkpoint or of a save.
    """
    names = folder.names()
    if names and not (_has_sign(folder, names) and all(map(_OWN_FILES.fullmatch, names))):
        raise OSError(f"{folder} is in the way, and not a checkpoint of clipx: move it, or choose a checkpoint.folder")


def _is_foreign(folder: Folder) -> bool:
    """Whether another program has written the folder: nothing in it is clipx's."""
    names = folder.names()
    return bool(names) and not _has_sign(folder, names)


def _has_sign(folder: Folder, names: Sequence[str]) -> bool:
    return folder.name.startswith(_ASIDE) or any(map(_OWN_SIGNS.fullmatch, names))


def _remove_unfinished(folder: Folder) -> None:
    """Removes what a save or a removal has left; what may be another program's stays."""
    names = folder.names()
    if _has_sign(folder, names) and all(map(_OWN_FILES.fullmatch, names)):
        folder.remove()


def _completed(checkpoint: Checkpoint) -> bool:
    return MANIFEST in checkpoint.folder.names()


def checkpoints_of(config: JobConfig) -> CheckpointStore:
    """The checkpoints of the run with this config."""
    return CheckpointStore(config.checkpoint.folder or Path(config.run_dir) / "checkpoints")


def stored_config(folder: Folder, name: str = CONFIG) -> JobConfig:
    """Reads a config from a file in a folder.

    Raises:
        InputError: the file does not describe a run.
        OSError: the file cannot be read.
    """
    if folder.path is not None:
        path = folder.path / name
        if path.exists() and not path.is_file():  # a stranger's pipe would be waited for
            raise InputError(f"{path} is not a regular file; take another model")
        return load_config([path])
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / name
        copy.write_bytes(folder.read(name))
        return load_config([copy])
