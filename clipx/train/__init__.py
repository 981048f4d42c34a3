"""Training: from a config to a finished run. A module imports only from the lines below its own.

trainer                 the loop: steps, saves, evaluations, stops and rollbacks; status.json says how it ended
saving, evaluations     what happens between steps
run_folder              whose files lie in the run folder, and how they stand when the steps begin
build                   config to `Run`: data by build_data, the step by build_stepper (step, accumulate, micro_batch)
resume                  the checkpoint that a run goes on from, and what of its config has changed since
loss_spikes             the detector and the rollback
liveness, metrics       watchdog, stops, lock, status; metrics.jsonl, trackers, warnings, bad samples
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.config.schema import JobConfig
    from clipx.objectives.objective import BuildObjective
    from clipx.train.liveness.status import Status


class _Training(ModuleType):
    """This package, which is also the function `clipx.train`: Python sets a package's name in the one above it."""

    def __call__(self, config: "JobConfig", *, objective: "BuildObjective | None" = None) -> "Status":
        """Does what `clipx.train.trainer.run` does."""
        from clipx.config.schema import JobConfig

        if not isinstance(config, JobConfig):
            raise InputError(
                f"train takes a RunConfig or a FitConfig, not {type(config).__name__}; clipx.load_config makes one"
            )
        from clipx.train.trainer import run

        return run(config) if objective is None else run(config, objective=objective)


sys.modules[__name__].__class__ = _Training
