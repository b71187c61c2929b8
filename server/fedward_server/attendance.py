"""Which sites keep failing, and who may be asked because of it. Numbers by name; no messages, no clock.

A site that sent no update in so many attempts in a row that it was asked in is set aside: it is asked again in every
tenth attempt only, until it sends one; or once, as soon as it is back, where it was away. Who comes and goes without
ever sending an update is not welcomed again. A refusal is no update. The counts decide who is asked, so they are kept
in checkpoints: a resumed run asks whom the stopped one would have asked, but for one welcome more.

Example:
    >>> attendance = Attendance(limit=2)
    >>> [attendance.note(asked={"a", "b"}, updated={"a"}, spared=set()) for _ in range(2)]
    [(), ('b',)]
    >>> attendance.invited({1: "a", 2: "b"}, minimum=1)
    [1]
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

__all__ = ["Attendance"]

EVERY = 10


@dataclass(kw_only=True)
class Attendance:
    """The attempts without an update of each site, in a row.

    ``limit`` is ``rounds.set_aside_after``; 0 sets nobody aside. Of a site that is set aside, ``missed`` also counts
    the attempts in which it was not asked: that is how its turn comes.

    Guarantees:
      - At least ``minimum`` sites are invited where so many are connected.
      - A site that is set aside has its turn in every tenth attempt.
      - A site that was set aside, went away and came back is asked again at once; one more failure sets it aside again.
      - After such a welcome there is no other one until the site has sent an update: its turn is the tenth attempt.
    """

    limit: int
    missed: dict[str, int] = field(default_factory=dict)
    _away: set[str] = field(default_factory=set)
    _welcomed: set[str] = field(default_factory=set)

    @property
    def aside(self) -> tuple[str, ...]:
        """Who is set aside, by name."""
        return tuple(sorted(name for name in self.missed if self._is_aside(name)))

    def invited(self, connected: Mapping[int, str], *, minimum: int) -> list[int]:
        """Whom to ask.

        Args:
          connected: names of sites by node.
          minimum: how many there must be to ask, if need be also of those set aside, the least failing first.

        Returns:
          Nodes, in order.
        """
        self._welcome(set(connected.values()))
        resting = sorted(
            (node for node, name in connected.items() if self._is_aside(name) and not self._has_its_turn(name)),
            key=lambda node: (self.missed[connected[node]], connected[node], node),
        )
        invited = set(connected) - set(resting)
        needed = max(minimum - len({connected[node] for node in invited}), 0)
        return sorted(invited | set(resting[:needed]))

    def note(self, *, asked: Set[str], updated: Set[str], spared: Set[str]) -> tuple[str, ...]:
        """Take down one attempt.

        Args:
          asked: who was sent a plan.
          updated: whose update was folded.
          spared: who was asked, but not waited for; that is nobody's fault.

        Returns:
          Who is set aside from here on.
        """
        before = set(self.aside)
        for name in sorted((asked | before) - updated - spared):
            self.missed[name] = self.missed.get(name, 0) + 1
        for name in updated:
            self.missed.pop(name, None)
        self._welcomed -= updated
        return tuple(name for name in self.aside if name not in before)

    def _welcome(self, here: Set[str]) -> None:
        for name in (self._away & here) - self._welcomed:
            self.missed[name] = self.limit - 1
            self._welcomed.add(name)
        self._away = set(self.aside) - here

    def _is_aside(self, name: str) -> bool:
        return 0 < self.limit <= self.missed.get(name, 0)

    def _has_its_turn(self, name: str) -> bool:
        return (self.missed[name] - self.limit) % EVERY == EVERY - 1
