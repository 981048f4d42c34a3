"""Asks the kernel to end a process whose parent is gone; nothing else would end it."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent_end_signal: signal.Signals) -> None:
    """Makes Linux send a signal to this process when the thread that started it ends; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, parent_end_signal)
