"""Ties a process to the one that started it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie(parent: int, number: signal.Signals) -> bool:
    """Has the kernel send this process a signal when its parent dies; False if the parent is dead already.

    Only on Linux: elsewhere the process notices when its connection to the parent ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent
