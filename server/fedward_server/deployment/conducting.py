"""One run, kept going: when to begin a Flower run for it, when to start its conductor, when to give up.

A state machine that is asked again and again and never waits itself. What a person wants and how the run stands are
files, so a desk that begins anew has lost nothing. It must not know sites.

    idle -> a Flower run is begun, its task is awaited -> a conductor lives -> it ended: idle again, or the run is over
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from fedward_server.deployment.flower import Acquired, pointer_bundle
from fedward_server.deployment.outcome import Ending
from fedward_server.deployment.runs import RunFolder, RunState, Wanted

__all__ = ["Conducting", "RunControl", "backoff"]

LOG = logging.getLogger("fedward.desk")
TASK_S = 20.0  # from a Flower run's begin to its task; then another one is begun
QUICK_S = 60.0  # a conductor that lived longer, or finished a round, did not fail quickly
GRACE_S = 10.0  # from SIGTERM to SIGKILL
MOST_S = 60.0


class RunControl(Protocol):
    """Flower's runs, as :class:`~fedward_server.deployment.flower.Control` has them."""

    def start_run(self, bundle: bytes) -> int:
        """Make a new Flower run."""
        ...

    def stop_run(self, flower_run: int) -> None:
        """End one; nodes drop its messages."""
        ...


class Alive(Protocol):
    """A conductor's process, as :class:`~fedward_common.machine.life.Life` has it."""

    def ended(self) -> int | None:
        """The exit code once it has ended."""
        ...

    def ask(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


def backoff(failures: int) -> float:
    """The wait in seconds after that many failures in a row: none after the first, then 1, 2, 4, ... up to a minute."""
    return 0.0 if failures <= 1 else min(2.0 ** (failures - 2), MOST_S)


class Conducting:
    """Keeps one run going.

    Guarantees:
      - A conductor that dies is followed by a new Flower run of the same fedward run, at once the first time.
      - After more than ``restarts`` quick failures in a row the run is failed, and says why, until ``resume``.
      - A Flower run whose conductor is gone is stopped, so that nodes drop its messages.
      - After ``close`` nothing is begun.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        control: RunControl,
        spawn: Callable[[RunFolder, Acquired], Alive],
        restarts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is begun yet."""
        self.run = run
        self.crashes = 0
        self._control, self._spawn, self._restarts, self._clock = control, spawn, restarts, clock
        self._flower_run: int | None = None
        self._stale: list[int] = []
        self._life: Alive | None = None
        self._failures = 0
        self._due = self._began = clock()
        self._asked: float | None = None
        self._round = 0
        self._closing = False

    @property
    def alive(self) -> bool:
        """Whether a conductor lives."""
        return self._life is not None

    @property
    def flower_run(self) -> int | None:
        """The Flower run that was begun for it and is not over."""
        return self._flower_run

    @property
    def awaited(self) -> int | None:
        """The Flower run whose task is awaited."""
        return None if self._life else self._flower_run

    def tick(self) -> None:
        """Look, and do what is due.

        Raises:
          FlowerAway: the SuperLink does not answer; the next tick tries again.
        """
        if self._life is not None:
            self._tend(self._life)
        elif self._flower_run is not None:
            self._await()
        elif self.run.read_wanted() is Wanted.STOPPED:
            self._rest()
        elif self._may_begin():
            self._begin()
        self._sweep()

    def take(self, task: Acquired) -> None:
        """The awaited task is here: start the conductor."""
        status = self.run.read_status()
        self._round, self._began, self._asked = status.round, self._clock(), None
        self.run.write_status(replace(status, starts=status.starts + 1))
        self._life = self._spawn(self.run, task)
        LOG.info("run %s: conductor started", self.run.name)

    def close(self) -> None:
        """Ask the conductor to end; its run goes on with the next desk."""
        self._closing = True
        if self._life is not None:
            self._life.ask()

    def kill(self) -> None:
        """End the conductor now."""
        if self._life is not None:
            self._life.kill()

    def _tend(self, life: Alive) -> None:
        code = life.ended()
        if code is not None:
            self._life = None
            self._drop_flower_run()
            return self._ended(code)
        if self.run.read_wanted() is not Wanted.STOPPED:
            return None
        if self._asked is None:
            self._asked = self._clock()
            return life.ask()
        return life.kill() if self._clock() - self._asked >= GRACE_S else None

    def _await(self) -> None:
        if self.run.read_wanted() is Wanted.STOPPED or self._clock() - self._began >= TASK_S:
            self._drop_flower_run()

    def _rest(self) -> None:
        self._failures, self._due = 0, self._clock()
        if not self.run.read_status().state.is_over:
            self._say(RunState.STOPPED)

    def _may_begin(self) -> bool:
        if self._closing:
            return False
        status = self.run.read_status()
        if status.state.is_over and status.state is not RunState.STOPPED:
            return False
        if status.starts == 0:  # `resume`: earlier failures no longer count
            self._failures = 0
        return self._clock() >= self._due

    def _begin(self) -> None:
        self._began = self._clock()
        self._flower_run = self._control.start_run(pointer_bundle())
        self._say(RunState.WAITING)

    def _ended(self, code: int) -> None:
        stopped = self.run.read_wanted() is Wanted.STOPPED
        if code in (Ending.FINISHED, Ending.ABANDONED, Ending.UNUSABLE):
            return None if self.run.read_status().state.is_over else self._failed(code)
        if stopped:
            return self._rest()
        if code == Ending.STOPPED:
            return self._say(RunState.WAITING)
        return self._failed(code)

    def _failed(self, code: int) -> None:
        status = self.run.read_status()
        self.crashes += 1
        quick = self._clock() - self._began < QUICK_S and status.round <= self._round
        self._failures = self._failures + 1 if quick else 1
        LOG.warning("run %s: its conductor ended with code %d", self.run.name, code)
        if self._failures > self._restarts:
            return self._say(
                RunState.FAILED,
                reason=f"its conductor ended {self._failures} times in a row without a finished round (code {code})",
                hint=f"read its {self.run.log.name}, mend the cause, then `fedward-server resume {self.run.name}`",
            )
        self._due = self._clock() + backoff(self._failures)
        return self._say(RunState.WAITING)

    def _say(self, state: RunState, *, reason: str = "", hint: str = "") -> None:
        status = self.run.read_status()
        if (status.state, status.reason) != (state, reason):
            self.run.write_status(replace(status, state=state, since=time.time(), reason=reason, hint=hint))

    def _drop_flower_run(self) -> None:
        if self._flower_run is not None:
            self._stale.append(self._flower_run)
        self._flower_run = None

    def _sweep(self) -> None:
        while self._stale:
            self._control.stop_run(self._stale[0])
            self._stale.pop(0)
