"""Copies from the host to the device, which the host does not wait for: small tensors together, pixels on their own.

Shape suffixes: I images, H x W pixels, C channels (3).
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; at least those of the largest element, as a tensor of it may not begin elsewhere


class Uploads:
    """The copies to one device; where that is the CPU, tensors stay what they are.

    Pixels are most of a batch, hundreds of megabytes. They arrive in a buffer of their own, by a stream of their own:
    those of one piece while the device computes on the piece before, also across steps, as the host is ahead by one.
    The stream of the computation then copies them, at the speed of the device's memory, into an ordinary tensor. So
    nobody but this class ever sees the buffer, and whoever keeps the tensor keeps its values.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)

    def together(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors on the device, by one copy: each is a view of the same memory there.

        They are put together in page-locked memory, which torch's allocator lends and takes back when the copy is done.
        What is on the device already stays what it is.
        """
        waiting = [tensor for tensor in tensors if self._stream is not None and tensor.device.type == "cpu"]
        if not waiting:
            return list(tensors)
        sent = iter(unpacked(packed(waiting, pin_memory=True).to(self._device, non_blocking=True), waiting))
        return [next(sent) if tensor.device.type == "cpu" else tensor for tensor in tensors]

    def pixels(self, images_IHWC: Tensor) -> Tensor:
        """The uint8 images on the device, a new tensor unless they are there already.

        The copy is asynchronous if they lie in page-locked memory.
        """
        if self._stream is None or images_IHWC.device.type != "cpu":
            return images_IHWC
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            if len(self._buffer) < images_IHWC.numel():
                self._buffer = torch.empty(images_IHWC.numel(), dtype=torch.uint8, device=self._device)
            arrived_IHWC = _view(self._buffer, images_IHWC).copy_(images_IHWC, non_blocking=True)
        computing.wait_stream(self._stream)
        own_IHWC = arrived_IHWC.clone()
        self._stream.wait_stream(computing)  # the buffer is free from here on, before anything computes on the clone
        return own_IHWC


def packed(tensors: Sequence[Tensor], *, pin_memory: bool) -> Tensor:
    """The bytes of tensors on the host one after the other, uint8 (sum of their sizes, rounded up)."""
    places = _places(tensors)
    memory = torch.empty(places[-1].stop, dtype=torch.uint8, pin_memory=pin_memory)
    for tensor, place in zip(tensors, places, strict=True):
        _view(memory[place], tensor).copy_(tensor)
    return memory


def unpacked(memory: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `packed` has put together, with the shapes and dtypes of the tensors.

    For autograd they are tensors of their own (`data`): a change of one in place is no change of the others.
    """
    return [_view(memory[place], tensor).data for tensor, place in zip(tensors, _places(tensors), strict=True)]


def _places(tensors: Sequence[Tensor]) -> list[slice]:
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def _view(memory: Tensor, like: Tensor) -> Tensor:
    """The first of the bytes as a tensor of the dtype and shape of another."""
    return memory[: like.nbytes].view(like.dtype).view(like.shape)
