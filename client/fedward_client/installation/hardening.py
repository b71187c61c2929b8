"""What the process that sees data does to itself before it sees any. Hardening: no guarantee rests on it alone.

Example:
    >>> without_core_dumps()
    >>> resource.getrlimit(resource.RLIMIT_CORE)
    (0, 0)
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

__all__ = ["without_core_dumps"]

PR_SET_DUMPABLE = 4


def without_core_dumps() -> None:
    """Let no crash of this process write its memory to a disk, and no other process of this account read it.

    Limits core files to nothing, also for children. On Linux it also marks the process as not dumpable, which holds for
    core handlers that ignore the limit, and for ptrace and /proc/PID/mem by the same account.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
