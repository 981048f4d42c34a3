"""The checkpoints of a run: a folder of folders, each of which is whole or does not count.

    step-00001000/
        .metadata, __R_0.distcp    torch.distributed.checkpoint: model and optimizer, loadable on any number of ranks
        state.json                 `RunState`
        config.yaml                the resolved config
        manifest.json              size and SHA-256 of every other file; written last

On a disk a checkpoint is written under `.saving-step-...`, fsynced and renamed. An object store has no renaming: there
the files stand under the final name at once, and the manifest makes them a checkpoint. One that does not fit its
manifest is passed over for the one before.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

from clipx.checkpoint.manifest import MANIFEST, Entry, misfit, problem, recorded, write_manifest
from clipx.checkpoint.state import RunState
from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.storage.folders import Folder, folder_at

log = logging.getLogger(__name__)

STATE, CONFIG = "state.json", "config.yaml"
_PREFIX = "step-"
_ASIDE = ".saving-"


@dataclass(frozen=True)
class Checkpoint:
    """One of them, by its place; it may be broken."""

    folder: Folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """Of the folder; names sort as steps do."""
        return self.folder.name

    @property
    def step(self) -> int:
        """After which it was saved."""
        return int(self.name.removeprefix(_PREFIX))

    def problem(self) -> str | None:
        """What is wrong with it, or None; reads all of it.

        Raises:
            OSError: the storage did not answer, which says nothing about the checkpoint.
        """
        return problem(self.folder)

    def state(self) -> RunState:
        """The numbers in it."""
        return RunState.from_json(json.loads(self.folder.read(STATE)))

    def config(self) -> RunConfig:
        """That of the run when it was saved."""
        return stored_config(self.folder)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        address: path or URL of the folder that holds them.
    """

    def __init__(self, address: Path | str) -> None:
        self.root = folder_at(address)

    def __str__(self) -> str:
        return str(self.root)

    def checkpoint(self, step: int) -> Checkpoint:
        """That of a step, there or not."""
        return Checkpoint(self.root.child(f"{_PREFIX}{step:08d}"))

    def checkpoints(self) -> list[Checkpoint]:
        """All, oldest first, broken ones too; in an object store those that were completed.

        Raises:
            OSError: the storage did not answer.
        """
        found = self._named()
        return found if self.root.renames else [each for each in found if _completed(each)]

    def newest(self) -> Checkpoint | None:
        """The newest that is whole, or None; each broken one on the way is named in a warning.

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
        """Where the files of a new checkpoint are written."""
        final = self.checkpoint(step).folder
        return self.root.child(_ASIDE + final.name) if self.root.renames else final

    def publish(self, step: int, entries: Mapping[str, Entry], *, state: RunState, config_text: str) -> Checkpoint:
        """Rank 0, once all ranks have written: adds state, config and manifest to the draft, and makes it count.

        Args:
            step: of the draft.
            entries: of the files that all ranks wrote.
            state: goes into state.json.
            config_text: goes into config.yaml.

        Raises:
            OSError: the storage did not take it; the draft is left for `discard`.
        """
        draft, checkpoint, every = self.draft(step), self.checkpoint(step), dict(entries)
        for name, text in ((STATE, json.dumps(state.to_json(), indent=2)), (CONFIG, config_text)):
            with recorded(draft, name, every) as file:
                file.write(text.encode())
        write_manifest(draft, every)
        if self.root.renames:
            checkpoint.folder.remove()  # one of the same step that was passed over
            draft.move(checkpoint.name)
        return checkpoint

    def discard(self, step: int) -> None:
        """Removes what an unfinished save left behind, as far as the storage lets it."""
        with suppress(OSError):
            self.draft(step).remove()

    def discard_unfinished(self) -> None:
        """Removes every unfinished save; called before the first save of a process."""
        if self.root.renames:
            unfinished = [self.root.child(name) for name in self.root.names() if name.startswith(_ASIDE)]
        else:
            unfinished = [each.folder for each in self._named() if not _completed(each)]
        for folder in unfinished:
            folder.remove()

    def set_aside(self, *, after_step: int, reason: str) -> None:
        """Renames checkpoints after a step to `REASON-step-...`, out of the way; kept for a person to look at."""
        taken = self.root.names()
        for checkpoint in self.checkpoints():
            if checkpoint.step > after_step:
                wanted = f"{reason}-{checkpoint.name}"
                numbered = chain([wanted], (f"{wanted}.{number}" for number in count(1)))
                checkpoint.folder.move(next(name for name in numbered if name not in taken))

    def apply_retention(self, *, keep_last: int, keep_every: int) -> None:
        """Removes old checkpoints: all but the newest `keep_last` and every one at a multiple of `keep_every` steps.

        Only those count whose files are there and have their sizes, so that the last good one stays, whatever else has
        the name of a checkpoint; what is newer than the last one kept is left to `newest`.
        """
        good = [checkpoint for checkpoint in self.checkpoints() if misfit(checkpoint.folder) is None]
        oldest_kept = good[-keep_last:][0].step if good else 0
        for checkpoint in self.checkpoints():
            if checkpoint.step < oldest_kept and not (keep_every and checkpoint.step % keep_every == 0):
                checkpoint.folder.remove_file(MANIFEST)  # first: half of a checkpoint is none
                checkpoint.folder.remove()

    def _named(self) -> list[Checkpoint]:
        """What has the name of a checkpoint, oldest first."""
        names = [name for name in self.root.names() if name.startswith(_PREFIX)]
        return [Checkpoint(self.root.child(name)) for name in names if name.removeprefix(_PREFIX).isdecimal()]


def _completed(checkpoint: Checkpoint) -> bool:
    return MANIFEST in checkpoint.folder.names()


def checkpoints_of(config: RunConfig) -> CheckpointStore:
    """Where a run keeps its checkpoints."""
    return CheckpointStore(config.checkpoint.folder or Path(config.run_dir) / "checkpoints")


def stored_config(folder: Folder, name: str = CONFIG) -> RunConfig:
    """The config in a folder.

    Raises:
        InputError: it does not describe a run.
        OSError: it cannot be read.
    """
    if folder.path is not None:
        return load_config([folder.path / name])
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / name
        copy.write_bytes(folder.read(name))
        return load_config([copy])
