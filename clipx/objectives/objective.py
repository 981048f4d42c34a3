"""The seam between what is trained and the trainer.

An objective owns its model, the forward pass on a piece of a batch, its losses and what they cost. The trainer
(`clipx.train`) owns micro-batches, ranks, precision, the optimizer and the run's safety, and knows no loss by name.

There are two kinds of loss, and an objective has any number of both, each with a weight and a name:

- A *coupled loss* compares all samples of the global batch with each other (contrastive losses). It is called once per
  step, on the outputs of all of a rank's micro-batches; `clipx.train.accumulate` makes that fit into memory.
- A *term* is a sum over samples (a caption's cross-entropy, a supervised target), divided by a count over the global
  batch. It belongs to a micro-batch and rides on that piece's backward pass.

Both are exact for every number of ranks and micro-batches. The loss that is minimised is the weighted sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from clipx.config.phases import Phase
from clipx.data.captions import TextReader
from clipx.data.columns import ColumnReader, Images, Wanted
from clipx.distributed.parallelize import full_tensor
from clipx.losses.cost import NO_COST, LossCost, LossShape
from clipx.models.clip import CLIP
from clipx.objectives.flops import ModelFlops
from clipx.types import Batch, tensors_of

FIRST_SAMPLES = 2048
"""Samples that `Objective.begin` may look at; a mean over them errs by 2% of the deviation."""
Outputs = Any
"""What a model gives for a piece of a batch: a frozen dataclass of tensors (`clipx.types` says how names tell axes)."""


@dataclass(frozen=True)
class Share:
    """What a rank, or one of its micro-batches, contributes to a loss; contributions are summed."""

    loss: Tensor
    """0-d, in at least float32, with its graph."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Contributions to numbers for metrics.jsonl by name, 0-d: the same names in every step and on every rank, and none
    of the trainer's own or of another loss."""


@dataclass(frozen=True, kw_only=True)
class CoupledLoss:
    """A loss that compares all samples of the global batch with each other."""

    share: Callable[[Outputs, Batch, ProcessGroup | None], Share]
    """This rank's outputs, its batch and the group of all ranks, to this rank's share. Of the batch, tensors of one
    dimension are on the device; pixels and what else has several are on the host, so a share moves what it needs of
    them (`batch.columns["teacher_ID"].to(device)`). Shares sum to the loss and to the figures over ranks; nothing is
    summed or averaged beforehand. Runs outside of autocast: outputs come in the model's compute dtype."""
    cost: Callable[[LossShape], LossCost]
    """What one call takes on every rank."""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Term:
    """A mean over samples of the global batch, or over tokens, or over whatever `count` counts."""

    total: Callable[[Outputs, Batch], Share]
    """The outputs of a piece and the piece, on the device, to the sums over its samples; outside of autocast. A piece
    may have no sample that counts: multiply by a mask, and neither index by it nor ask the host."""
    count: Callable[[Batch], float]
    """A rank's batch on the host to its number of samples, or their weight. The sums of loss and figures are divided by
    its sum over ranks, unless that is 0."""
    weight: float = 1.0


class Objective(ABC):
    """What an objective owns. A subclass gives its model, `flops`, `forward` and losses; the rest has defaults.

    An objective is built for one phase of a run (`clipx.config.phases`) and holds nothing that a checkpoint must keep,
    beside the weights of its model. Every parameter that requires a gradient must have one in every step, if only of 0:
    DDP waits for it. What no loss reaches is frozen in `__init__` (`requires_grad_(False)`).
    """

    model: CLIP
    """The bare model in float32: both towers, and whatever the objective adds to them."""
    flops: ModelFlops
    """Model FLOPs of a batch, for MFU and `clipx plan`."""
    coupled: Mapping[str, CoupledLoss] = MappingProxyType({})
    terms: Mapping[str, Term] = MappingProxyType({})
    column_readers: Sequence[ColumnReader] = ()
    """What reads further columns of every sample, which come with the batch as `Batch.columns`."""
    coupled_columns: frozenset[str] = frozenset()
    """Those of them that coupled losses alone read: they do not go to the device with the micro-batches."""
    text_reader: TextReader | None = None
    """What gives the texts of a sample; None: its captions, as the config describes them."""
    images: Images = "needed"
    """Whether a sample must have a picture, may, or is read without (`clipx.data.columns.Wanted`)."""

    @property
    def wanted(self) -> Wanted:
        """What is read of every sample."""
        return Wanted(columns=self.column_readers, texts=self.text_reader, images=self.images)

    @abstractmethod
    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> Outputs:
        """The outputs of one piece of a batch, on its device.

        Args:
            model: `self.model`, or what wraps it for its parallelism; must be called, and once.
            piece: a micro-batch.
            for_terms: whether terms will be computed from the outputs. If not, fields that only they need may be None:
                they are neither kept nor given a gradient.

        Returns:
            A frozen dataclass of tensors. A repeated call must give the same: randomness comes from the piece.
        """

    def check(self, device: torch.device) -> None:  # noqa: B027 (most have nothing to look at)
        """Looks, before any work, at what a step on this device would find.

        Raises:
            InputError: it could not run.
        """

    def begin(self, batches: Iterable[Batch], group: ProcessGroup | None) -> None:  # noqa: B027 (most need nothing)
        """Looks at the first samples of a run that begins, before the model is wrapped; all ranks call it together.

        Args:
            batches: this rank's parts of the first global batches, on the model's device and in pieces of at most 256
                pairs, with at least `FIRST_SAMPLES` samples of all ranks where an epoch has as many.
            group: of all ranks.
        """

    def after_update(self) -> None:
        """Changes parameters after every optimizer step; by default it holds the multiplier at its maximum."""
        self.model.clamp_logit_scale_()

    def figures(self) -> Mapping[str, Tensor]:
        """Numbers about the model after an update, 0-d, the same on every rank; by default the multiplier."""
        return {"logit_scale": full_tensor(self.model.log_logit_scale.detach()).exp().squeeze()}

    def block_lists(self) -> list[list[nn.Module]]:
        """The repeated blocks of each tower, images first: what is checkpointed, compiled and sharded one by one."""
        return self.model.block_lists()

    def varying_blocks(self) -> list[nn.Module]:
        """The blocks whose inputs' shapes change from step to step."""
        return self.model.block_lists()[1]

    def use_few_shapes(self, on: bool) -> None:
        """Pads the inputs of these blocks, or not, so that few different shapes occur: for compiled blocks."""
        self.model.use_few_shapes(on)

    def loss_cost(self, shape: LossShape) -> LossCost:
        """What all coupled losses take together on every rank."""
        return sum((loss.cost(shape) for loss in self.coupled.values()), NO_COST)

    def dry_run_roots(self, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]]) -> list[Tensor]:
        """What gradients flow back from in a step over a batch of the bare model: cached outputs, and terms.

        Args:
            batch: on the model's device.
            autocast: gives the context of the forward pass alone, as in a step.
        """
        with autocast():
            result = self.forward(self.model, batch, for_terms=bool(self.terms))
        outputs = tensors_of(result)
        totals = [term.total(result, batch).loss for term in self.terms.values()]
        if self.coupled and self.terms:  # what is for terms alone has no gradient of its own: a pass of one image tells
            with torch.no_grad(), autocast():
                cached = self.forward(self.model, batch.first_image(), for_terms=False)
            outputs = {name: outputs[name] for name in tensors_of(cached)}
        return [*(outputs.values() if self.coupled else ()), *totals]


class BuildObjective(Protocol):
    """Config to objective: what `clipx.train` takes in place of the config's own."""

    def __call__(self, config: Any, phase: Phase, *, vocab_size: int) -> Objective:
        """The objective of one phase, its model on the CPU and in float32, the same on every rank.

        Args:
            config: the run's: a `RunConfig` or a `FitConfig`, of which most know one.
            phase: what holds for these steps.
            vocab_size: number of ids that the tokenizer can give.

        Raises:
            InputError: the config does not fit the objective.
        """
