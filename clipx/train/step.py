"""One optimizer step: forward, losses, backward, clip, guarded update. Nothing here waits for the device.

What the host needs to know (loss, norm, whether the step was good, what other ranks ask for) comes back as one small
tensor that the trainer reads one step later.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clipx.counter_random import Stream, key
from clipx.distributed.collectives import all_reduce, observed
from clipx.distributed.parallelize import full_tensor, no_sync
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.models.half_weights import HalfWeights
from clipx.objectives.objective import Objective, Outputs, Share
from clipx.optim.ema import Ema
from clipx.optim.optimizers import inner_optimizer, set_learning_rate, update
from clipx.train.accumulate import Losses, accumulate
from clipx.train.metrics.step_metrics import (
    Clock,
    Figures,
    InFlightStep,
    RankStats,
    StepSums,
    StopOrSave,
    check_first,
    check_outputs,
    own_numbers,
    sum_over_ranks,
)
from clipx.train.selection import Selector
from clipx.train.uploads import Uploads
from clipx.types import Batch, cut


@dataclass(kw_only=True)
class Stepper:
    """All that a step needs; built once per phase of a run."""

    runtime: Runtime
    objective: Objective
    model: nn.Module
    """The objective's, as wrapped for its parallelism."""
    optimizer: Optimizer
    learning_rate: Callable[[int], float]
    micro_batch_size: int
    clip_grad_norm: float | None
    seed: int
    augment: Callable[[Tensor, Tensor], Tensor] | None
    """Images on the device and their seeds on the host to augmented images; None if there is nothing to do."""
    half_weights: HalfWeights
    """Copies of the weights for the passes of one step; there may be none."""
    ema: Ema | None = None
    """Average of the weights, brought up to date after each step."""
    selector: Selector | None = None
    """Chooses what is trained on of the pairs that were read; None if that is all of them."""
    names: tuple[str, ...] | None = None
    """Names of figures and counts, once they have been compared over ranks: in the first step."""
    uploads: Uploads = field(init=False)
    clipped: Sequence[nn.Parameter] = field(init=False)
    """Whose gradients are clipped; listed once, since that may take as long as the step of a small model."""

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.runtime.device)
        sharded = self.runtime.parallel.type == "fsdp2"  # then accelerate wants all, in the order of the model
        self.clipped = [weight for weight in self.model.parameters() if sharded or weight.requires_grad]

    def __call__(self, batch: Batch, *, step: int, requests: StopOrSave, stats: RankStats) -> InFlightStep:
        """Trains on this rank's part of one global batch.

        Args:
            batch: on the host (pinned for CUDA); it is cut there, where lengths are known, and moved piece by piece.
                With a selector, this rank's part of the super-batch.
            step: optimizer steps taken before this one.
            requests: what this rank wants all ranks to do after the step.
            stats: what it tells about itself.
        """
        clock = Clock(self.runtime.device)
        chosen = None
        if self.selector is not None:
            with self.half_weights.fresh():
                chosen = self.selector(batch, model=self.model, step=step, uploads=self.uploads, clock=clock)
            batch = chosen.batch
        counts = {"num_tokens": batch.tokens_T.shape[0], "model_flops": self.objective.flops(batch), **batch.counts}
        numbers = own_numbers(counts, num_bad=len(batch.bad), requests=requests, stats=stats, runtime=self.runtime)
        lr = self.learning_rate(step)
        set_learning_rate(self.optimizer, lr)
        inner_optimizer(self.optimizer).zero_grad()  # accelerate's wrapper looks at the signature in each step
        with observed(partial(clock.measure, "communication")):
            with clock.measure("model and loss"):
                sent = self._send(batch, numbers)
                with self.half_weights.fresh():
                    figures = self._forward_backward(sent, clock)
            if chosen is not None:
                figures |= chosen.figures
            with clock.measure("optimizer"):
                grad_norm = self._clip()
            sums = self._sum_over_ranks(figures, tuple(counts), numbers=sent.numbers)
            good = torch.isfinite(sums.values[0] + grad_norm)  # float64: the sum is finite if, and only if, both are
            with clock.measure("optimizer"):
                self._update(good, step)
        updated = {name: value.to(self.runtime.device).double() for name, value in self.objective.figures().items()}
        own = torch.stack([grad_norm.double(), good.double(), *updated.values()])
        values, filled = _copy_to_host(torch.cat([own, sums.values]))
        return InFlightStep(
            step=step + 1,
            batch=batch.index,
            lr=lr,
            bad_here=batch.bad,
            launched_at=time.perf_counter(),
            clock=clock,
            sums=sums,
            updated=tuple(updated),
            values=values,
            filled=filled,
        )

    def _send(self, batch: Batch, numbers: Sequence[float]) -> "_Sent":
        """What is small goes to the device at once: vectors of the batch, and numbers for the ranks' sums."""
        vectors = {name: tensor for name, tensor in batch.tensors().items() if tensor.dim() == 1}
        terms = self.objective.terms
        counts = torch.tensor([term.count(batch) for term in terms.values()], dtype=torch.float64)
        summands, counts, *moved = self.uploads.together(
            [torch.tensor(numbers, dtype=torch.float64), counts, *vectors.values()]
        )
        vectors = dict(zip(vectors, moved, strict=True))
        sent_once = self.objective.coupled_columns
        pieces = batch.without_columns(sent_once).micro_batches(self.micro_batch_size)
        of_pieces = {name: tensor for name, tensor in vectors.items() if name not in sent_once}
        return _Sent(
            batch=batch.with_tensors(vectors),
            pieces=pieces,
            vectors=cut(of_pieces, [piece.sizes for piece in pieces]),
            numbers=summands,
            sample_counts=self._sample_counts(counts),
        )

    def _forward_backward(self, sent: "_Sent", clock: Clock) -> dict[str, Tensor]:
        """This rank's share of the loss and of all figures, detached, by name; gradients are in the parameters."""
        coupled, terms = self.objective.coupled, self.objective.terms
        figures = Figures(several=len(coupled) + len(terms) > 1)
        on_device = sent.batch

        def forward(piece: Batch, number: int, *, for_terms: bool) -> Outputs:
            nonlocal on_device
            with clock.measure("forward"):  # pixels go to the device when their turn comes: all of them need gigabytes
                on_device = self._moved(piece, sent.vectors[number])
                _seed(key(self.seed, Stream.DROPOUT, piece.index, number, self.runtime.rank), self.runtime.device)
                outputs = self.objective.forward(self.model, on_device, for_terms=for_terms)
            check_outputs(outputs, piece.sizes)
            return outputs

        def coupled_share(outputs: Outputs) -> Tensor:
            with clock.measure("loss"):
                shares = {name: loss.share(outputs, sent.batch, self.runtime.group) for name, loss in coupled.items()}
                return figures.add(shares, {name: loss.weight for name, loss in coupled.items()})

        def terms_share(outputs: Outputs) -> Tensor:
            with clock.measure("loss"):
                shares = {
                    name: _divided(term.total(outputs, on_device), sent.sample_counts[name])
                    for name, term in terms.items()
                }
                return figures.add(shares, {name: term.weight for name, term in terms.items()})

        accumulate(
            sent.pieces,
            forward=forward,
            losses=Losses(coupled=coupled_share if coupled else None, terms=terms_share if terms else None),
            scale=self._scale,
            no_sync=partial(no_sync, self.model),
        )
        return figures.values

    def _sum_over_ranks(self, figures: Mapping[str, Tensor], counts: tuple[str, ...], *, numbers: Tensor) -> StepSums:
        names = (*figures, *counts)
        if self.names is None:
            check_first((*names, *self.objective.figures()), self.model, self.runtime)
            self.names = names
        elif names != self.names:
            raise RunError(
                f"figures are {', '.join(names)} and were {', '.join(self.names)} in the first step; an objective must "
                "give the same figures in every step, 0 if there is nothing to tell"
            )
        return sum_over_ranks(figures, numbers, counts=counts, group=self.runtime.group)

    def _sample_counts(self, counts: Tensor) -> Mapping[str, Tensor]:
        """What each term is divided by: its count over all ranks, on the device."""
        if not len(counts):
            return {}
        counts = all_reduce(counts, "sum", self.runtime.group)
        return dict(zip(self.objective.terms, counts.where(counts != 0, 1.0).unbind(), strict=True))

    def _moved(self, piece: Batch, vectors: Mapping[str, Tensor]) -> Batch:
        """The piece on the device, its images augmented there.

        Args:
            piece: on the host.
            vectors: its tensors of one dimension, which are on the device already.
        """
        images_IHWC = self.uploads.pixels(piece.images_IHWC)
        if self.augment is not None and piece.augment_seed_I is not None:
            images_IHWC = self.augment(images_IHWC, piece.augment_seed_I)
        return piece.with_tensors({**vectors, "images_IHWC": images_IHWC}).to(self.runtime.device)

    def _scale(self, share: Tensor) -> Tensor:
        """What the backward pass starts from.

        Ranks' shares sum to the loss, while DDP and FSDP average gradients: hence W times the share, here alone.
        """
        return self.runtime.scale_loss(share * self.runtime.world_size)

    def _clip(self) -> Tensor:
        """Scales gradients to the largest norm; returns the norm before, 0-dim, equal on all ranks."""
        limit = float("inf") if self.clip_grad_norm is None else self.clip_grad_norm
        norm: Tensor = self.runtime.accelerator.clip_grad_norm_(self.clipped, limit)
        return full_tensor(norm).to(self.runtime.device)  # of offloaded parameters it is on the host

    def _update(self, good: Tensor, step: int) -> None:
        """The optimizer step, or none."""
        update(self.optimizer, good)
        self.objective.after_update()
        if self.ema is not None:
            self.ema.update(good, step=step)


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """A batch, most of it still on the host."""

    batch: Batch
    """The whole one; tensors of one dimension are on the device, pixels and what else has several are on the host."""
    pieces: Sequence[Batch]
    """On the host."""
    vectors: Sequence[Mapping[str, Tensor]]
    """Of each piece its tensors of one dimension, by name, on the device."""
    numbers: Tensor
    """This rank's `own_numbers`, on the device."""
    sample_counts: Mapping[str, Tensor]
    """What each term is divided by, by its name."""


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generators that a forward pass may draw from; `torch.manual_seed` sees to others, for a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _divided(share: Share, count: Tensor) -> Share:
    return Share(
        share.loss / count.to(share.loss.dtype), {name: value / count for name, value in share.figures.items()}
    )


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Starts the copy and marks its end: reading it later waits for this step and not for what was queued since."""
    if values.device.type != "cuda":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    filled = torch.cuda.Event()
    filled.record()
    return host, filled
