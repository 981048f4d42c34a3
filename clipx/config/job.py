"""The part of the schema that all kinds of runs have: `Job`, the base of `RunConfig` and `FitConfig`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.checkpoint import CheckpointConfig, SpikeConfig, StopSignal
from clipx.config.field_types import NO_BOOL, STRICT, Count, FilePath, Fraction, Interval, NonNegative, Text
from clipx.config.optim import AdamWConfig, EmaConfig, OptimConfig
from clipx.config.parallel import DdpConfig, ParallelConfig
from clipx.config.validate import validated
from clipx.errors import InputError


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
    samples: bool = False
    """With `select`, write the ids of the samples that each step has chosen into samples.jsonl."""


@validated
@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Ends the run when it no longer improves; the best checkpoint is kept, and is the run's model."""

    __pydantic_config__ = STRICT

    metric: Text
    """The figure that decides. Pretraining: EVALUATION/FIGURE, e.g. val/loss, or val/ema_loss of the average of the
    weights. A fit run: TARGET/FIGURE, e.g. category/accuracy, or `loss`, the weighted sum of all targets'."""
    patience: Count = 5
    """Evaluations in a row that may be no better than the best before."""


@validated
@dataclass(frozen=True, kw_only=True)
class Job:
    """What every run has, whatever it trains."""

    __pydantic_config__ = STRICT

    job: Literal["pretrain", "fit"] = "pretrain"
    """Kind of the run. pretrain: towers from pairs of pictures and texts; fit: targets of a table from pictures, texts,
    numbers and categories."""
    run_dir: FilePath
    """Folder of everything that the run writes."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), NO_BOOL] = 0
    """With the config and the step it determines the run."""
    global_batch_size: Annotated[int, Field(ge=2), NO_BOOL]
    """Pairs, or rows of a fit run, per optimizer step over all ranks."""
    micro_batch_size: Literal["auto"] | Count = "auto"
    """The same per rank and forward pass; smaller than the rank's share: gradient cache, the same result in less
    memory. auto: the largest that fits."""
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
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """Optimizer and learning rate."""
    ema: EmaConfig | None = None
    """Average of the weights; null: not kept."""
    parallel: ParallelConfig = field(default_factory=DdpConfig)
    """How ranks share the work."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    spikes: SpikeConfig | None = None
    """What to do when the loss spikes; null: nothing."""
    stop: StopConfig | None = None
    """Early end; null: all is trained, and the last checkpoint is the model."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Trackers."""

    @property
    def pairs_read(self) -> int:
        """Pairs, or rows, that a step reads: at least as many as it trains on."""
        return self.global_batch_size

    @property
    def pairs_read_key(self) -> str:
        """What decides `pairs_read`, for messages."""
        return "global_batch_size" if self.pairs_read == self.global_batch_size else "global_batch_size / select.keep"

    def check_samples(self, *, is_selecting: bool) -> None:
        """Raises InputError if chosen samples are asked for where none are chosen."""
        if self.track.samples and not is_selecting:
            raise InputError("track.samples=true names what `select` has chosen, and nothing is chosen; leave it out")

    def check_lanes(self, lanes: Literal["auto"] | int) -> None:
        """Raises InputError if `lanes` do not divide the global batch."""
        if lanes != "auto" and self.pairs_read % lanes:
            raise InputError(
                f"data.lanes={lanes} does not divide {self.pairs_read_key}={self.pairs_read}; choose a divisor"
            )
