"""How long the sections of a step take, on the device's own clock; nothing here waits for the device."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Measures the sections of one step.

    On CUDA, it records events in the stream; the time between two of them is what the device needed. On other devices
    it takes the host's time, since there the host computes.

    Args:
        device: the device on which the step computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, section: str) -> Iterator[None]:
        """Adds the time within the block to `section`; sections may repeat and nest."""
        if self._cuda:
            start = self._record()
            yield
            self._events.append((section, start, self._record()))
            return
        began = time.perf_counter()
        yield
        self._seconds[section] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by section. The device must have finished the step."""
        total = self._seconds.copy()
        for section, start, end in self._events:
            total[section] += start.elapsed_time(end) / 1000
        return dict(total)

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
