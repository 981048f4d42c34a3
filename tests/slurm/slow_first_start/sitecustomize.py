"""On PYTHONPATH: at the first start of a Slurm job every step of `clipx train` takes STEP_SECONDS longer."""

import os
import sys
import time
from typing import Any

if (
    "train" in sys.orig_argv
    and "torch.distributed.run" not in sys.orig_argv
    and "SLURM_RESTART_COUNT" not in os.environ
):
    from clipx.train.step import Stepper

    call = Stepper.__call__

    def slow(self: Stepper, *arguments: Any, **options: Any) -> Any:
        time.sleep(float(os.environ["STEP_SECONDS"]))
        return call(self, *arguments, **options)

    Stepper.__call__ = slow  # type: ignore[method-assign]
