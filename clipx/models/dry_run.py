"""Passes that are run for their memory, FLOPs or compiled code and not for their result."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clipx.types import Batch

DryRun = Callable[[int], None]
"""A forward and a backward pass over a number of pairs; adds to gradients and communicates nothing."""


def dry_run(
    forward: Callable[[Batch], Iterable[Tensor]],
    *,
    image_size: int,
    context_length: int,
    captions_per_image: int = 1,
    columns: Callable[[dict[str, int]], dict[str, Tensor]] = lambda sizes: {},
    device: torch.device,
) -> DryRun:
    """Both passes over zeros, with texts of full length.

    Args:
        forward: the bare model on `device` as it will train (autocast, patch dropout): a batch to all tensors from
            which gradients flow back.
        image_size: pixels of the square input.
        context_length: tokens of every text.
        columns: an objective's further columns for lengths along B, I and T.
        device: where the pairs go.
    """

    def run(num_pairs: int) -> None:
        num_images, num_tokens = num_pairs // captions_per_image, num_pairs * context_length
        number_I = torch.arange(num_images)
        batch = Batch(
            index=0,
            images_IHWC=torch.zeros(num_images, image_size, image_size, 3, dtype=torch.uint8),
            tokens_T=torch.zeros(num_tokens, dtype=torch.int64),
            lengths_B=torch.full((num_pairs,), context_length),
            max_length=context_length,
            sample_id_I=number_I,
            slot_I=number_I,
            source_I=torch.zeros_like(number_I),
            columns=columns({"B": num_pairs, "I": num_images, "T": num_tokens}),
            captions_per_image=captions_per_image,
        )
        arriving = batch.images_IHWC.to(device, copy=True)  # a step has the next pixels there while it computes
        outputs = [tensor for tensor in forward(batch.to(device)) if tensor.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        del arriving

    return run


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


@torch.no_grad()
def run_on_meta(module: nn.Module, *args: Tensor) -> Any:
    """The output of a module, not yet distributed, for tensors on the meta device; parameters and buffers stay.

    Batch statistics in training need at least two samples.
    """
    tensors: Iterator[tuple[str, Tensor]] = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: tensor.to("meta") for name, tensor in tensors}, args)
