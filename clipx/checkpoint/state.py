"""What a checkpoint holds beside weights and optimizer: a handful of numbers, because the data order is a function.

`RunState` is the content of `state.json`. Names in the file stay as the first version wrote them; where a field has
another name today, `_STATE_NAMES` and `_PROGRESS_NAMES` have both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from typing import Any, Self

_STATE_NAMES = {"data_order": "plan"}
_PROGRESS_NAMES = {"skipped_batches": "left_out"}


@dataclass
class Progress:
    """How far a run has come. All of it is saved in `state.json`; there is no other state on the host."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    next_batch: int = 0
    """Number of the next global batch in the data order."""
    samples_seen: int = 0
    """Pairs trained on: those of all steps, whatever size their global batch had."""
    batch_changes: list[list[int]] = field(default_factory=list)
    """Where the global batch changed its size: steps done and pairs seen by then."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite."""
    skipped_in_row: int = 0
    """The same, since the last good step."""
    overflow_steps: int = 0
    """Steps that the fp16 loss scaler took back; part of its normal work."""
    skipped_batches: list[int] = field(default_factory=list)
    """Global batches that are not trained on, ascending, for a loss spike came with them; `left_out` in the file."""
    rollbacks: int = 0
    """Loss spikes after which the run was rolled back."""
    recent_losses: list[float] = field(default_factory=list)
    """The latest losses of the phase, with which the next one is compared; empty unless the config has `spikes`."""

    def change_batch(self, *, before: int, after: int) -> None:
        """Goes on in the data order with global batches of another size, behind as many images as were read of it.

        The batches that are skipped become those that hold their images.

        Args:
            before: images of a global batch so far.
            after: from now on.
        """
        held = (range(batch * before // after, -(-(batch + 1) * before // after)) for batch in self.skipped_batches)
        self.skipped_batches = sorted(set(chain.from_iterable(held)))
        self.go_to(-(-self.next_batch * before // after))

    def go_to(self, batch: int) -> None:
        """Sets the next global batch: `batch`, or the first one after it that is not skipped."""
        self.next_batch = batch
        while self.next_batch in self.skipped_batches:
            self.next_batch += 1


@dataclass(frozen=True)
class DataOrderRecord:
    """What determines the data order beside the seed; a resumed run must have the same."""

    fingerprint: str
    """Hash of the names and sample counts of the shards, without their folders, and of what the index left out."""
    num_shards: int
    num_samples: int
    lanes: int
    """For a mixture: the largest number that a source has."""
    shuffle_window: int
    global_batch_size: int
    """Images, each with all its captions."""
    seed: int
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of the sources of a mixture, by name."""

    def differences(self, other: "DataOrderRecord") -> list[str]:
        """What changed from `self` to `other`, each as `name: before -> after`."""
        pairs = [(item.name, getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        changed = [(name, before, after) for name, before, after in pairs if before != after]
        if len(changed) > 1:  # the fingerprint tells a person least; name it only if nothing else differs
            changed = [row for row in changed if row[0] != "fingerprint"]
        return [f"{name}: {before} -> {after}" for name, before, after in changed]


@dataclass(frozen=True)
class MicroBatch:
    """The size that `micro_batch_size: auto` chose, and the conditions under which it holds."""

    size: int
    world_size: int
    until: int
    """Last step of the phase for which it was chosen."""


@dataclass
class RunState:
    """The content of `state.json`."""

    progress: Progress
    data_order: DataOrderRecord
    """`plan` in the file."""
    wandb_id: str
    micro_batch: MicroBatch | None = None
    """None in checkpoints from before it was saved."""
    objective: str | None = None
    """Name of the objective's class; None in checkpoints that were written before there were any."""
    scheduled: bool = True
    """Whether it was saved by the count of steps, and not because time had passed or the run was stopped."""
    grad_scaler: dict[str, float] | None = None
    """State of the fp16 loss scaler; None in other precisions."""
    versions: dict[str, str] = field(default_factory=dict)
    """Python, torch and the other libraries that computed it, and the git commit of the working folder if any."""
    teachers: str | None = None
    """Fingerprint of the store of teachers' embeddings that was read; None without one, and in older checkpoints."""

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the names of the file."""
        data = _renamed(asdict(self), _STATE_NAMES)
        return data | {"progress": _renamed(data["progress"], _PROGRESS_NAMES)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`; fields that an older version did not write keep their defaults."""
        names = {written: name for name, written in _PROGRESS_NAMES.items()}
        return cls(
            progress=Progress(**_renamed(data["progress"], names)),
            data_order=DataOrderRecord(**data["plan"]),
            wandb_id=data["wandb_id"],
            micro_batch=MicroBatch(**data["micro_batch"]) if data.get("micro_batch") else None,
            objective=data.get("objective"),
            scheduled=data.get("scheduled", True),
            grad_scaler=data.get("grad_scaler"),
            versions=data.get("versions", {}),
            teachers=data.get("teachers"),
        )


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in data.items()}
