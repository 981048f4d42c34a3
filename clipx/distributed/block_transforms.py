"""Changes to a model's repeated blocks: float8, then activation checkpointing, and compiling once it is distributed.

All work in place, and no parameter is renamed or replaced.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch import _dynamo as dynamo
from torch._dynamo.exc import TorchDynamoException
from torch.distributed import ProcessGroup
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from clipx.config.schema import JobConfig
from clipx.distributed.collectives import gather_objects
from clipx.errors import InputError

log = logging.getLogger(__name__)

_MAX_GRAPHS = 64
"""Most compiled versions of one forward pass: with and without gradients, in training and evaluation, for the shapes of
each phase, for last blocks and others. torch's limit is 8: a run with two phases and evaluations exceeds it, and would
continue uncompiled."""
_WORTH_COMPILING = 3e17
"""FLOPs of a run on one GPU from which on compiling pays, by estimate: it takes up to 60 s and saves 7% of a step, so
that 860 s of training win it back, in which an H100 at 35% of its peak does as many. Slower GPUs would need fewer."""


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


def compiles(config: JobConfig, *, device_type: str, image_flops: float, world_size: int) -> bool:
    """Whether a run compiles its blocks: as `compile` says, and for `auto` if that pays.

    It depends on the whole run and not on what is left of it, so that a run goes on as it began. Inductor chooses
    kernels by measuring, so `deterministic` runs are not compiled unless asked for.

    Args:
        config: of the run.
        device_type: cpu or cuda.
        image_flops: FLOPs of training on one image; texts are not counted, as they are a small part.
        world_size: W.

    Raises:
        InputError: precision=fp8 with compile=false.
    """
    if config.precision == "fp8":
        if config.compile is False:
            raise InputError(
                "precision=fp8 with compile=false is slower than bf16 (six times the kernels); set compile=auto, or "
                "precision=bf16"
            )
        return True
    if config.compile != "auto":
        return config.compile
    num_images = config.num_steps * config.global_batch_size / config.data.captions_per_image / world_size
    return device_type == "cuda" and not config.deterministic and num_images * image_flops >= _WORTH_COMPILING


def compile_blocks(
    blocks: Sequence[nn.Module],
    *,
    dry_run: Callable[[], object],
    group: ProcessGroup | None,
    dynamic_blocks: Collection[nn.Module] = (),
    without_gradients: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> str | None:
    """Compiles the forward pass of every block, where all ranks can; call it when the model is distributed.

    In the dry run each block tries its compiled pass, forward and backward, on the inputs that it gets, and then goes
    on with the plain pass. So a failure to compile never leaves the dry run, in which other ranks may wait for this one
    (FSDP2 communicates); and what does leave it is the model's own error. The blocks get what they will get in a step,
    weights in FSDP2's dtype included, so the step compiles nothing again.

    Args:
        blocks: the blocks of all towers; blocks of the same kind share compiled code.
        dry_run: runs a forward and backward pass of the model; all ranks call it.
        group: the ranks.
        dynamic_blocks: the blocks whose input shapes change from step to step.
        without_gradients: whether steps run the blocks without gradients, too (the gradient cache).
        backend: of torch.compile.

    Returns:
        None if the blocks are compiled, or why they are not, the same on all ranks.
    """
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MAX_GRAPHS)
    dynamo.config.optimize_ddp = False  # it cuts graphs where DDP's buckets end; a block is smaller than a bucket
    dynamo.config.suppress_errors = False
    began, problems = time.perf_counter(), list[str]()
    plain = [block.forward for block in blocks]
    compiled = [
        torch.compile(forward, backend=backend, dynamic=True if block in dynamic_blocks else None)
        for forward, block in zip(plain, blocks, strict=True)
    ]
    chosen, problem = plain, None
    for block, forward, candidate in zip(blocks, plain, compiled, strict=True):
        attempt = partial(_try_out, candidate, block.parameters, without_gradients=without_gradients)
        setattr(block, "forward", _trying(forward, attempt, problems))  # noqa: B010
    try:
        dry_run()
        problem = next((found for found in gather_objects(next(iter(problems), None), group) if found), None)
        chosen = plain if problem else _with_way_out(blocks, plain, compiled)
    finally:
        for block, forward in zip(blocks, chosen, strict=True):
            setattr(block, "forward", forward)  # noqa: B010
    if problem is None:
        log.info("compiled %d blocks in %.0f s", len(blocks), time.perf_counter() - began)
    return problem


def _with_way_out(
    blocks: Sequence[nn.Module], plain: Sequence[Callable[..., Any]], compiled: Sequence[Callable[..., Any]]
) -> list[Callable[..., Any]]:
    """The compiled passes; the plain ones for a kind of pass that has met a shape that cannot be compiled.

    Kinds are passes with gradients and without, in training and in evaluation. Not by dynamo's `suppress_errors`: after
    one failure it leaves the blocks' code alone for good, so that an evaluation would end the compiled training.
    """
    refused: set[tuple[bool, bool]] = set()

    def guarded(block: nn.Module, forward: Callable[..., Any], candidate: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = torch.is_grad_enabled(), block.training
            if kind not in refused:
                try:
                    return candidate(*args, **kwargs)
                except TorchDynamoException as error:
                    refused.add(kind)
                    name = "training" if block.training else "evaluation"
                    log.warning("a shape cannot be compiled (%s); %s goes on without", _one_line(error), name)
            return forward(*args, **kwargs)

        return call

    return [guarded(*three) for three in zip(blocks, plain, compiled, strict=True)]


def _trying(forward: Callable[..., Any], attempt: Callable[[Any], object], problems: list[str]) -> Callable[..., Any]:
    """The forward pass, before which its compiled form is tried until one fails."""

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not problems:
            try:
                attempt((args, kwargs))
            except Exception as error:  # of torch.compile, a C++ compiler or a kernel: compiling is not possible
                problems.append(_one_line(error))
        return forward(*args, **kwargs)

    return call


def _try_out(
    compiled: Callable[..., Any], weights: Callable[[], Iterable[nn.Parameter]], inputs: Any, *, without_gradients: bool
) -> None:
    """Both passes on some (args, kwargs); sets no gradient, so neither DDP nor FSDP2 sees a backward pass."""
    args, kwargs = inputs
    outputs = _with_gradients(compiled(*args, **kwargs))
    if outputs:
        sources = _with_gradients((args, kwargs, list(weights())))
        torch.autograd.grad(outputs, sources, [torch.ones_like(output) for output in outputs], allow_unused=True)
    if without_gradients:
        with torch.no_grad():
            args, kwargs = tree_map_only(Tensor, Tensor.detach, inputs)
            compiled(*args, **kwargs)


def _with_gradients(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200] or repr(error)
