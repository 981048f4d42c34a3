"""The collectives of one step: those of DDP or FSDP2, of Muon, and of the loss.

Left out are the step's own all-reduce of its figures and the gradient norm's.
"""

from clipx.config.geometry import BatchGeometry
from clipx.config.parallel import DdpConfig, Fsdp2Config, ParallelConfig
from clipx.config.schema import RunConfig
from clipx.distributed.parallelize import num_weights
from clipx.losses.cost import Transfer
from clipx.objectives.build import loss_shape
from clipx.plan.model import PhaseModel
from clipx.plan.selection import choosing

_FLOAT, _HALF = 4, 2  # bytes


def transfers(config: RunConfig, model: PhaseModel, geometry: BatchGeometry) -> list[Transfer]:
    """The collectives of one step of a phase; none on one GPU."""
    if geometry.world_size == 1:
        return []
    half = config.precision != "fp32"
    if isinstance(config.parallel, DdpConfig):
        size = _FLOAT * model.num_trainable
        moved = [Transfer(part="gradients", collective="all-reduce", payload=size, times=1, behind="backward")]
    else:
        moved = _fsdp(config.parallel, model, half=half, num_micro_batches=geometry.num_micro_batches)
    moved += _muon(config.parallel, model, world_size=geometry.world_size)
    losses = model.objective.loss_cost(loss_shape(config, geometry)).transfers
    return [*moved, *losses, *choosing(config, model.phase, geometry).transfers]


def _muon(config: ParallelConfig, model: PhaseModel, *, world_size: int) -> list[Transfer]:
    """Orthogonalised matrices in bf16: gathered under DDP; under FSDP2 sent to their owners and back."""
    _, elements = model.optimizer_work(world_size)
    if not elements:
        return []
    is_whole = isinstance(config, DdpConfig)
    return [
        Transfer(
            part="matrices of Muon",
            collective="all-gather" if is_whole else "all-to-all",
            payload=_HALF * elements,
            times=1 if is_whole else 2,
        )
    ]


def _fsdp(config: Fsdp2Config, model: PhaseModel, *, half: bool, num_micro_batches: int) -> list[Transfer]:
    """The collectives of FSDP2.

    Blocks are gathered in the dtype in which they compute, other weights in float32; gradients are summed in float32.
    With k micro-batches there are 2k - 1 forward and k backward passes (without a coupled loss, k of both), and each
    gathers what the pass before it has freed. Weights that are not freed, as those outside of blocks never are, are
    gathered once for all passes up to the end of the next backward pass: k times.
    """
    in_blocks = sum(num_weights(block) for block in model.blocks())
    rest, k = model.num_parameters - in_blocks, num_micro_batches
    gradients = _FLOAT * model.num_trainable
    return [
        Transfer(
            part="weights of blocks",
            collective="all-gather",
            payload=in_blocks * (_HALF if half else _FLOAT),
            times=(3 * k - 1 if model.work.cached else 2 * k) if config.reshard_after_forward else k,
            behind="towers",
        ),
        Transfer(part="other weights", collective="all-gather", payload=rest * _FLOAT, times=k, behind="towers"),
        Transfer(part="gradients", collective="reduce-scatter", payload=gradients, times=k, behind="towers"),
    ]
