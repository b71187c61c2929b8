"""One process at a time: a lock that names its holder. The lock decides who runs; the number in the file only helps.

A number that a crash left behind is never believed, since the kernel drops the lock with the process.

Example:
    >>> import tempfile
    >>> lock = Path(tempfile.mkdtemp()) / "pid"
    >>> with hold(lock):
    ...     holder(lock) == os.getpid()
    True
    >>> holder(lock) is None
    True
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from fedward_common.errors import InputError, OutputError

__all__ = ["Stop", "hold", "holder", "stop"]

FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC  # a child that inherited it would keep the lock
PRIVATE = 0o600
ATTEMPTS, PAUSE_S = 10, 0.02  # holder() takes the lock for a moment to see whether it is free
UNKNOWN = -1


class Stop(StrEnum):
    """What became of a request to stop."""

    NOT_RUNNING = "not running"
    """Nobody held the lock."""

    ENDED = "ended"
    """The holder got SIGTERM and gave the lock up."""

    STILL_RUNNING = "still running"
    """The holder got SIGTERM and had the lock when the time was over."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Be the one process that holds this lock, with its number in the file, until the block ends.

    Guarantees:
      - At any time one process holds it; the next one is told the number of the first.
      - It is free again once the holder has ended, however it ended.

    Raises:
      InputError: another process holds it.
      OutputError: the file cannot be made or written.
    """
    descriptor = _open(path, FLAGS | os.O_CREAT)
    try:
        _lock(descriptor, path)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}", hint="check the free disk space") from None
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would wait for a child that is just being started
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """The number of the process that holds the lock, None when nobody does.

    Guarantees:
      - A number that a dead process left in the file is not reported, even if another process has it now.

    Raises:
      OutputError: this account cannot open the file, or cannot see whether it is there.
    """
    with contextlib.suppress(PermissionError):  # opening it says more
        if not path.exists():
            return None
    descriptor = _open(path, FLAGS)
    try:
        return _number(descriptor) if _is_held(descriptor) else None
    finally:
        os.close(descriptor)


def stop(path: Path, grace_s: float) -> Stop:
    """Ask the holder to end, by SIGTERM, and wait for it.

    Args:
      path: the lock.
      grace_s: how long to wait, in seconds. Nothing harder than SIGTERM is ever sent.

    Raises:
      InputError: the holder belongs to someone else, or cannot be seen from here.
    """
    end = time.monotonic() + grace_s
    number = holder(path)
    while number is not None and not _ask(path, number):
        number = holder(path)  # it changed between two looks
    if number is None:
        return Stop.NOT_RUNNING
    while holder(path) == number:
        if time.monotonic() >= end:
            return Stop.STILL_RUNNING
        time.sleep(PAUSE_S)
    return Stop.ENDED


def _ask(path: Path, number: int) -> bool:
    """Send SIGTERM to exactly the process that holds the lock; False when the holder changed meanwhile."""
    try:
        handle = os.pidfd_open(number)
    except OSError:
        if holder(path) != number:
            return False
        raise InputError(
            f"whoever holds {path} is no process that can be seen from here",
            hint="stop it where it was started, for instance in its container",
        ) from None
    try:
        # Asked again with the process held fast: the number was its own, and not one from before the lock was taken.
        if holder(path) != number:
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise InputError(
            f"process {number} belongs to another account", hint="stop it as the account that started it"
        ) from None
    finally:
        os.close(handle)
    return True


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, PRIVATE)
    except OSError as error:
        raise OutputError(
            f"cannot open {path}: {error.strerror}", hint="run as the account that owns the folder; no symbolic link"
        ) from None


def _lock(descriptor: int, path: Path) -> None:
    for _ in range(ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(PAUSE_S)
    raise InputError(
        f"process {_number(descriptor)} is running already, and holds {path}",
        hint="stop that one first",
    )


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _number(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else UNKNOWN
