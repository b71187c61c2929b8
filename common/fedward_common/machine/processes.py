"""The supervisor: starts children in order, keeps each alive, stops all in reverse order. One thread, no handlers left.

Example:
    >>> Supervisor([], status=None).run()
    Ended(child=None, code=0)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import InputError, OutputError
from fedward_common.files import rewrite_json
from fedward_common.machine.keeper import Backoff, Keeper, State
from fedward_common.machine.life import Child, Life

__all__ = ["Ended", "Supervisor"]

TICK_S = 0.1
STATUS_VERSION = 1
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """Why a supervisor ended: on request with code 0, or because a child ended with a fatal code."""

    child: str | None
    code: int


class Supervisor:
    """Runs children until it is asked to end, or until one of them cannot be helped."""

    def __init__(
        self,
        children: Sequence[Child],
        *,
        status: Path | None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        start: Callable[[Child], Life] = Life,
    ) -> None:
        """Start nothing yet.

        Args:
          children: in the order of their start; each waits until all former ones are ready.
          status: a file that always says how the children are; replaced at every change.
          backoff: the waits between starts.
          clock: seconds that never go back.
          sleep: waits that many seconds.
          start: begins one life of a child.

        Raises:
          InputError: two children have one name.
        """
        names = [child.name for child in children]
        if len(set(names)) != len(names):
            raise InputError(f"children named {', '.join(names)}", hint="give each child a name of its own")
        self._keepers = [Keeper(one, backoff=backoff or Backoff(), clock=clock, start=start) for one in children]
        self._status, self._sleep = status, sleep
        self._requests = 0
        self._told: list[dict[str, object]] | None = None

    def run(self) -> Ended:
        """Run until SIGTERM, SIGINT or SIGHUP comes, ``stop`` is called, or a critical child ends with a fatal code.

        Call it in the main thread: children die with the thread that started them.

        Guarantees:
          - A child starts only when all former ones are ready; one that ends is started again.
          - When this returns or raises, no child runs: each got SIGTERM, in reverse order, and after its grace SIGKILL.
          - A second signal ends the grace of all.
          - The status file is whole at every instant, and says the last change as soon as the disk takes it: a full
            one ends no child.

        Raises:
          OutputError: the status file cannot be written at the start.
        """
        with self._signals():
            try:
                while self._keepers and not self._requests and self._fatal() is None:
                    self._tick()
                    self._sleep(TICK_S)
            finally:
                self._stop_all()
        fatal = self._fatal()
        return Ended(None, 0) if fatal is None else Ended(fatal.child.name, fatal.last_code or 0)

    def stop(self) -> None:
        """Ask ``run`` to end; asked twice, without grace. A signal handler may call it."""
        self._requests += 1

    def _tick(self) -> None:
        ready = True
        for keeper in self._keepers:
            keeper.tick(may_start=ready)
            # a child that is allowed to fail holds nobody up
            ready = ready and (keeper.state is State.RUNNING or (keeper.state is State.FAILED and not keeper.fatal))
        self._tell()

    def _fatal(self) -> Keeper | None:
        return next((keeper for keeper in self._keepers if keeper.fatal), None)

    def _stop_all(self) -> None:
        for keeper in reversed(self._keepers):
            keeper.close()
            while keeper.alive:
                if self._requests > 1:
                    keeper.kill()
                keeper.tick(may_start=False)
                if keeper.alive:
                    self._sleep(TICK_S)
        self._tell()

    def _tell(self) -> None:
        reports = [keeper.report() for keeper in self._keepers]
        if reports == self._told:
            return
        try:
            if self._status is not None:
                rewrite_json(self._status, {"version": STATUS_VERSION, "pid": os.getpid(), "children": reports})
        except OutputError:
            if self._told is None:  # a folder that is wrong from the start
                raise
            return  # said again at the next tick
        self._told = reports

    @contextmanager
    def _signals(self) -> Iterator[None]:
        # what the starter chose to ignore (nohup) stays ignored
        caught = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
        former = {number: signal.signal(number, lambda *_: self.stop()) for number in caught}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
