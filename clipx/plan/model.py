"""The model of one phase without its numbers: parameters, work per pair, and the memory that a pass over pairs takes.

The towers are on the meta device, and a pass runs on fake tensors, which have shapes and no content. So the memory is
what torch's own autograd keeps and makes, for any model, measured as `micro_batch_size: auto` measures it in the real
run. A fake GPU needs a real one, so the pass is a CPU's. It keeps what CUDA's keeps, except in the text tower in half
precision: there a varlen kernel saves one copy of the output of attention (2 of 38 bytes per channel).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipx.config.model import HuggingFaceTextConfig
from clipx.config.phases import Phase
from clipx.config.schema import RunConfig
from clipx.data.columns import blank_columns
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.block_transforms import checkpoint_blocks, evenly_spread
from clipx.distributed.parallelize import num_weights
from clipx.models.attention.backends import standing_for_cuda
from clipx.models.dry_run import DryRun, LiveBytes, dry_run
from clipx.models.flops import flop_counter
from clipx.models.huggingface_text import HuggingFaceTextTower
from clipx.models.text_tower import TextTower
from clipx.objectives.build import build_objective
from clipx.objectives.objective import BuildObjective, Objective
from clipx.optim.optimizers import optimizer_bytes, optimizer_work
from clipx.optim.param_groups import lock
from clipx.plan.selection import scoring_flops
from clipx.pretrained.kept_texts import with_kept_texts

_FLOAT = 4  # bytes
_NUM_IMAGES = (4, 256)
"""Images of the passes that are tried, each once more with four times as many. Memory grows along one line for small
passes, whose maximum is where the largest weight's gradient is made, and along another one for larger passes."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of the towers for one pair."""

    image_forward: float
    text_forward: float
    text_tokens: int
    """Tokens of the text that is assumed."""
    useful: float
    """A training pass: three times the forward pass, once for a locked tower (`clipx.models.flops`)."""
    recomputed: float
    """Work that activation checkpointing does again in the backward pass."""

    scoring: float = 0.0
    """The forward passes by which a batch is chosen, for each pair that is trained on."""
    cached: bool
    """Whether micro-batches go through the gradient cache: only if there is a coupled loss."""

    def again(self, num_micro_batches: int) -> float:
        """The gradient cache's second forward pass of the towers, which all micro-batches but the last need."""
        return self.cached * (self.image_forward + self.text_forward) * (num_micro_batches - 1) / num_micro_batches


class PhaseModel:
    """The towers as they train in a phase.

    `caption_tokens` are those of a caption on average, start and end included.

    Raises:
        InputError: the towers cannot be built.
    """

    def __init__(
        self, config: RunConfig, phase: Phase, *, caption_tokens: int, build: BuildObjective = build_objective
    ) -> None:
        self.phase = phase
        self._config = config
        self.objective = _on_meta_device(config, phase, build)
        text_tower = self.objective.model.text_tower
        self._tokens = computed_tokens(text_tower, mean=caption_tokens, longest=phase.context_length)
        self.work = _work(config, self.objective, phase, tokens=self._tokens)

    def blocks(self) -> list[nn.Module]:
        """The modules that FSDP2 gathers one at a time."""
        return [block for blocks in self.objective.block_lists() for block in blocks]

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part."""
        model = self.objective.model
        image, text = model.image_tower, model.text_tower
        tables = sum(num_weights(module) for module in text.modules() if isinstance(module, nn.Embedding))
        return {
            "image tower": num_weights(image),
            "text tower": num_weights(text) - tables,
            "text embeddings": tables,
            "beside the towers": num_weights(model) - num_weights(image) - num_weights(text),
        }

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the whole model."""
        return num_weights(self.objective.model)

    @property
    def num_trainable(self) -> int:
        """Parameters that have a gradient in this phase."""
        return sum(weight.numel() for weight in self.objective.model.parameters() if weight.requires_grad)

    @cached_property
    def counted_flops(self) -> float:
        """FLOPs of one pair by torch's own counter, in a pass of our towers over captions of mean length.

        Less than useful work, as our towers leave out outputs that nobody reads and gradients of pixels; and more, as
        it has the work that activation checkpointing does again.
        """
        num_pairs = _NUM_IMAGES[1] * self._config.data.captions_per_image
        with self._fake() as objective, flop_counter() as counter:
            self._dry_run(objective, num_tokens=self._tokens)(num_pairs)
        return counter.get_total_flops() / num_pairs

    @cached_property
    def optimizer_bytes(self) -> int:
        """Bytes of the whole model's state, before it is sharded, without a few numbers per tensor."""
        return optimizer_bytes(self._config.optim, self.objective.model)

    def optimizer_work(self, num_ranks: int) -> tuple[float, int]:
        """FLOPs of a step's optimizer on the busiest rank, and elements that ranks exchange for it."""
        return optimizer_work(self._config.optim, self.objective.model, num_ranks=num_ranks)

    def pass_bytes(self, num_pairs: int) -> int:
        """Maximum of the bytes alive in a forward and backward pass over pairs with the longest texts.

        Weights and their gradients are not counted; the half-precision copies of weights that autocast keeps are.
        """
        return round(max(base + slope * num_pairs for base, slope in self._lines))

    @cached_property
    def _lines(self) -> list[tuple[float, float]]:
        """(base, slope) of the bytes of small and of large passes."""
        with self._fake() as objective:
            run = self._dry_run(objective, num_tokens=self.phase.context_length)
            return [_line(run, self._config.data.captions_per_image * num_images) for num_images in _NUM_IMAGES]

    @contextmanager
    def _fake(self) -> Iterator[Objective]:
        """The objective with a model and gradients of fake tensors; tensors made in this context are fake too."""
        objective = deepcopy(self.objective)
        objective.use_few_shapes(True)  # otherwise it reads the texts' lengths, which fake tensors do not have
        with FakeTensorMode(), standing_for_cuda():
            objective.model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
            for weight in objective.model.parameters():
                weight.grad = torch.empty_like(weight) if weight.requires_grad else None
            yield objective

    def _dry_run(self, objective: Objective, *, num_tokens: int) -> DryRun:
        for blocks in objective.block_lists():
            checkpoint_blocks(blocks, fraction=self._config.activation_checkpointing)
        half = self._config.precision != "fp32"
        # also for fp16, which a CPU does not have, and for fp8, whose products keep their inputs in bf16
        autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=half)
        return dry_run(
            lambda batch: objective.dry_run_roots(batch, autocast),
            image_size=self.phase.image_size,
            context_length=num_tokens,
            captions_per_image=self._config.data.captions_per_image,
            columns=partial(blank_columns, objective.column_readers),
            device=torch.device("cpu"),
        )


def computed_tokens(text_tower: nn.Module, *, mean: int, longest: int) -> int:
    """Tokens of a text as the tower computes it.

    A packed tower computes the tokens of the mean caption, or `longest` where padding counts as text. Other towers pad
    texts to the longest of their micro-batch, which is assumed to be `longest`; useful work in a plan then includes the
    padding, as it costs time, and MFU in metrics.jsonl does not.
    """
    is_padded = text_tower.is_padded if isinstance(text_tower, TextTower) else False
    if isinstance(text_tower, HuggingFaceTextTower):
        is_padded = text_tower.first_position is None
    return longest if is_padded else min(mean, longest)


def _on_meta_device(config: RunConfig, phase: Phase, build: BuildObjective) -> Objective:
    """The objective on the meta device; in memory if it has a transformers encoder, which runs while it is built."""
    model = with_kept_texts(config.model, [Path(config.run_dir)])
    model = replace(model, image=replace(model.image, pretrained=False))
    if isinstance(model.text, HuggingFaceTextConfig):
        model = replace(model, text=replace(model.text, pretrained=False))
        objective = build(replace(config, model=model), phase, vocab_size=0)  # its vocabulary is its own
    else:
        vocab_size = build_tokenizer(model.text).vocab_size
        with torch.device("meta"):
            objective = build(replace(config, model=model), phase, vocab_size=vocab_size)
    lock(objective.model, phase.locked)
    return objective


def _work(config: RunConfig, objective: Objective, phase: Phase, *, tokens: int) -> Work:
    flops = objective.flops
    image = flops.image_forward / config.data.captions_per_image
    text = flops.text.forward(num_texts=1, num_tokens=tokens, sum_squared_lengths=tokens**2)
    image_share, text_share, *_ = (
        len(evenly_spread(blocks, config.activation_checkpointing)) / max(1, len(blocks))
        for blocks in objective.block_lists()
    )
    return Work(
        image_forward=image,
        text_forward=text,
        text_tokens=tokens,
        useful=flops.image_passes * image + flops.text_passes * text + 3 * flops.own_forward,
        scoring=scoring_flops(config, objective, phase, tokens=tokens),
        cached=bool(objective.coupled),
        recomputed=image_share * image * (flops.image_passes > 1) + text_share * text * (flops.text_passes > 1),
    )


def _line(run: DryRun, num_pairs: int) -> tuple[float, float]:
    """(base, slope) of the bytes, by passes over `num_pairs` pairs and four times as many.

    The padding among their tokens (`clipx.models.packing`) is the same share of both.
    """
    peaks = []
    for number in (num_pairs, 4 * num_pairs):
        with LiveBytes() as live:
            run(number)
        peaks.append(live.peak)
    slope = (peaks[1] - peaks[0]) / (3 * num_pairs)
    return peaks[0] - num_pairs * slope, slope
