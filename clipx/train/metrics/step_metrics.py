"""What ranks tell each other with a step, and what the host reads of it one step later."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clipx.train.metrics.clock import Clock
from clipx.types import BadSample


@dataclass(frozen=True)
class Requests:
    """What this rank asks of all ranks; combined in the step's own all-reduce."""

    stop: bool = False
    save: bool = False


class Vitals(NamedTuple):
    """What a rank tells all others of itself with each step."""

    data_wait_s: float = 0.0
    """Seconds that it stood waiting for the step's batch."""
    forward_s: float = 0.0
    """Seconds of the towers' forward passes in the last step that it has read: its own work, before it waits for others
    (FSDP2 waits within)."""
    memory_gib: float = 0.0
    """Resident memory of the process, without its loader processes."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step did, read from the device; equal on all ranks except `bad_here`, `read_wait_s` and `seconds`."""

    step: int
    batch: int
    """Place of its global batch in the data order."""
    loss: float
    grad_norm: float
    lr: float
    logit_scale: float
    good: bool
    """Whether the parameters were updated."""
    stop: bool
    save: bool
    num_bad: int
    """Bad samples met by all ranks."""
    bad_here: tuple[BadSample, ...]
    """Those of this rank."""
    read_wait_s: float
    """Seconds that this rank's loader processes waited for remote storage, summed."""
    num_fallbacks: int
    """Pictures of all ranks that Pillow had to decode."""
    num_tokens: int
    """Real tokens of all texts."""
    useful_flops: float
    """What the model's arithmetic needs for all pairs (`clipx.models.flops`)."""
    image_cosine: float
    """Mean cosine between a rank's images, averaged over ranks: near 1 the tower sees no difference any more."""
    text_cosine: float
    """The same of texts."""
    vitals: tuple[Vitals, ...]
    """Of every rank."""
    seconds: Mapping[str, float]
    """Where this rank's time went: forward, loss, backward, optimizer. Communication is a part of them: the loss's and
    the step's own; what DDP and FSDP2 move goes on beside the towers' arithmetic and is no figure of its own."""
    launched_at: float
    """time.perf_counter() when the host had launched it."""


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched and not yet read."""

    step: int
    batch: int
    lr: float
    bad_here: tuple[BadSample, ...]
    read_wait_s: float
    launched_at: float
    clock: Clock
    stats: Tensor
    """On the host; filled once `filled` has happened."""
    filled: torch.cuda.Event | None

    def read(self) -> StepOutcome:
        """Waits for the device to finish this step, and for no later one."""
        if self.filled is not None:
            self.filled.synchronize()
        figures = self.stats.tolist()
        loss, grad_norm, logit_scale, good, stop, save, *counts, useful_flops, image_cosine, text_cosine = figures[:12]
        num_bad, num_fallbacks, num_tokens = map(int, counts)
        of_ranks = figures[12:]
        width = len(Vitals._fields)
        return StepOutcome(
            step=self.step,
            batch=self.batch,
            loss=loss,
            grad_norm=grad_norm,
            lr=self.lr,
            logit_scale=logit_scale,
            good=good == 1,
            stop=stop > 0,
            save=save > 0,
            num_bad=num_bad,
            bad_here=self.bad_here,
            read_wait_s=self.read_wait_s,
            num_fallbacks=num_fallbacks,
            num_tokens=num_tokens,
            useful_flops=useful_flops,
            image_cosine=image_cosine,
            text_cosine=text_cosine,
            vitals=tuple(Vitals(*of_ranks[at : at + width]) for at in range(0, len(of_ranks), width)),
            seconds=sections(self.clock.seconds()),
            launched_at=self.launched_at,
        )


def sections(seconds: Mapping[str, float]) -> dict[str, float]:
    """The clock's readings as parts of a step: the backward pass is what the towers' time has left."""
    backward = seconds["towers and loss"] - seconds["forward"] - seconds["loss"]
    parts = {name: seconds[name] for name in ("forward", "loss", "optimizer")}
    return {**parts, "backward": backward, "communication": seconds.get("communication", 0.0)}
