"""Python imports this first where its folder is on PYTHONPATH: faults for ranks that a launcher starts."""

import os

if "RANK" in os.environ and "FAULTS" in os.environ:
    from faults.injections import apply

    apply()
