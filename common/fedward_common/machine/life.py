"""What a child process is, and one life of it: from start to end, with whatever it left behind.

Example:
    >>> child = Child(name="courier", argv=("flower-supernode", "--isolation", "process"), pattern=FLOWER_EXIT)
    >>> child.waits
    {}
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedward_common.checks import positive
from fedward_common.machine.exec import command
from fedward_common.machine.namespaces import Network

__all__ = ["FLOWER_EXIT", "Child", "Life"]

FLOWER_EXIT = re.compile(rb"Exit Code: (\d+)")
"""Flower's programs end with status 1 whatever happened, and write their exit code into the log."""

LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
PRIVATE = 0o600
TAIL = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Child:
    """A program that is to run for as long as its supervisor does.

    ``ready`` and ``watch`` are called in the supervisor's only thread, so each must answer, or give up, quickly. A
    descriptor in ``pass_fds`` is passed again at every restart: a memfd read with ``os.pread`` serves every life, a
    pipe only the first.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    """The whole environment; None is the supervisor's own."""
    pass_fds: tuple[int, ...] = ()
    network: Network = Network.SHARED
    log: Path | None = None
    """Takes what the child writes to stdout and stderr; None leaves the supervisor's own."""
    log_bytes: int = 10_000_000
    """At this size the log is moved to LOG.1, which is overwritten. Where the disk takes no copy, it is cut anyway."""
    ready: Callable[[], bool] | None = None
    """Whether the next child may start; None is at once."""
    ready_limit_s: float = 60.0
    """A child that is not ready by then is ended and started again."""
    watch: Callable[[], str | None] | None = None
    """A probe of a running child: a text says why it must be started again."""
    watch_every_s: float = 10.0
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    waits: Mapping[int, float] = field(default_factory=dict)
    """Exit codes with a wait of their own, in seconds, which does not grow."""
    fatal_codes: frozenset[int] = frozenset((2, 126, 127))
    """Exit codes that a restart cannot mend: wrong configuration, and no such program."""
    critical: bool = True
    """Whether a fatal code ends the supervisor; otherwise only this child stays down."""
    pattern: re.Pattern[bytes] | None = None
    """Finds an exit code in what this life wrote to the log, in its first group; the last one counts."""

    def __post_init__(self) -> None:
        """Check the times."""
        for name in ("ready_limit_s", "watch_every_s", "grace_s", "log_bytes"):
            positive(f"{self.name}.{name}", getattr(self, name))


class Life:
    """One life of a child, in a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone."""

    def __init__(self, child: Child) -> None:
        """Start it.

        Guarantees:
          - It dies with the process that started it, however that ends.
          - It has no network beyond what ``child.network`` says.
          - Only the descriptors in ``child.pass_fds`` and the log are open in it.

        Raises:
          OSError: no process could be made, or the log cannot be opened.
        """
        self._child = child
        self._log = None if child.log is None else os.open(child.log, LOG_FLAGS, PRIVATE)
        self._written = 0 if self._log is None else os.fstat(self._log).st_size
        try:
            self._process = subprocess.Popen(  # noqa: S603 - argv is the caller's, and there is no shell
                command(child.argv, network=child.network),
                env=child.env,
                pass_fds=child.pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                process_group=0,
            )
        except BaseException:
            self._close()
            raise
        self.pid = self._process.pid

    def ended(self) -> int | None:
        """The exit code once it has ended, None before; minus the signal for a death by signal.

        Guarantees:
          - When it has ended, so has all that it left in its process group.
        """
        self._bound_log()
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.kill()  # before it is reaped: until then its number cannot belong to another group
        status = self._process.wait()
        code = self._logged_code()
        self._close()
        return status if code is None else code

    def ask(self) -> None:
        """Ask it to end, by SIGTERM. Its own children are its own business."""
        os.kill(self.pid, signal.SIGTERM)  # Popen.send_signal might reap it; unreaped, the number is its own

    def kill(self) -> None:
        """End it and its process group, by SIGKILL."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _bound_log(self) -> None:
        if self._log is None or self._child.log is None or os.fstat(self._log).st_size < self._child.log_bytes:
            return
        # copied and cut, since the child keeps writing to the same open file, always at its end
        with contextlib.suppress(OSError):  # on a full disk room matters more than old lines
            shutil.copy(self._child.log, self._child.log.with_name(f"{self._child.log.name}.1"))
        os.ftruncate(self._log, 0)
        self._written = 0

    def _logged_code(self) -> int | None:
        if self._child.pattern is None or self._child.log is None:
            return None
        with self._child.log.open("rb") as file:
            file.seek(max(self._written, os.fstat(file.fileno()).st_size - TAIL))
            found = self._child.pattern.findall(file.read())
        return int(found[-1]) if found else None

    def _close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None
