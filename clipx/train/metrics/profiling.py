"""A trace of a few steps by torch's profiler, on request: `track.profile_step`."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

log = logging.getLogger(__name__)


class Profiler:
    """Records `num_steps` steps from `first_step` (from 1; 0: none) on and writes a trace that Perfetto opens.

    A start of the run, or a phase of it, that makes only some of these steps records those. The trace,
    `step-00000010.json.gz`, is named by the first step in it.
    """

    def __init__(self, folder: Path, *, first_step: int, num_steps: int) -> None:
        self._folder = folder
        self._steps = range(first_step, first_step + num_steps) if first_step else range(0)
        self._running: profile | None = None
        self._recorded = range(0)

    def before_step(self, step: int) -> None:
        """Starts, goes on with or ends the recording; call it before each step with its number, from 1."""
        if step not in self._steps:
            self.close()
        elif self._running is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            # with a schedule it marks every step, as ProfilerStep#10
            self._running = profile(activities=activities, schedule=lambda _: ProfilerAction.RECORD)
            self._running.step_num = step
            self._running.start()
            self._recorded = range(step, step + 1)
        else:
            self._running.step()
            self._recorded = range(self._recorded.start, step + 1)

    def close(self) -> None:
        """Ends the recording, if there is one, and writes it; a disk that fails costs the trace and not the run."""
        if self._running is None:
            return
        recording, self._running = self._running, None
        recording.stop()
        first, last = self._recorded[0], self._recorded[-1]
        path = self._folder / f"step-{first:08d}.json.gz"
        try:
            self._folder.mkdir(exist_ok=True)
            recording.export_chrome_trace(str(path))
            log.info("profiled steps %d to %d: %s", first, last, path)
        except (OSError, RuntimeError) as error:
            log.error("cannot write the trace %s (%s); the run goes on", path, error)
