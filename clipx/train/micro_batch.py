"""`micro_batch_size: auto`: the largest micro-batch that fits, from the memory of two small ones, and then tried.

A pass over n pairs takes about base + n x slope bytes. Both are measured on the bare model, without communication, so
that a rank that runs out of memory leaves none waiting. Gradients stand meanwhile, as in all micro-batches of a step
but the first. The size that the line promises is then run, and the next smaller one until it fits: the height of a
small pass can be where the largest weight's gradient is made, and the line too flat. What training adds (gradients,
moments, shards, the loss) is reckoned.
"""

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clipx.config.parallel import DdpConfig, ParallelConfig
from clipx.distributed.collectives import gather_objects
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.types import Batch, Embeddings

log = logging.getLogger(__name__)

USABLE = 0.9
"""Share of the memory that a search gives out; allocators lose some of the rest between blocks."""
_PAIRS = 8  # the smaller of the two measured sizes; the larger is 3 times that
_TILE = 4096  # rows and columns of the largest block of similarities that a loss holds
_FLOAT = 4  # bytes
_NEVER = float("inf")


def largest_micro_batch(
    model: nn.Module,
    *,
    sizes: Sequence[int],
    rehearse: Callable[[int], object],
    beside: int,
    runtime: Runtime,
    limit: int | None = None,
) -> int:
    """The largest of `sizes` that fits, the same on all ranks; the log says what was found.

    Args:
        model: bare; is left without gradients.
        sizes: that a micro-batch may have, ascending, up to the rank's whole batch; the same on all ranks.
        rehearse: its forward and backward pass over so many pairs, which adds to its gradients (`rehearsal`).
        beside: bytes that training will take beside such a pass (`state_bytes`, `loss_bytes`).
        runtime: the ranks; all of them call this.
        limit: bytes that this rank may still take; none: what is free now.

    Raises:
        InputError: not one pair fits; on all ranks alike.
    """
    with runtime.raise_on_all_ranks():
        budget = int(USABLE * (_free_memory(runtime.device) if limit is None else limit)) - beside
        try:
            size, peak = _largest(sizes, partial(_peak, rehearse, device=runtime.device), budget)
        finally:
            model.zero_grad(set_to_none=True)
    smallest = min(gather_objects(size, runtime.group))
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


def rehearsal(
    forward: Callable[[Batch], Embeddings],
    *,
    image_size: int,
    context_length: int,
    captions_per_image: int = 1,
    device: torch.device,
) -> Callable[[int], None]:
    """What `largest_micro_batch` and `compile_blocks` try out: both passes over pairs of zeros with the longest texts.

    Args:
        forward: of the bare model on `device`, as it will train (autocast, patch dropout).
        image_size: pixels of the square input.
        context_length: tokens of every text.
        captions_per_image: texts of every picture.
        device: where the pairs go.
    """

    def rehearse(num_pairs: int) -> None:
        lengths_B = torch.full((num_pairs,), context_length)
        numbers_I = torch.arange(num_pairs // captions_per_image)
        batch = Batch(
            index=0,
            images_IHWC=torch.zeros(len(numbers_I), image_size, image_size, 3, dtype=torch.uint8),
            tokens_T=torch.zeros(num_pairs * context_length, dtype=torch.int64),
            lengths_B=lengths_B,
            max_length=context_length,
            sample_id_I=numbers_I,
            slot_I=numbers_I,
            source_I=torch.zeros_like(numbers_I),
            captions_per_image=captions_per_image,
        )
        embeddings = forward(batch.to(device))
        outputs = [embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return rehearse


def state_bytes(
    model: nn.Module, *, config: ParallelConfig, blocks: Sequence[nn.Module], world_size: int, kept: int
) -> int:
    """Bytes per rank that training adds to a bare float32 model: gradients and more; below 0 where sharding frees more.

    Args:
        model: bare, every weight on the device.
        config: DDP or FSDP2.
        blocks: what FSDP2 gathers one at a time.
        world_size: W.
        kept: bytes, before they are sharded, of what stays beside weights and gradients: the optimizer's state, an
            average of the weights.
    """
    whole = _FLOAT * _numel(model)
    if isinstance(config, DdpConfig):
        return whole + kept
    sizes = [_FLOAT * _numel(block) for block in blocks]
    rest, largest = whole - sum(sizes), max(sizes, default=0)
    # the rest stays gathered with its gradients, and of the blocks one in use, one on its way, and both's gradients
    gathered = 2 * rest + (2 * largest if config.reshard_after_forward else sum(sizes)) + 2 * largest
    shards = 0 if config.cpu_offload else (2 * whole + kept) // world_size
    return gathered + shards - whole


def loss_bytes(*, rank_batch_size: int, world_size: int, embed_dim: int) -> int:
    """Bytes per rank that stand while the loss of b pairs is computed: embeddings, all texts, tiles.

    Args:
        rank_batch_size: b.
        world_size: W.
        embed_dim: D, reckoned in float32.
    """
    global_batch_size = rank_batch_size * world_size
    embeddings = (8 * rank_batch_size + global_batch_size) * embed_dim  # both towers', gradients, float32 sums
    tiles = 4 * min(_TILE, rank_batch_size) * min(_TILE, global_batch_size)
    return _FLOAT * (embeddings + tiles)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _largest(sizes: Sequence[int], peak_of: Callable[[int], float], budget: int) -> tuple[int, float]:
    """The largest of the sizes whose peak is within the budget, and its peak; 0 where none is."""
    base, slope = _fit(peak_of, num_pairs=min(_PAIRS, -(-sizes[-1] // 3)))
    for size in reversed([size for size in sizes if base + size * slope <= budget]):
        peak = peak_of(size)
        if peak <= budget:
            return size, peak
    return 0, 0.0


def _fit(peak_of: Callable[[int], float], *, num_pairs: int) -> tuple[float, float]:
    """(base, slope) in bytes; a slope of infinity where not even single pairs fit."""
    while num_pairs:
        peak_of(num_pairs)  # what is made once (gradients, workspaces) would pass for activations
        small, large = peak_of(num_pairs), peak_of(3 * num_pairs)
        if large < _NEVER:
            slope = max(1.0, (large - small) / (2 * num_pairs))
            return max(0.0, small - num_pairs * slope), slope
        num_pairs //= 2
    return 0.0, _NEVER


def _peak(rehearse: Callable[[int], object], num_pairs: int, *, device: torch.device) -> float:
    """Most bytes alive at once during a rehearsal, beyond those before; infinity where they are not to be had."""
    try:
        if device.type != "cuda":
            with LiveBytes() as live:
                rehearse(num_pairs)
            return live.peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        rehearse(num_pairs)
        return torch.cuda.max_memory_allocated(device) - before
    except (torch.OutOfMemoryError, MemoryError):
        return _NEVER
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # what torch says on a CPU
            raise
        return _NEVER


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make within, for as long as they live; for the CPU.

    What an operation makes and frees inside of itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Most bytes at one time."""
        self._now = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, then looks at what it made."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._seen[tensor.untyped_storage()] = True
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = True
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, num_bytes: int) -> None:
        self._now += num_bytes
        self.peak = max(self.peak, self._now)


def _free_memory(device: torch.device) -> int:
    """Bytes that this rank may still take: of its GPU, or its share of the machine's or container's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = _host_memory()
    limit, used, file_cache = (_cgroup(name) for name in ("memory.max", "memory.current", "memory.stat"))
    if limit is not None and used is not None:
        free = min(free, limit - used + (file_cache or 0))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _host_memory() -> int:
    """Bytes that Linux says are available; elsewhere half of what is built in."""
    with suppress(OSError):
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(rows["MemAvailable"].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup(name: str) -> int | None:
    """A figure of this container; of memory.stat, what can be taken back from the file cache."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text()
    except OSError:
        return None
    if name == "memory.stat":
        text = dict(line.split() for line in text.splitlines()).get("inactive_file", "0")
    return int(text) if text.strip().isdecimal() else None
