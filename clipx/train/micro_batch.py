"""`micro_batch_size: auto`: the largest micro-batch that fits, found by passes over the bare model.

Passes need no communication, so a rank that runs out of memory leaves none waiting. Gradients stand meanwhile, as in
all micro-batches of a step but the first. What training adds (moments, shards, the losses) is estimated.
"""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from clipx.distributed.parallelize import MEMORY_FRACTION
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.host import rank_memory
from clipx.models.dry_run import DryRun, LiveBytes

log = logging.getLogger(__name__)

_NEVER = float("inf")


def largest_micro_batch(
    model: nn.Module,
    *,
    sizes: Sequence[int],
    run: DryRun,
    reserved_bytes: int,
    runtime: Runtime,
    limit: int | None = None,
) -> int:
    """The largest of `sizes` that fits, the same on all ranks; the log says what was found.

    Args:
        model: bare; is left without gradients.
        sizes: that a micro-batch may have, ascending, up to the rank's whole batch; the same on all ranks.
        run: its forward and backward pass over a number of pairs.
        reserved_bytes: what training will take beside such a pass (`state_bytes`, the cost of the losses).
        runtime: the ranks; all of them call this.
        limit: bytes that this rank may still take; None means what is free now.

    Raises:
        InputError: not one pair fits; on all ranks alike.
    """
    with runtime.raise_on_all_ranks():
        budget = int(MEMORY_FRACTION * (_free_memory(runtime.device) if limit is None else limit)) - reserved_bytes
        try:
            size, peak = _largest(sizes, run, budget, runtime.device)
        finally:
            model.zero_grad(set_to_none=True)
    smallest = min(runtime.gather_objects(size))
    if not smallest:
        raise InputError(
            f"micro_batch_size=auto: not one pair fits the memory of every rank ({budget / 1e9:.2f} GB here, beside "
            "weights, optimizer and loss); set activation_checkpointing=1, parallel.type=fsdp2, or a smaller model"
        )
    log.info(
        "micro_batch_size: %d of the %d pairs of a rank; %d took %.2f GB, of %.2f beside weights, optimizer and loss",
        *(smallest, sizes[-1], size, peak / 1e9, budget / 1e9),
    )
    return smallest


def _largest(sizes: Sequence[int], run: DryRun, budget: int, device: torch.device) -> tuple[int, float]:
    """The largest of the sizes whose peak is within the budget, and its peak; 0 if there is none.

    Memory grows with the size, so the first that does not fit ends the search.
    """
    _peak(run, sizes[0], device)  # what is made once (gradients, workspaces) would pass for activations
    largest, highest = 0, 0.0
    for size in sizes:
        peak = _peak(run, size, device)
        if peak > budget:
            break
        largest, highest = size, peak
    return largest, highest


def _peak(run: DryRun, num_pairs: int, device: torch.device) -> float:
    """Most bytes alive at once during a pass, beyond those before; infinity if there are not as many."""
    try:
        if device.type != "cuda":
            with LiveBytes() as live:
                run(num_pairs)
            return live.peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(num_pairs)
        return torch.cuda.max_memory_allocated(device) - before
    except (torch.OutOfMemoryError, MemoryError):
        return _NEVER
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # what torch says on a CPU
            raise
        return _NEVER


def _free_memory(device: torch.device) -> int:
    """Bytes that this rank may still take: of its GPU, or its share of the machine's or container's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return rank_memory()
