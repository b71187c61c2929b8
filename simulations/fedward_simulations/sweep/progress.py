"""How far a sweep is, and how long the rest takes. This module knows nothing of terminals and processes.

Example:
    >>> clock = iter([0.0, 10.0, 10.0]).__next__
    >>> progress = SweepProgress(rounds={"a": 4, "b": 4, "c": 4}, finished=["a"], clock=clock)
    >>> progress.advance("b", rounds=2)
    >>> progress.end("b", failed=False)
    >>> progress.done, progress.left
    (2, 10.0)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

__all__ = ["SweepProgress"]


class SweepProgress:
    """Counts of jobs, and a guess of the time left from the rounds done in this process.

    A job that failed is work neither done nor left, so that what failed at once makes no rest look short.
    """

    def __init__(
        self,
        *,
        rounds: Mapping[str, int],
        finished: Iterable[str],
        begun: Mapping[str, int] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``rounds`` of every job; those that were done before: whole jobs, and rounds of jobs that had ``begun``."""
        self.total = len(rounds)
        self.running: dict[str, int] = {}
        self._rounds = dict(rounds)
        self._before, self._begun = set(finished), dict(begun)
        self._ended: set[str] = set()
        self._failed: set[str] = set()
        self._clock = clock
        self._began = clock()

    def advance(self, name: str, *, rounds: int) -> None:
        """So many rounds of a job are done."""
        self.running[name] = rounds

    def end(self, name: str, *, failed: bool) -> None:
        """A job is over."""
        self.running.pop(name, None)
        (self._failed if failed else self._ended).add(name)

    @property
    def failed(self) -> int:
        """Jobs that failed in this process."""
        return len(self._failed)

    @property
    def done(self) -> int:
        """Finished jobs, also those of an earlier process."""
        return len(self._before) + len(self._ended)

    @property
    def rounds_total(self) -> int:
        """Of the jobs that were not done before and did not fail, without the rounds that were."""
        left = (name for name in self._rounds if name not in self._before | self._failed)
        return sum(self._rounds[name] - self._begun.get(name, 0) for name in left)

    @property
    def rounds_done(self) -> int:
        """In this process, of the jobs that did not fail."""
        reached = {**{name: self._rounds[name] for name in self._ended}, **self.running}
        return sum(rounds - self._begun.get(name, 0) for name, rounds in reached.items())

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes; None before the first round."""
        done = self.rounds_done
        return self.elapsed * (self.rounds_total - done) / done if done else None
