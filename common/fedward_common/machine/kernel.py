"""System calls that Python 3.11 has no name for. Failures are ``OSError``; who calls says what they mean.

Example:
    >>> prctl(39, 0, 0, 0, 0) in (0, 1)  # PR_GET_NO_NEW_PRIVS
    True
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from fedward_common.errors import PrivacyError

__all__ = ["no_new_privileges", "only_one_thread", "prctl", "syscall", "unshare"]

PR_SET_NO_NEW_PRIVS = 38
LIBC = ctypes.CDLL(None, use_errno=True)
TASKS = Path("/proc/self/task")


def syscall(number: int, *arguments: int | bytes) -> int:
    """Call the kernel by number; addresses are plain integers, or bytes that the kernel reads.

    Raises:
      OSError: the kernel says no, or this is no Linux.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only on Linux")
    LIBC.syscall.restype = ctypes.c_long
    return _checked(LIBC.syscall(ctypes.c_long(number), *map(_word, arguments)))


def prctl(option: int, *arguments: int) -> int:
    """Ask or set a property of the calling thread.

    Raises:
      OSError: the kernel says no, or this is no Linux.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only on Linux")
    return _checked(LIBC.prctl(option, *(ctypes.c_ulong(word) for word in arguments)))


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name (``os.unshare`` from Python 3.12 on).

    Raises:
      OSError: the kernel says no, or this is no Linux.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only on Linux")
    _checked(LIBC.unshare(flags))


def no_new_privileges() -> None:
    """Let no program that this process starts gain rights; the kernel asks for it before any filter.

    Raises:
      OSError: the kernel says no, or this is no Linux.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def only_one_thread(what: str) -> None:
    """Return if the calling thread is the only one: what the kernel does for a thread would leave the others out.

    Raises:
      PrivacyError: there are more, or it cannot be told.
    """
    try:
        threads = len(list(TASKS.iterdir()))
    except OSError:
        raise PrivacyError(
            f"{what} needs /proc, to see this process's threads", hint="mount /proc; a container has it by default"
        ) from None
    if threads != 1:
        raise PrivacyError(
            f"{what} comes too late: this process has {threads} threads",
            hint="call it first, before numpy, torch or grpc are imported: they start threads",
        )


def _word(argument: int | bytes) -> ctypes.c_long | ctypes.c_char_p:
    return ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_long(argument)


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
