"""`RunConfig`, every knob of a run: frozen dataclasses, those of each part of the run in a file of their own.

The docstring under a field is its documentation everywhere. Validated by pydantic in `clipx.config.load`; imports no
torch, so `clipx config` is instant. Variants are unions tagged by `type`. To add one: a dataclass in the file of its
part and in the union there, its module, one `case` in the matching `build_*` function.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.checkpoint import CheckpointConfig, SpikeConfig, StopSignal
from clipx.config.data import DataConfig
from clipx.config.evaluate import EvaluateConfig
from clipx.config.field_types import (
    NO_BOOL,
    STRICT,
    ContextLength,
    Count,
    FilePath,
    Fraction,
    FractionBelowOne,
    Interval,
    NonNegative,
)
from clipx.config.loss import InfoNCEConfig, LossConfig
from clipx.config.model import ModelConfig
from clipx.config.optim import AdamWConfig, EmaConfig, OptimConfig
from clipx.config.parallel import DdpConfig, ParallelConfig
from clipx.config.run_length import RunLength
from clipx.config.validate import validated
from clipx.errors import InputError


@validated
@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A first part of the run with smaller inputs (FLIP, arXiv 2212.00794; CLIPA, arXiv 2305.07017)."""

    __pydantic_config__ = STRICT

    until_step: Count | None = None
    """The stage ends after this many steps of the run; or `until_samples`, one of the two."""
    until_samples: Count | None = None
    """The stage ends after this many pairs of the run."""
    image_size: Count | None = None
    """Pixels of the square input, instead of model.image.image_size."""
    patch_drop: FractionBelowOne | None = None
    """Share of patches left out, instead of model.image.patch_drop."""
    context_length: ContextLength | None = None
    """Most tokens of a text, instead of model.text.context_length."""

    def __post_init__(self) -> None:
        if (self.until_step is None) == (self.until_samples is None):
            raise InputError(
                f"stages: until_step={self.until_step} and until_samples={self.until_samples}: "
                "give exactly one of the two"
            )


@validated
@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    __pydantic_config__ = STRICT

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases; offline runs are uploaded later with `wandb sync`."""
    tensorboard: bool = False
    """Write tensorboard event files into the run folder."""
    project: str = "clipx"
    """Project name at the tracker."""
    every_steps: Count = 10
    """Steps between two rows of metrics.jsonl and of the trackers."""
    profile_step: Interval = 0
    """Record a trace of torch's profiler from this step on, into the run folder; 0: none."""
    profile_steps: Count = 3
    """Steps that the trace covers."""


@validated
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One file is one run."""

    __pydantic_config__ = STRICT

    run_dir: FilePath
    """Folder of everything that the run writes."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), NO_BOOL] = 0
    """With the config and the step it determines the run."""
    steps: Count | None = None
    """Optimizer steps; or `samples`, one of the two."""
    samples: Count | None = None
    """Pairs to see; rounded up to whole steps."""
    global_batch_size: Annotated[int, Field(ge=2), NO_BOOL]
    """Pairs per optimizer step over all ranks."""
    micro_batch_size: Literal["auto"] | Count = "auto"
    """Pairs per rank and forward pass; smaller than the rank's share: gradient cache, the same result in less memory.
    auto: the largest that fits."""
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "bf16"
    """Arithmetic of the towers; parameters and softmax stay float32. fp8: the blocks' linear layers, the rest bf16."""
    activation_checkpointing: Fraction = 0.0
    """Share of each tower's blocks that keep only their input and compute again in the backward pass."""
    attention: Literal["auto", "flash"] = "auto"
    """Kernels of attention on CUDA in half precision. auto: the fastest of several that a start compares with float64
    and times; flash: torch's flash attention, untried, as it is if `deterministic`."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the towers' blocks with torch.compile; every start takes up to a minute longer. auto: on GPUs, in runs
    that win that back and are not `deterministic`; fp8 is always compiled."""
    deterministic: bool = False
    """Only deterministic kernels on CUDA; CPU runs always repeat bit for bit."""
    max_skipped_steps: Count = 10
    """Steps in a row with a non-finite loss or gradient after which the run ends."""
    max_minutes: NonNegative = 0.0
    """Minutes after which a start saves, stops and asks to be started again, as before a scheduler's limit; 0: none."""
    stop_signals: tuple[StopSignal, ...] = ("SIGTERM", "SIGUSR1")
    """Signals that ask the run to save and stop, beside Ctrl-C; so does a file named STOP in the run folder."""
    stall_timeout_s: Interval = 600
    """Seconds without progress of a rank after which all print where they stand and the run ends; 0: never. The first
    step, a save and an evaluation may take parallel.timeout_s."""
    data: DataConfig
    """The training stream."""
    model: ModelConfig
    """Towers."""
    loss: LossConfig = field(default_factory=InfoNCEConfig)
    """Objective."""
    start_from: FilePath | None = None
    """A model whose weights this run begins with: a run folder, a checkpoint, an export, a CLIP or SigLIP of
    transformers or open_clip, or hf://ORG/NAME[@REVISION]. `model` may then be left out, or hold what shall differ."""
    start_from_anyway: bool = False
    """Begin with them though `model` computes something else from them than what they were trained in."""
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """Optimizer and learning rate."""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """First parts of the run by name, in the order of their ends; after the last, inputs are as the model says."""
    ema: EmaConfig | None = None
    """Average of the weights; null: not kept."""
    parallel: ParallelConfig = field(default_factory=DdpConfig)
    """How ranks share the work."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    spikes: SpikeConfig | None = None
    """What to do when the loss spikes; null: nothing."""
    evaluate: dict[str, EvaluateConfig] = field(default_factory=dict)
    """Evaluations by name; the name is a part of file names."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Trackers."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise InputError(f"steps={self.steps} and samples={self.samples}: give exactly one of the two")
        lanes = self.data.lanes
        if lanes != "auto" and self.global_batch_size % lanes:
            raise InputError(
                f"data.lanes={lanes} does not divide global_batch_size={self.global_batch_size}; choose a divisor"
            )
        if self.loss.type == "sigmoid" and self.model.init_logit_bias is None:
            raise InputError("loss.type=sigmoid needs a bias: set model.init_logit_bias (SigLIP: -10)")
        for name in self.evaluate:
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise InputError(f"evaluate: the name {name!r} must be of letters, digits and _ - . (not . first)")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, whose global batch has one size from its start to its end."""
        return self.length().num_steps

    def length(self, changes: Sequence[tuple[int, int]] = ()) -> RunLength:
        """How steps and pairs correspond, with the `changes` of the global batch that the run has had."""
        return RunLength(
            global_batch_size=self.global_batch_size, steps=self.steps, samples=self.samples, changes=tuple(changes)
        )


@validated
@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The config file of a model that no run of clipx trained: as a run's, without all that is about training."""

    __pydantic_config__ = STRICT

    model: ModelConfig
    """Towers."""
