"""What one step hands to torch.distributed: the collectives of DDP or FSDP2, and those of the loss.

Left out are the step's own all-reduce of seven numbers and the gradient norm's.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from clipx.config.geometry import BatchGeometry
from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.config.schema import RunConfig
from clipx.plan.cluster import Collective
from clipx.plan.model import PhaseModel

_FLOAT, _ID = 4, 8  # bytes


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One kind of collective in a step."""

    part: str
    collective: Collective
    payload: float
    """Bytes of the tensor of all ranks."""
    times: int
    """In one step."""
    behind: Literal["backward", "towers", ""]
    """The arithmetic that goes on meanwhile: the last backward pass, all of the towers', or none."""


def transfers(config: RunConfig, model: PhaseModel, geometry: BatchGeometry) -> list[Transfer]:
    """Of one step of a phase; on one GPU there are none."""
    if geometry.world_size == 1:
        return []
    half = config.precision != "fp32"
    if isinstance(config.parallel, DdpConfig):
        payload = _FLOAT * model.num_trainable
        of_model = [
            Transfer(part="gradients", collective="all-reduce", payload=payload, times=1, behind="backward"),
        ]
    else:
        of_model = _fsdp(config.parallel, model, half=half, num_micro_batches=geometry.num_micro_batches)
    return of_model + _of_loss(config, geometry, width=2 if half else _FLOAT)


def _fsdp(config: Fsdp2Config, model: PhaseModel, *, half: bool, num_micro_batches: int) -> list[Transfer]:
    """Blocks are gathered in what they compute in, the rest in float32; gradients are summed in float32.

    With k micro-batches there are 2k - 1 forward and k backward passes, and each gathers what the last one has let go.
    What is kept, as the weights outside of blocks always are, is gathered once for all passes up to the end of the next
    backward pass: k times.
    """
    blocks = model.towers.blocks()
    in_blocks = sum(_numel(block) for block in blocks)
    rest = _numel(model.towers) - in_blocks
    k = num_micro_batches
    return [
        Transfer(
            part="weights of blocks",
            collective="all-gather",
            payload=in_blocks * (2 if half else _FLOAT),
            times=3 * k - 1 if config.reshard_after_forward else k,
            behind="towers",
        ),
        Transfer(part="other weights", collective="all-gather", payload=rest * _FLOAT, times=k, behind="towers"),
        Transfer(
            part="gradients",
            collective="reduce-scatter",
            payload=model.num_trainable * _FLOAT,
            times=k,
            behind="towers",
        ),
    ]


def _of_loss(config: RunConfig, geometry: BatchGeometry, *, width: int) -> list[Transfer]:
    """As `clipx.losses.exchange` says, whose docstring has the formulas."""
    world_size, pairs = geometry.world_size, geometry.global_batch_size
    texts = pairs * config.model.embed_dim
    ids = 1 if config.data.captions_per_image == 1 else 2
    found = [_wait("ids of samples", "all-gather", _ID * pairs, ids)]
    if config.loss.exchange == "gather":
        found += [
            _wait("texts", "all-gather", width * texts, 1),
            _wait("gradients of texts", "reduce-scatter", _FLOAT * texts, 1),
        ]
    else:
        passes = 2 if config.loss.type == "info_nce" else 1
        found += [
            _wait("texts", "shift", width * texts, passes * (world_size - 1)),
            _wait("gradients of texts", "shift", _FLOAT * texts, world_size),
        ]
    if config.loss.type == "info_nce":
        found.append(_wait("sums of columns", "all-reduce", _FLOAT * pairs, 2))
    return found


def _wait(part: str, collective: Collective, payload: float, times: int) -> Transfer:
    return Transfer(part=part, collective=collective, payload=payload, times=times, behind="")


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
