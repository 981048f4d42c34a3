"""What is done to a model's repeated blocks before it is spread over ranks: float8, then checkpointing, then compiling.

In place, and no parameter changes its name or is replaced.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch import _dynamo as dynamo
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from clipx.distributed.collectives import gather_objects

log = logging.getLogger(__name__)

_MAX_GRAPHS = 64
"""Of one forward pass: with and without gradients, in training and evaluation, of each phase's shapes, for last blocks
and others. torch's own limit of 8 is passed by a run with two phases and evaluations, which would go on uncompiled."""


def float8_blocks(blocks: Sequence[nn.Module]) -> None:
    """Lets the blocks' linear layers multiply in float8, scaled per tensor (torchao; arXiv 2209.05433); the rest stays.

    Layers whose sides are no multiples of 16 stay as well: the hardware's products have no others. Tokens, the third
    side, are padded to one where their number is none.
    """
    from accelerate.utils import AORecipeKwargs, convert_model_to_fp8_ao

    config = AORecipeKwargs(pad_inner_dim=True, enable_fsdp_float8_all_gather=False).config
    for block in blocks:
        convert_model_to_fp8_ao(block, config=config, module_filter_func=_has_float8_shape)


def _has_float8_shape(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0


def checkpoint_blocks(blocks: Sequence[nn.Module], *, fraction: float) -> None:
    """Makes a share of the blocks keep their input alone, and compute the rest again in the backward pass.

    Dropout repeats itself there, for the generators' state at the block's entry is kept with the input.

    Args:
        blocks: of one tower, in order.
        fraction: 0.5 is every second one; n x fraction blocks, rounded, evenly spread.
    """
    for block in evenly_spread(blocks, fraction):
        setattr(block, "forward", _checkpointed(block.forward))  # noqa: B010


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A frame of its own, or torch.compile would find nothing that it may look into, and compile nothing."""

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return found

    return call


def evenly_spread(blocks: Sequence[nn.Module], fraction: float) -> list[nn.Module]:
    """round(n x fraction) of n blocks, as far from each other as can be."""
    number = round(len(blocks) * fraction)
    return [blocks[place * len(blocks) // number] for place in range(number)]


def compile_blocks(
    blocks: Sequence[nn.Module],
    *,
    dry_run: Callable[[], object],
    group: ProcessGroup | None,
    dynamic_blocks: Collection[nn.Module] = (),
    backend: str | Callable[..., Any] = "inductor",
) -> bool:
    """Compiles every block, and tries them; where any rank cannot, all ranks stay as they were, and the log says why.

    Args:
        blocks: of all towers; blocks of one kind share their code.
        dry_run: a forward and backward pass of the bare model, without communication.
        group: the ranks.
        dynamic_blocks: those of the blocks whose inputs' shapes change from step to step.
        backend: of torch.compile.

    Returns:
        Whether the blocks are compiled.
    """
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MAX_GRAPHS)
    for block in blocks:
        block.compile(backend=backend, dynamic=True if block in dynamic_blocks else None)
    began = time.perf_counter()
    problem: str | None = None
    try:
        dry_run()
    except Exception as error:  # the compiler's, the C++ compiler's, the kernel's: all mean that it cannot be done
        problem = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200] or repr(error)
    problems = [found for found in gather_objects(problem, group) if found is not None]
    if not problems:
        log.info("compiled %d blocks in %.0f s", len(blocks), time.perf_counter() - began)
        return True
    for block in blocks:
        block._compiled_call_impl = None
    log.warning("compile=true is not possible here (%s); the run goes on without", problems[0])
    return False
