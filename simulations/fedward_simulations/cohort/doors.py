"""The sites' Doors while a cohort is computed: the messages of a round are opened ahead, so many sites at a time.

The Grid says which messages come next. Each is handed to its site up to the data work; the engine computes the work of
all of them; each site finishes, and the ClientApp that asks the Door finds its site's finished bytes. A message that
was not opened ahead is answered by the site alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedward_client.door import Door
from fedward_client.round import Answering, Site
from fedward_client.training import LocalWork
from fedward_simulations.cohort.engine import Cohort, Outcome
from fedward_simulations.heap import give_back
from fedward_simulations.profiling import span

__all__ = ["CohortDoors"]


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """What a site answered to one message, or what it raised."""

    message: bytes
    reply: bytes | Exception

    def handed_over(self) -> bytes:
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """A site that has paid for its data work and waits for the result."""

    message: bytes
    answering: Answering
    work: LocalWork

    def finished(self, outcome: Outcome) -> bytes | Exception:
        try:
            if isinstance(outcome, Exception):
                self.answering.throw(outcome)
            else:
                self.answering.send(outcome)
        except StopIteration as over:
            reply: bytes = over.value
            return reply
        except Exception as error:
            return error
        return RuntimeError("a site yielded a second work")


@dataclass(kw_only=True, eq=False)
class CohortDoors:
    """A Door for each site.

    Args:
      sites: by name.
      engine: computes what they yield; so many sites as it takes at once are opened together.
      goal: updates that end a round, or 0. Only sites that are certainly needed are opened ahead: a site that would
        not be asked must not spend.

    Guarantees:
      - At most so many finished replies are held here, whatever the number of sites.
      - A site that raises, or whose work fails, is one answer of its own; the others are answered.
    """

    sites: Mapping[str, Site]
    engine: Cohort
    goal: int = 0
    _ready: dict[str, _Reply] = field(default_factory=dict)

    def door_of(self, name: str) -> Door:
        """The Door of a site.

        Raises:
          KeyError: there is no such site.
        """
        return _Door(site=self.sites[name], name=name, doors=self)

    def room(self, opened: int) -> int:
        """How many messages may be opened now, where so many of this round were opened before."""
        return self.engine.sites if not self.goal else max(1, min(self.engine.sites, self.goal - opened))

    def open(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Have these sites answer, together; what was opened before and not asked for is forgotten."""
        self._ready.clear()
        waiting: dict[str, _Opened] = {}
        try:
            with span("sites: plans checked and paid for"):
                for name, data in messages:
                    if name in self.sites and name not in waiting:
                        self._begin(name, data, waiting)
            outcomes = self.engine.compute([opened.work for opened in waiting.values()])
            with span("sites: updates signed and stored"):
                for (name, opened), outcome in zip(waiting.items(), outcomes, strict=True):
                    self._ready[name] = _Reply(message=opened.message, reply=opened.finished(outcome))
        finally:
            for opened in waiting.values():
                opened.answering.close()  # of a run that was stopped meanwhile: what was opened is spent
            with span("memory given back"):
                give_back()  # a cohort's, before the next one's

    def take(self, name: str, data: bytes) -> bytes | None:
        """The finished reply of a site to this message, once.

        Raises:
          Exception: what the site raised.
        """
        found = self._ready.pop(name, None)
        return found.handed_over() if found and found.message == data else None

    def _begin(self, name: str, data: bytes, waiting: dict[str, _Opened]) -> None:
        answering = self.sites[name].answering(data)
        try:
            waiting[name] = _Opened(message=data, answering=answering, work=next(answering))
        except StopIteration as over:
            self._ready[name] = _Reply(message=data, reply=over.value)
        except Exception as error:
            self._ready[name] = _Reply(message=data, reply=error)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Door:
    site: Site
    name: str
    doors: CohortDoors

    def answer(self, data: bytes) -> bytes:
        """The reply that was computed ahead, or the site's own."""
        ready = self.doors.take(self.name, data)
        return self.site.answer(data) if ready is None else ready
