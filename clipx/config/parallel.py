"""The part of the schema that says how a run's ranks share the model: DDP or FSDP2."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count
from clipx.config.validate import validated


@validated
@dataclass(frozen=True, kw_only=True)
class DdpConfig:
    """Every rank holds the whole model."""

    __pydantic_config__ = STRICT

    type: Literal["ddp"] = "ddp"
    timeout_s: Count = 1800
    """Seconds after which a collective that does not complete ends the run."""


@validated
@dataclass(frozen=True, kw_only=True)
class Fsdp2Config:
    """Parameters, gradients and optimizer state sharded over the ranks (arXiv 2304.11277)."""

    __pydantic_config__ = STRICT

    type: Literal["fsdp2"] = "fsdp2"
    timeout_s: Count = 1800
    """Seconds after which a collective that does not complete ends the run."""
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass: less memory, one more gather."""
    cpu_offload: bool = False
    """Keep parameters, gradients and optimizer state in the hosts' memory, and update them there."""


ParallelConfig = Annotated[DdpConfig | Fsdp2Config, Field(discriminator="type")]
