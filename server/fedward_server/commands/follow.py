"""What a run does while somebody looks: its status and its diary, read again and again. Nothing here touches a run.

Example:
    >>> round_line({"round": 3, "stage": "head", "attempt": 1, "cohort": 3, "replied": 2, "seconds": 4.25}, rounds=60)
    'round 3/60  head  2 of 3 sites  4.2 s'
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedward_common.report import counted
from fedward_server.deployment.runs import RunFolder, RunState, RunStatus

__all__ = ["Kind", "Seen", "Tail", "follow", "read_rows", "round_line", "status_line"]

POLL_S = 0.5


class Kind(StrEnum):
    """Why a file that is read on is suddenly another one."""

    DIARY = "diary"
    """A resumed run dropped the rounds that it will do again: what stands before the offset was read."""

    LOG = "log"
    """It was full and moved aside: all of it is new."""


@dataclass
class Tail:
    """A file of lines that grows: each call gives what is new since the last. It may be replaced by a shorter one.

    Guarantees:
      - No line of a log is lost or given twice when it is moved aside, once, between two calls.
    """

    path: Path
    kind: Kind = Kind.DIARY
    _offset: int = field(default=0, init=False)
    _inode: int = field(default=0, init=False)

    def lines(self) -> list[str]:
        """The whole lines that were added."""
        try:
            with self.path.open("rb") as file:
                left, status = b"", os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    left = self._moved()
                    self._offset = 0 if self.kind is Kind.LOG else min(self._offset, status.st_size)
                    self._inode = status.st_ino
                file.seek(self._offset)
                fresh, _, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._offset += len(fresh) + 1 if fresh else 0
        whole = b"\n".join(part for part in (left, fresh) if part)
        return whole.decode("utf-8", "replace").split("\n") if whole else []

    def _moved(self) -> bytes:
        """What was added to a log between the last look and its being moved aside."""
        before = self.path.with_name(f"{self.path.name}.1")
        with suppress(OSError), before.open("rb") as file:
            if self.kind is Kind.LOG and os.fstat(file.fileno()).st_ino == self._inode:
                file.seek(self._offset)
                return file.read().rstrip(b"\n")
        return b""

    def rows(self) -> list[dict[str, Any]]:
        """The JSON objects among the lines that were added."""
        return list(_objects(self.lines()))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One look at a run: how it stands, and what its diary says since the last look."""

    status: RunStatus
    rounds: list[dict[str, Any]]


def follow(run: RunFolder, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Seen]:
    """Look at a run until nothing more happens by itself.

    Args:
      run: the run.
      sleep: waits between two looks.

    Yields:
      A look whenever something is new; the last one is of a run that is over.
    """
    diary, before = Tail(run.rounds), None
    while True:
        status = run.read_status()  # before the diary: a run that is over has written all of it
        rows = diary.rows()
        if rows or status != before:
            yield Seen(status=status, rounds=rows)
        if status.state.is_over:
            return
        before = status
        sleep(POLL_S)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every JSON object of a file of lines."""
    return Tail(path).rows()


def status_line(status: RunStatus) -> str:
    """How a run stands, in one line."""
    parts = [status.state.value]
    if status.rounds:
        parts.append(f"round {status.round}/{status.rounds}")
    if status.state is RunState.RUNNING and status.stage:
        parts.append(status.stage)
    if status.attempt > 1:
        parts.append(f"attempt {status.attempt}")
    if not status.state.is_over and not status.reason:
        parts.append(counted(status.sites_connected, "site connected", "sites connected"))
    if status.starts > 1:
        parts.append(f"started {status.starts} times")
    return "  ".join([*parts, *([status.reason] if status.reason else [])])


def round_line(row: Mapping[str, Any], *, rounds: int) -> str:
    """One attempt at a round, in one line."""
    attempt = int(row.get("attempt", 1))
    parts = [f"round {row.get('round')}/{rounds}" if rounds else f"round {row.get('round')}", str(row.get("stage", ""))]
    parts += [f"attempt {attempt}"] if attempt > 1 else []
    parts.append(f"{row.get('replied', 0)} of {row.get('cohort', 0)} sites")
    parts += [f"{code} {number}" for code, number in _counts(row)]
    parts += ["abandoned"] if row.get("abandoned") else []
    parts += [f"{name} {value:.4g}" for name, value in _measures(row)]
    parts.append(f"{float(row.get('seconds', 0.0)):.1f} s")
    return "  ".join(part for part in parts if part)


def _counts(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    both = [*(row.get("refused") or {}).items(), *(row.get("dropped") or {}).items()]
    return [(str(code), int(number)) for code, number in both]


def _measures(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    own = [(name, value) for name, value in (row.get("evaluation") or {}).items()]
    sites = [(f"sites.{name}", value) for name, value in (row.get("sites") or {}).items() if name != "sites"]
    return [(name, float(value)) for name, value in [*own, *sites] if isinstance(value, int | float)]


def _objects(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
