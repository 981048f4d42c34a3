"""Changes to a model's repeated blocks before it is distributed: float8, then activation checkpointing, then compiling.

All work in place, and no parameter is renamed or replaced.
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
"""Most compiled versions of one forward pass: with and without gradients, in training and evaluation, for the shapes of
each phase, for last blocks and others. torch's limit is 8: a run with two phases and evaluations exceeds it, and would
continue uncompiled."""


def float8_blocks(blocks: Sequence[nn.Module]) -> None:
    """Makes the blocks' linear layers multiply in float8, scaled per tensor (torchao; arXiv 2209.05433).

    Layers with a side that is not a multiple of 16 do not change: the hardware supports no other products. The third
    side, the number of tokens, is padded to a multiple if necessary.
    """
    from accelerate.utils import AORecipeKwargs, convert_model_to_fp8_ao

    config = AORecipeKwargs(pad_inner_dim=True, enable_fsdp_float8_all_gather=False).config
    for block in blocks:
        convert_model_to_fp8_ao(block, config=config, module_filter_func=_has_float8_shape)


def _has_float8_shape(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0


def checkpoint_blocks(blocks: Sequence[nn.Module], *, fraction: float) -> None:
    """Activation checkpointing: a fraction of the blocks keep only their input and compute the rest again in backward.

    Of one tower's blocks, in their order: 0.5 means every second one. Dropout draws the same numbers again, because the
    state of the generators is saved together with the input.
    """
    for block in evenly_spread(blocks, fraction):
        setattr(block, "forward", _checkpointed(block.forward))  # noqa: B010


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward pass with checkpointing, in a Python frame of its own: without one torch.compile compiles nothing."""

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return result

    return call


def evenly_spread(blocks: Sequence[nn.Module], fraction: float) -> list[nn.Module]:
    """round(n x fraction) of n blocks, at even distances."""
    num_chosen = round(len(blocks) * fraction)
    return [blocks[index * len(blocks) // num_chosen] for index in range(num_chosen)]


def compile_blocks(
    blocks: Sequence[nn.Module],
    *,
    dry_run: Callable[[], object],
    group: ProcessGroup | None,
    dynamic_blocks: Collection[nn.Module] = (),
    backend: str | Callable[..., Any] = "inductor",
) -> bool:
    """Compiles every block and tries them out. If one rank fails, no rank compiles, and the log says why.

    Args:
        blocks: the blocks of all towers; blocks of the same kind share compiled code.
        dry_run: runs a forward and backward pass of the bare model, without communication.
        group: the ranks.
        dynamic_blocks: the blocks whose input shapes change from step to step.
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
    except Exception as error:  # from torch.compile, a C++ compiler or a kernel: in each case compiling is not possible
        problem = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200] or repr(error)
    problems = [message for message in gather_objects(problem, group) if message is not None]
    if not problems:
        log.info("compiled %d blocks in %.0f s", len(blocks), time.perf_counter() - began)
        return True
    for block in blocks:
        block._compiled_call_impl = None
    log.warning("compile=true is not possible here (%s); the run goes on without", problems[0])
    return False
