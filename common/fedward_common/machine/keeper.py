"""One child, kept alive: when to start it, when to start it again, when to give up. Knows nothing of the others.

A state machine that is asked again and again; it never waits itself.

Example:
    >>> [Backoff().wait(failures) for failures in (0, 1, 2, 20)]
    [0.5, 1.0, 2.0, 60.0]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from fedward_common.checks import positive
from fedward_common.machine.life import Child, Life

__all__ = ["Backoff", "Keeper", "State"]

MOST_DOUBLINGS = 32


class State(StrEnum):
    """Where a child is."""

    WAITING = "waiting"
    """For a former child to be ready, or for its time to start again."""

    STARTING = "starting"
    """It runs and is not ready yet."""

    RUNNING = "running"
    """It runs and is ready."""

    STOPPING = "stopping"
    """It was asked to end."""

    FAILED = "failed"
    """It ended with a fatal code and stays down."""

    STOPPED = "stopped"
    """It ended because its supervisor ends."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long to wait before a start, in seconds."""

    first_s: float = 0.5
    most_s: float = 60.0
    reset_after_s: float = 60.0
    """A life of at least this length clears what was before."""

    def __post_init__(self) -> None:
        """Check the times."""
        for name in ("first_s", "most_s", "reset_after_s"):
            positive(f"backoff.{name}", getattr(self, name))

    def wait(self, failures: int) -> float:
        """The wait after that many failures in a row before this one."""
        return min(self.first_s * 2.0 ** min(failures, MOST_DOUBLINGS), self.most_s)


class Keeper:
    """Keeps one child alive."""

    def __init__(
        self,
        child: Child,
        *,
        backoff: Backoff,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Child], Life] = Life,
    ) -> None:
        """Start nothing yet."""
        self.child = child
        self.state = State.WAITING
        self.restarts = 0
        self.last_code: int | None = None
        self.reason: str | None = None
        self._backoff, self._clock, self._start = backoff, clock, start
        self._life: Life | None = None
        self._failures = 0
        self._closing = False
        self._due = self._born = self._asked = self._probed = clock()
        self._since = _now()

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self._life is not None

    @property
    def fatal(self) -> bool:
        """Whether the supervisor must end because of this child."""
        return self.state is State.FAILED and self.child.critical

    def tick(self, *, may_start: bool) -> None:
        """Look at the child and do what is due.

        Args:
          may_start: whether all that it needs is ready.
        """
        if self._life is None:
            if may_start and self.state is State.WAITING and self._clock() >= self._due:
                self._begin()
        elif (code := self._life.ended()) is not None:
            self._ended(code)
        elif self.state is State.STARTING:
            self._wait_until_ready()
        elif self.state is State.RUNNING:
            self._probe()
        elif self._clock() >= self._asked + self.child.grace_s:
            self._life.kill()

    def close(self) -> None:
        """Ask it to end, for good."""
        self._closing = True
        if self._life is None:
            self._enter(State.FAILED if self.state is State.FAILED else State.STOPPED)
        elif self.state is not State.STOPPING:
            self._ask("the supervisor ends")

    def kill(self) -> None:
        """End it now, without grace."""
        if self._life is not None:
            self._life.kill()

    def report(self) -> dict[str, object]:
        """What the status file says of it."""
        return {
            "name": self.child.name,
            "state": self.state.value,
            "pid": None if self._life is None else self._life.pid,
            "restarts": self.restarts,
            "since": self._since,
            "last_exit_code": self.last_code,
            "reason": self.reason,
        }

    def _begin(self) -> None:
        try:
            self._life = self._start(self.child)
        except OSError as error:
            self.reason = f"cannot start: {error.strerror}"
            self._later(self._next_wait())
            return
        self._born = self._clock()
        self._enter(State.STARTING)

    def _wait_until_ready(self) -> None:
        if self.child.ready is None or _answer(self.child.ready) is True:
            self._probed = self._clock()
            self._enter(State.RUNNING)
        elif self._clock() >= self._born + self.child.ready_limit_s:
            self._ask(f"not ready after {self.child.ready_limit_s:g} s")

    def _probe(self) -> None:
        if self.child.watch is None or self._clock() < self._probed + self.child.watch_every_s:
            return
        self._probed = self._clock()
        if (trouble := _answer(self.child.watch)) is not None:
            self._ask(str(trouble))

    def _ask(self, reason: str) -> None:
        if self._life is not None:
            self._life.ask()
        self.reason, self._asked = reason, self._clock()
        self._enter(State.STOPPING)

    def _ended(self, code: int) -> None:
        self._life, self.last_code = None, code
        if self._closing:
            self._enter(State.STOPPED)
        elif self.state is State.STOPPING:  # we ended it, so its code says nothing of its configuration
            self._later(self._wait_after(code))
        else:
            self.reason = f"ended with code {code}"
            if code in self.child.fatal_codes:
                self._enter(State.FAILED)
            else:
                self._later(self._wait_after(code))

    def _wait_after(self, code: int) -> float:
        if code in self.child.waits:
            return self.child.waits[code]  # not a failure of ours: nothing grows
        if self._clock() - self._born >= self._backoff.reset_after_s:
            self._failures = 0
        return self._next_wait()

    def _next_wait(self) -> float:
        wait = self._backoff.wait(self._failures)
        self._failures += 1
        return wait

    def _later(self, wait: float) -> None:
        self.restarts += 1
        self._due = self._clock() + wait
        self._enter(State.WAITING)

    def _enter(self, state: State) -> None:
        self.state, self._since = state, _now()


def _answer(probe: Callable[[], object]) -> object:
    try:
        return probe()
    except Exception as error:  # a probe that fails has found trouble; its text may name anything
        return f"probe: {type(error).__name__}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
