"""The number of loader processes of a rank (`data.workers: auto`), from the cost of an image and the number of cores.

A rank gathers the `Cores` of all ranks to know its share of its machine, measures the cost of reading an image, and
chooses. The data order does not depend on the choice.
"""

from collections.abc import Callable
from math import ceil
from time import monotonic, process_time
from typing import NamedTuple

_MAX_IMAGES, _MAX_S = 64, 2.0
# The cost is measured with a core to itself: with all busy, hyper-threads share units and caches, and images vary.
_HEADROOM = 1.25


class Choice(NamedTuple):
    """A number of loader processes."""

    workers: int
    """0 means loading in the training process."""
    why: str
    """One sentence with the figures."""


def measure_image(read: Callable[[int], object]) -> float:
    """Mean CPU seconds of this process to load an image, measured on at most 64 images and for about 2 seconds.

    `read` works like a loader process; it is called with 0, 1, ... The first call, which opens shards and fills caches,
    is not measured.
    """
    import torch  # here, so that importing this module stays fast

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same as in a loader process
    try:
        read(0)
        began, cpu_before = monotonic(), process_time()
        number = 0
        while number < _MAX_IMAGES and monotonic() - began < _MAX_S:
            number += 1
            read(number)
        return (process_time() - cpu_before) / number
    finally:
        torch.set_num_threads(threads)


def choose_workers(image_s: float, *, cores: float, pace: float | None, slots: int, on_cpu: bool) -> Choice:
    """The fewest loader processes that keep up, with one core left for training.

    Args:
        image_s: CPU seconds to load an image.
        cores: this rank's share of its machine.
        pace: maximum images per second that this rank can use; None if unknown.
        slots: images of this rank in a batch; more processes than images are useless.
        on_cpu: whether training computes on these cores too. It then takes far longer for an image than loading does,
            and a second loader process would only slow it down.
    """
    cost = f"a picture takes {1000 * image_s:.2f} ms of CPU"
    free = min(int(cores) - 1, slots)
    if free < 1:
        return Choice(0, f"data.workers: 0, in the training process: {cost}, and this rank has {cores:.3g} cores")
    if on_cpu:
        return Choice(1, f"data.workers: 1, since training takes the same {cores:.3g} cores: {cost}")
    if pace is None:
        return Choice(
            free, f"data.workers: {free}, all that can be spared: {cost}, and the pace of training is unknown"
        )
    wanted = max(1, ceil(pace * image_s * _HEADROOM))
    needed = f"{cost}, and this rank uses at most {pace:,.0f} pictures/s"
    if wanted <= free:
        return Choice(wanted, f"data.workers: {wanted}, the fewest that keep up: {needed}")
    loaded = free / (image_s * _HEADROOM)
    return Choice(
        free,
        f"data.workers: {free}, all that can be spared of {cores:.3g} cores, too few to keep up: {needed}, of which "
        f"they load some {loaded:,.0f}",
    )
