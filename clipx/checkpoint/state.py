"""What a checkpoint holds beside weights and optimizer: a handful of numbers, because the data order is a function."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass
class Progress:
    """Where a run stands. Everything here is saved in `state.json`; there is no other state on the host."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    next_batch: int = 0
    """Place in the data order of the next global batch."""
    samples_seen: int = 0
    """Pairs trained on."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite."""
    skipped_in_row: int = 0
    """The same, since the last good step."""
    overflow_steps: int = 0
    """Steps that the fp16 loss scaler took back; part of its normal work."""
    left_out: list[int] = field(default_factory=list)
    """Global batches that are not trained on, ascending: a leap of the loss came with them."""
    rollbacks: int = 0
    """Leaps of the loss after which the run went back."""
    recent_losses: list[float] = field(default_factory=list)
    """The latest ones of the phase, by which a leap is known; empty where nobody looks for one."""

    def go_to(self, batch: int) -> None:
        """The next global batch is this one, or the first after it that is not left out."""
        self.next_batch = batch
        while self.next_batch in self.left_out:
            self.next_batch += 1


@dataclass(frozen=True)
class DataPlanRecord:
    """What determines the data order beside the seed; a resumed run must have the same."""

    fingerprint: str
    """Names and sample counts of the shards, not where they lie, and what the index left out."""
    num_shards: int
    num_samples: int
    lanes: int
    """Of a mixture: the most that a source has."""
    shuffle_window: int
    global_batch_size: int
    """Pictures, each with all its captions."""
    seed: int
    weights: dict[str, float] = field(default_factory=dict)
    """Of the sources of a mixture, by name."""

    def differences(self, other: "DataPlanRecord") -> list[str]:
        """What changed from `self` to `other`, each as `name: before -> after`."""
        pairs = [(item.name, getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        changed = [(name, before, after) for name, before, after in pairs if before != after]
        if len(changed) > 1:  # the fingerprint says least to a person; name it only where nothing else differs
            changed = [row for row in changed if row[0] != "fingerprint"]
        return [f"{name}: {before} -> {after}" for name, before, after in changed]


@dataclass(frozen=True)
class MicroBatch:
    """What `micro_batch_size: auto` found, and where that holds."""

    size: int
    world_size: int
    until: int
    """The end of the phase in which it was found."""


@dataclass
class RunState:
    """The content of `state.json`."""

    progress: Progress
    plan: DataPlanRecord
    wandb_id: str
    micro_batch: MicroBatch | None = None
    """None in checkpoints that were written before it was kept."""
    grad_scaler: dict[str, float] | None = None
    """The fp16 loss scaler's; None in other precisions."""
    versions: dict[str, str] = field(default_factory=dict)
    """Python, torch and the other libraries that computed it, and the git commit of the working folder if any."""

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`; fields that an older version did not write keep their defaults."""
        return cls(
            progress=Progress(**data["progress"]),
            plan=DataPlanRecord(**data["plan"]),
            wandb_id=data["wandb_id"],
            micro_batch=MicroBatch(**data["micro_batch"]) if data.get("micro_batch") else None,
            grad_scaler=data.get("grad_scaler"),
            versions=data.get("versions", {}),
        )
