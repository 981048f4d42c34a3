"""Memory that loader processes fill with images and the training process reads, without a copy.

An image is written once, into its row of the rank's batch. The memory is anonymous and shared, not a file in /dev/shm,
which is small in containers. A buffer is lent to the batch that it holds and is free again when nothing refers to that
batch's images.
"""

import logging
import mmap
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)


class ImageBuffers:
    """Buffers for whole batches of images of `shape` (I, H, W, 3), shared with processes that are forked later.

    With `pin_memory` their pages are locked, so that copies to a CUDA device run beside the host's work.
    """

    def __init__(self, num_buffers: int, shape: tuple[int, int, int, int], *, pin_memory: bool = False) -> None:
        size = int(np.prod(shape))
        self._memory = mmap.mmap(-1, max(1, num_buffers * size))  # no images, no bytes: of those there is no mapping
        flat = np.frombuffer(self._memory, dtype=np.uint8)[: num_buffers * size]
        self._images = flat.reshape(num_buffers, *shape)
        self._pin_memory = pin_memory and size > 0 and _lock_pages(self._images)
        self._free = deque(range(num_buffers))
        self._returned: deque[tuple[int, torch.cuda.Event | None]] = deque()

    def take(self) -> int | None:
        """The number of a free buffer; None if all are filled, lent or still being copied from."""
        while self._returned and ((copied := self._returned[0][1]) is None or copied.query()):
            self._free.append(self._returned.popleft()[0])
        return self._free.popleft() if self._free else None

    def rows(self, buffer: int, rows: slice) -> Tensor:
        """Rows of a buffer to write into, uint8, in any process."""
        return torch.from_numpy(self._images[buffer, rows])

    def lend(self, buffer: int) -> Tensor:
        """The whole buffer, uint8 (I, H, W, 3); it is free again when this tensor and all its views are gone."""
        view = self._images[buffer]  # a new object each time, which the tensor's storage keeps alive
        weakref.finalize(view, self._give_back, buffer).atexit = False
        return torch.from_numpy(view)

    def _give_back(self, buffer: int) -> None:
        copied = None
        if self._pin_memory:  # copies to the device were queued before the last reference went, and may still run; if
            # another stream has them (`clipx.train.uploads`), this one waits for it
            copied = torch.cuda.Event()
            copied.record()
        self._returned.append((buffer, copied))


def _lock_pages(images: np.ndarray) -> bool:
    """Registers memory with CUDA until nothing refers to it; whether the machine lets it."""
    address = images.ctypes.data
    runtime = torch.cuda.cudart()
    problem = int(runtime.cudaHostRegister(address, images.nbytes, 0))
    if problem:
        log.warning(
            "%.1f GB of image buffers cannot be locked for CUDA (%s), so copies to the GPU hold up the host; see what "
            "`ulimit -l` or the container allows",
            images.nbytes / 1e9,
            torch.cuda.CudaError(problem),
        )
        with suppress(RuntimeError):  # CUDA keeps the refusal as its last error, for the next kernel to trip over
            torch.zeros(1, device="cuda")
        return False
    weakref.finalize(images, runtime.cudaHostUnregister, address).atexit = False
    return True
