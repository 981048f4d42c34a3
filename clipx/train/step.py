"""One optimizer step: forward, loss, backward, clip, guarded update. Nothing here waits for the device.

What the host needs to know (loss, norm, whether the step was good, what other ranks ask for) comes back as one small
tensor that the trainer reads one step later.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from clipx.counter_random import Stream, key
from clipx.distributed.collectives import all_reduce, observed
from clipx.distributed.parallelize import full_tensor, no_sync
from clipx.distributed.runtime import Runtime
from clipx.losses import ContrastiveLoss
from clipx.models.clip import CLIP
from clipx.optim.ema import Ema
from clipx.optim.optimizers import set_learning_rate, update
from clipx.train.grad_cache import cached_backward
from clipx.train.metrics.clock import Clock
from clipx.train.metrics.step_metrics import PendingStep, Requests, Vitals
from clipx.types import Batch, Embeddings


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
    patch_drop: float
    """Share of the patches that an image leaves out."""
    augment: Callable[[Batch], Batch]
    """The augmentations that are computed on the device."""
    useful_flops: Callable[[Batch], float]
    """Of one step on a rank's batch."""
    ema: Ema | None = None
    """Average of the weights, brought up to date after each step."""

    def __call__(self, batch: Batch, *, step: int, requests: Requests, vitals: Vitals) -> PendingStep:
        """Trains on this rank's part of one global batch.

        Args:
            batch: on the host (pinned for CUDA); it is cut there, where lengths are known, and moved piece by piece.
            step: optimizer steps taken before this one.
            requests: what this rank wants all ranks to do after the step.
            vitals: what it tells of itself.
        """
        clock = Clock(self.runtime.device)
        lr = self.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        with observed(partial(clock.measure, "communication")):
            with clock.measure("towers and loss"):
                share, cosines_2 = self._forward_backward(batch, clock)
            with clock.measure("optimizer"):
                grad_norm = self._clip()
            sums = self._sum_over_ranks(share, cosines_2, self._counts(batch, requests), vitals)
            good = torch.isfinite(sums[0]) & torch.isfinite(grad_norm)
            with clock.measure("optimizer"):
                self._update(good, step)
        log_logit_scale = full_tensor(self.towers.log_logit_scale.detach()).to(self.runtime.device)
        logit_scale = log_logit_scale.exp().double().squeeze()
        loss, *others = sums.unbind()
        stats = torch.stack([loss, grad_norm.double(), logit_scale, good.double(), *others])
        host_stats, filled = _copy_to_host(stats)
        return PendingStep(
            step=step + 1,
            batch=batch.index,
            lr=lr,
            bad_here=batch.bad,
            read_wait_s=batch.read_wait_s,
            launched_at=time.perf_counter(),
            clock=clock,
            stats=host_stats,
            filled=filled,
        )

    @property
    def group(self) -> ProcessGroup | None:
        """All ranks."""
        return self.runtime.group

    def _counts(self, batch: Batch, requests: Requests) -> list[float]:
        """What this rank knows on the host and all need as a sum."""
        counts = (len(batch.bad), batch.num_fallbacks, batch.tokens_T.shape[0], self.useful_flops(batch))
        return [requests.stop, requests.save, *counts]

    def _sum_over_ranks(self, share: Tensor, cosines_2: Tensor, counts: list[float], vitals: Vitals) -> Tensor:
        """Loss, counts, mean cosines and every rank's vitals: float64 on the device.

        A rank's vitals stand at its own place among zeros, so that the sum holds those of all.
        """
        before = [0.0] * len(vitals) * self.runtime.rank
        after = [0.0] * len(vitals) * (self.runtime.world_size - self.runtime.rank - 1)
        sums = torch.tensor([0.0, *counts, 0.0, 0.0, *before, *vitals, *after], dtype=torch.float64)
        sums = sums.to(share.device, non_blocking=True)
        sums[0] = share
        sums[len(counts) + 1 : len(counts) + 3] = cosines_2 / self.runtime.world_size
        return all_reduce(sums, "sum", self.group)

    def _forward_backward(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor]:
        """This rank's share of the loss, and the mean cosines of its images and texts: detached.

        Gradients are in the parameters.
        """
        pieces = batch.micro_batches(self.micro_batch_size)
        device = self.runtime.device
        ids_B = batch.no_negatives().to(device, non_blocking=True)
        several = batch.captions_per_image > 1  # all of a picture's captions are positives
        positive_ids_B = batch.sample_of_pair().to(device, non_blocking=True) if several else None

        def forward(piece: Batch, number: int) -> Embeddings:
            with clock.measure("forward"):  # a piece goes to the device when its turn comes: all pixels need gigabytes
                return self._forward(self.augment(piece.to(device)), number)

        cosines: list[Tensor] = []

        def loss(embeddings: Embeddings) -> Tensor:
            cosines.extend(map(mean_cosine, (embeddings.image_BD, embeddings.text_BD)))
            with clock.measure("loss"):
                return self.loss(embeddings, group=self.group, ids_B=ids_B, positive_ids_B=positive_ids_B)

        if len(pieces) > 1:
            quietly = partial(no_sync, self.model)
            share = cached_backward(pieces, forward=forward, loss=loss, backward=self._backward, no_sync=quietly)
            return share, torch.stack(cosines)
        share = loss(forward(pieces[0], 0))
        self._backward(share)
        return share.detach(), torch.stack(cosines)

    def _forward(self, piece: Batch, number: int) -> Embeddings:
        """Towers on one micro-batch; dropout is seeded here, so the gradient cache's second pass repeats the first."""
        torch.manual_seed(key(self.seed, Stream.DROPOUT, piece.index, number, self.runtime.rank))
        embeddings: Embeddings = self.model(piece, seed=self.seed, patch_drop=self.patch_drop)
        return embeddings

    def _backward(self, share: Tensor) -> None:
        """Ranks' shares sum to the loss, while DDP and FSDP average gradients: hence W times the share, here alone."""
        self.runtime.accelerator.backward(share * self.runtime.world_size)

    def _clip(self) -> Tensor:
        """Scales gradients to the largest norm; returns the norm before, 0-dim, equal on all ranks."""
        limit = float("inf") if self.clip_grad_norm is None else self.clip_grad_norm
        norm: Tensor = self.runtime.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return full_tensor(norm).to(self.runtime.device)  # of offloaded parameters it is on the host

    def _update(self, good: Tensor, step: int) -> None:
        """The optimizer step, or none."""
        update(self.optimizer, good)
        self.towers.clamp_logit_scale_()
        if self.ema is not None:
            self.ema.update(good, step=step)


def mean_cosine(x_BD: Tensor) -> Tensor:
    """The mean cosine between two different rows of unit length, 0-dim float32: (|sum of rows|^2 - B) / (B (B - 1)).

    Args:
        x_BD: rows of unit length; 0 where there is one.
    """
    num_rows = x_BD.shape[0]
    squared = x_BD.detach().sum(dim=0, dtype=torch.float32).square().sum()
    return (squared - num_rows) / max(num_rows * (num_rows - 1), 1)


def _copy_to_host(stats: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Starts the copy and marks its end: reading it later waits for this step and not for what was queued since."""
    if stats.device.type != "cuda":
        return stats, None
    host = torch.empty(stats.shape, dtype=stats.dtype, pin_memory=True)
    host.copy_(stats, non_blocking=True)
    filled = torch.cuda.Event()
    filled.record()
    return host, filled
