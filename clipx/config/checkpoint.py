"""The part of the schema about saving: when and where, which signals stop the run, what a spike of the loss does."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import NO_BOOL, STRICT, Count, FilePath, Interval, NonNegative
from clipx.config.validate import validated

StopSignal = Literal["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGXCPU"]


@validated
@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved, where, and what is kept."""

    __pydantic_config__ = STRICT

    every_steps: Interval = 1000
    """Save every N steps; 0: not by steps."""
    every_minutes: NonNegative = 15.0
    """Save when this many minutes have passed since the last save; 0: not by time."""
    keep_last: Count = 3
    """Newest checkpoints kept."""
    keep_every: Interval = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    folder: FilePath | None = None
    """Where checkpoints go: a folder or an address of fsspec (s3://bucket/run); null: checkpoints/ in run_dir."""
    async_save: bool = False
    """Write while the next steps train: a save costs a copy into the host's memory, which stays for it."""


@validated
@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """Leaps of the loss: the run goes back to a checkpoint from before that checkpoint.every_steps made, and leaves
    batches out (as PaLM did by hand, arXiv 2204.02311, section 5.1). With every_steps: 0 it is what every_minutes made,
    and so depends on time."""

    __pydantic_config__ = STRICT

    z_score: Annotated[float, Field(gt=0), NO_BOOL] = 8.0
    """A loss this many robust standard deviations (1.4826 times the median absolute deviation) above the median of the
    last losses is a spike."""
    window: Annotated[int, Field(ge=8), NO_BOOL] = 256
    """Losses, the latest ones, that median and deviation come from; before there are as many, nothing is a spike."""
    leave_out: Count = 8
    """Global batches left out: that of the spike and those before it."""
    max_rollbacks: Count = 10
    """Leaps after which the run ends instead of going back once more."""
