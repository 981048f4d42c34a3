"""One optimizer step: forward, loss, backward, clip, guarded update. Nothing here waits for the device.

What the host needs to know (loss, norm, whether the step was good, what other ranks ask for) comes back as one small
tensor that the trainer reads one step later.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from clipx.counter_random import Stream, key
from clipx.distributed.collectives import all_reduce
from clipx.distributed.parallelize import no_sync
from clipx.distributed.runtime import Runtime
from clipx.losses import ContrastiveLoss
from clipx.models.clip import CLIP
from clipx.optim.optimizers import inner_optimizer, set_learning_rate
from clipx.train.grad_cache import cached_backward
from clipx.types import BadSample, Batch, Embeddings


@dataclass(frozen=True)
class Requests:
    """What this rank asks of all ranks; combined in the step's own all-reduce."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """What a step did, read from the device; equal on all ranks except `bad_here`."""

    step: int
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
    launched_at: float
    """time.perf_counter() when the host had launched it."""


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched and not yet read."""

    step: int
    lr: float
    bad_here: tuple[BadSample, ...]
    launched_at: float
    stats: Tensor
    """On the host; filled once `filled` has happened."""
    filled: torch.cuda.Event | None

    def read(self) -> StepOutcome:
        """Waits for the device to finish this step, and for no later one."""
        if self.filled is not None:
            self.filled.synchronize()
        loss, grad_norm, logit_scale, good, stop, save, num_bad = self.stats.tolist()
        return StepOutcome(
            step=self.step,
            loss=loss,
            grad_norm=grad_norm,
            lr=self.lr,
            logit_scale=logit_scale,
            good=good == 1,
            stop=stop > 0,
            save=save > 0,
            num_bad=int(num_bad),
            bad_here=self.bad_here,
            launched_at=self.launched_at,
        )


@dataclass(frozen=True)
class Stepper:
    """All that a step needs; built once per run."""

    runtime: Runtime
    model: nn.Module
    """As wrapped for its parallelism."""
    towers: CLIP
    """The same model, bare."""
    optimizer: Optimizer
    loss: ContrastiveLoss
    learning_rate: Callable[[int], float]
    micro_batch_size: int
    clip_grad_norm: float | None
    seed: int

    def __call__(self, batch: Batch, *, step: int, requests: Requests) -> PendingStep:
        """Trains on this rank's part of one global batch.

        Args:
            batch: on the host (pinned for CUDA); it is cut there, where lengths are known, and moved piece by piece.
            step: optimizer steps taken before this one.
            requests: what this rank wants all ranks to do after the step.
        """
        lr = self.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        share = self._forward_backward(batch)
        grad_norm = self._clip()
        sums = torch.tensor([0.0, requests.stop, requests.save, len(batch.bad)], dtype=torch.float64)
        sums = sums.to(share.device, non_blocking=True)
        sums[0] = share.detach()
        loss, stop, save, num_bad = all_reduce(sums, "sum", self.group).unbind()
        good = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._update(good)
        logit_scale = self.towers.log_logit_scale.detach().exp().double().squeeze()
        stats = torch.stack([loss, grad_norm.double(), logit_scale, good.double(), stop, save, num_bad])
        host_stats, filled = _copy_to_host(stats)
        now = time.perf_counter()
        return PendingStep(step=step + 1, lr=lr, bad_here=batch.bad, launched_at=now, stats=host_stats, filled=filled)

    @property
    def group(self) -> ProcessGroup | None:
        """All ranks."""
        return self.runtime.group

    def _forward_backward(self, batch: Batch) -> Tensor:
        pieces = [piece.to(self.runtime.device) for piece in batch.micro_batches(self.micro_batch_size)]
        ids_B = torch.cat([piece.sample_id_B for piece in pieces])
        loss = partial(self.loss, group=self.group, ids_B=ids_B)
        if len(pieces) > 1:
            quietly = partial(no_sync, self.model)
            return cached_backward(pieces, forward=self._forward, loss=loss, backward=self._backward, no_sync=quietly)
        share = loss(self._forward(pieces[0], 0))
        self._backward(share)
        return share.detach()

    def _forward(self, piece: Batch, number: int) -> Embeddings:
        """Towers on one micro-batch; dropout is seeded here, so the gradient cache's second pass repeats the first."""
        torch.manual_seed(key(self.seed, Stream.DROPOUT, piece.index, number, self.runtime.rank))
        embeddings: Embeddings = self.model(piece, seed=self.seed)
        return embeddings

    def _backward(self, share: Tensor) -> None:
        """Ranks' shares sum to the loss, while DDP and FSDP average gradients: hence W times the share, here alone."""
        self.runtime.accelerator.backward(share * self.runtime.world_size)

    def _clip(self) -> Tensor:
        """Scales gradients to the largest norm; returns the norm before, 0-dim, equal on all ranks."""
        limit = float("inf") if self.clip_grad_norm is None else self.clip_grad_norm
        norm: Tensor = self.runtime.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return norm

    def _update(self, good: Tensor) -> None:
        """The optimizer step, or none, decided on the device.

        With fp16 the gradient scaler finds non-finite gradients by itself and passes `found_inf` to the same kernel.
        """
        inner: Any = inner_optimizer(self.optimizer)
        inner.grad_scale = None
        inner.found_inf = (~good).float()
        self.optimizer.step()
        self.towers.clamp_logit_scale_()


def _copy_to_host(stats: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Starts the copy and marks its end: reading it later waits for this step and not for what was queued since."""
    if stats.device.type != "cuda":
        return stats, None
    host = torch.empty(stats.shape, dtype=stats.dtype, pin_memory=True)
    host.copy_(stats, non_blocking=True)
    filled = torch.cuda.Event()
    filled.record()
    return host, filled
