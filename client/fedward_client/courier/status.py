"""What the courier says of itself, in one small file: for a person, and for the supervisor that restarts a deaf one.

Being alive is not enough: a process can run and hear nothing. So the loop itself leaves marks, on the machine's
monotonic clock, which no change of the time of day moves. This module knows no network.

Example:
    >>> status = Status(server="fed.example.org:443", version="1", pid=7, since=0.0, alive_at=100.0, contact_at=100.0)
    >>> deaf(status, now=150.0) is None
    True
    >>> deaf(status, now=300.0)
    'its loop has stood still for 200 s'
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from fedward_client.courier.faults import Fault, State

__all__ = ["Board", "Status", "Wall", "deaf", "our_version"]

SCHEMA = 1
STUCK_S = 120.0
SILENT_S = 300.0
WRITE_EACH_S = 5.0  # a mark that is at most this old
PRIVATE = 0o600
LATEST = 1e11  # seconds
LONGEST_TEXT = 1000


class Wall(StrEnum):
    """What keeps a courier that was taken over away from the rest of its account (``walls``)."""

    VIEW = "view"
    """A file tree of its own: what it does not need does not exist."""

    LANDLOCK = "landlock"
    """No other file, port, signal or process's memory."""

    SECCOMP = "seccomp"
    """No change of a file's mode or owner, no namespace, no mount."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A courier at one moment. Times with ``_at`` are on the machine's monotonic clock, the others seconds of UTC."""

    state: State = State.CONNECTING
    since: float
    last_contact: float | None = None
    reason: str = ""
    hint: str = ""
    server: str
    version: str
    pid: int
    confined: tuple[Wall, ...] = ()
    """The walls that stand."""
    at_door: bool = False
    """The loop waits for the trainer: it may stand still for as long as training takes."""
    alive_at: float
    contact_at: float

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Read ``to_json`` back; None for anything else, since a status is news and never evidence."""
        try:
            row: dict[str, Any] = json.loads(text)
            if row.pop("schema") != SCHEMA:
                return None
            walls = tuple(map(Wall, row.get("confined", ())))
            status = cls(**(row | {"state": State(row["state"]), "confined": walls}))
            return status if status._is_sane() else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _is_sane(self) -> bool:
        # whoever took a courier over may write anything here; a reader must not fall over it
        times = (self.since, self.alive_at, self.contact_at, self.last_contact or 0.0)
        texts = (self.reason, self.hint, self.server, self.version)
        return all(isinstance(time, int | float) and 0 <= time < LATEST for time in times) and all(
            isinstance(text, str) and len(text) <= LONGEST_TEXT for text in texts
        )


def our_version() -> str:
    """Of the fedward that runs here."""
    try:
        return version("fedward")
    except PackageNotFoundError:
        return "unknown"


def deaf(status: Status, now: float) -> str | None:
    """Why the supervisor must restart this courier, or None.

    Args:
      status: of the process that runs now (compare ``pid``); an older one says nothing.
      now: ``time.monotonic()``.

    Guarantees:
      - A loop that stood still for 120 s outside the Door is deaf; inside the Door it may wait.
      - A courier that believes to be connected and had no exchange for 5 minutes, heartbeats included, is deaf.
      - A courier that knows that the operator is away, or that it is refused, is not deaf: a restart would not help.
    """
    if status.state is State.STOPPED or status.alive_at > now:
        return None
    if not status.at_door and now - status.alive_at > STUCK_S:
        return f"its loop has stood still for {now - status.alive_at:.0f} s"
    if status.state is State.CONNECTED and now - status.contact_at > SILENT_S:
        return f"it says connected and has heard nothing for {now - status.contact_at:.0f} s"
    return None


class Board:
    """Keeps the status file true. The loop and the heartbeats both write to it.

    Guarantees:
      - A change of state is in the file at once, a mark at most 5 s later than the next one.
      - A reader sees a whole status, never half of one.
      - A disk that refuses does not stop the courier.
    """

    def __init__(self, path: Path, first: Status, ticks: Callable[[], float] = time.monotonic) -> None:
        """Write the first status."""
        self._path, self._now, self._ticks = path, first, ticks
        self._lock = threading.Lock()
        self._written = float("-inf")
        self._update()

    @property
    def status(self) -> Status:
        """As it is now, marks included."""
        return self._now

    def alive(self) -> None:
        """The loop moves."""
        self._update(alive_at=self._ticks())

    def connected(self, hint: str = "") -> None:
        """The loop had an exchange that went well."""
        self._update(State.CONNECTED, hint=hint, alive_at=self._ticks(), **self._contact())

    def fault(self, fault: Fault) -> None:
        """The loop had a fault."""
        self._update(fault.state, reason=str(fault), hint=fault.hint, alive_at=self._ticks())

    def beat(self) -> None:
        """A heartbeat went well. While the loop is inside the Door, this is what the state goes by."""
        self._update(State.CONNECTED if self._now.at_door else None, **self._contact())

    def missed(self, fault: Fault) -> None:
        """A heartbeat had a fault. It counts while the loop is inside the Door and cannot see for itself."""
        if self._now.at_door:
            self._update(fault.state, reason=str(fault), hint=fault.hint)

    @contextmanager
    def door(self) -> Iterator[None]:
        """While the loop waits for the trainer."""
        self._update(self._now.state, at_door=True, alive_at=self._ticks())
        try:
            yield
        finally:
            self._update(self._now.state, at_door=False, alive_at=self._ticks())

    def stopped(self) -> None:
        """The courier ends."""
        self._update(State.STOPPED, hint="", reason="")

    def _contact(self) -> dict[str, float]:
        return {"contact_at": self._ticks(), "last_contact": time.time()}

    def _update(self, state: State | None = None, **changes: Any) -> None:
        with self._lock:
            before = self._now
            if before.state is State.STOPPED:
                return
            told = {"reason": "", "hint": ""} if state else {}
            since = {"since": time.time()} if state and state is not before.state else {}
            self._now = replace(before, **{**told, **since, **changes, "state": state or before.state})
            if _said(before) != _said(self._now) or self._ticks() - self._written >= WRITE_EACH_S:
                self._write()

    def _write(self) -> None:
        draft = self._path.with_name(f".{self._path.name}.draft")
        with contextlib.suppress(OSError):
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._now.to_json())
            os.replace(draft, self._path)
        self._written = self._ticks()


MARKS = {"alive_at", "contact_at", "last_contact"}
SAID = [field.name for field in fields(Status) if field.name not in MARKS]


def _said(status: Status) -> list[object]:
    return [getattr(status, name) for name in SAID]
