"""One attempt at a round: plans out one by one, answers in one by one, each judged and folded as it comes.

Nothing here knows Flower: a :class:`Post` sends parts of plans and hands over letters. One pass sends what is not sent
and looks once for every answer that is missing; whatever a pass could not do, the next one tries again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedward_common.codec import PlanParts
from fedward_common.config import Weights
from fedward_common.errors import MalformedMessage
from fedward_common.round import Fold, Refusal, Update
from fedward_server.admission import Admission, Drop, weight_of

__all__ = ["Addressee", "Attempt", "Collector", "Letter", "Post", "PostError"]

POLL_S, SLOWEST_POLL_S = 0.2, 2.0


class PostError(Exception):
    """The transport failed for now; the same may succeed later. No one but a collector and its caller sees it."""


class Letter(Protocol):
    """An answer as it arrives."""

    @property
    def answers(self) -> str:
        """Identifier of the message that it answers."""
        ...

    def read(self) -> bytes | None:
        """The signed bytes, or None where the transport brings an error instead.

        Raises:
          MalformedMessage: there is something else in it.
        """
        ...


class Post(Protocol):
    """Whoever carries messages to nodes and back."""

    def send(self, node: int, plan: PlanParts, *, group: str, seconds: float) -> str | None:
        """Send a plan that is worthless after ``seconds``.

        Returns:
          The message's identifier, or None where the node cannot be sent anything.

        Raises:
          PostError: try again.
        """
        ...

    def fetch(self, identifier: str) -> Iterable[Letter]:
        """What has arrived in answer to one message.

        Raises:
          PostError: try again.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Addressee:
    """A site that is asked in this attempt."""

    node: int
    name: str
    key: Ed25519PublicKey


@dataclass(kw_only=True)
class Attempt:
    """What happened so far in one attempt at a round."""

    fold: Fold
    started: float = field(default_factory=time.perf_counter)
    cohort: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    heads: dict[str, str] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    spared: set[str] = field(default_factory=set)

    @property
    def updated(self) -> set[str]:
        """Names of the sites whose update was folded."""
        return set(self.heads)


@dataclass(kw_only=True)
class Collector:
    """Asks the sites of one attempt and folds what they answer.

    ``plans`` makes the signed plan of one site; it is let go, and the adapter's bytes with it, once all are sent.
    ``goal`` updates close the attempt; 0 waits for all. ``pause`` sleeps, and raises if the run is to stop. ``told``
    hears of every site's outcome, ``note`` of a failing transport.

    Guarantees:
      - One update and one sum in memory at a time, whatever the number of sites; one copy of the plans' body.
      - A message counts once; every site that was asked has one outcome besides duplicates.
      - No fault of a site or of the transport ends the attempt before its deadline.
    """

    post: Post
    plans: Callable[[Addressee], PlanParts] | None
    admission: Admission
    weights: Weights
    goal: int
    clock: Callable[[], float]
    pause: Callable[[float], None]
    told: Callable[[str, str], None]
    note: Callable[[str], None]
    attempt: Attempt
    _waiting: dict[str, Addressee] = field(default_factory=dict)
    _sent: dict[str, Addressee] = field(default_factory=dict)
    _faults: set[str] = field(default_factory=set)

    def collect(self, sites: Sequence[Addressee]) -> None:
        """Send every site its plan and take answers until all are there, the goal is reached or the plan expires."""
        unsent, poll = list(sites), POLL_S
        self.attempt.cohort = len(sites)
        while (unsent or self._waiting) and self._left() > 0 and not self._reached():
            before = len(unsent), len(self._waiting)
            unsent = [site for site in unsent if not self._send(site)]
            if not unsent:
                self.plans = None
            self._look()
            if (len(unsent), len(self._waiting)) == before:
                self.pause(min(poll, max(self._left(), 0.0)))
                poll = min(1.5 * poll, SLOWEST_POLL_S)
            else:
                self.pause(0.0)
                poll = POLL_S
        self._close([*unsent, *self._waiting.values()])

    def _left(self) -> float:
        return self.admission.plan.expires_at - self.clock()

    def _reached(self) -> bool:
        return 0 < self.goal <= self.attempt.fold.count

    def _send(self, site: Addressee) -> bool:
        # one message at a time: Flower's Grid serialises all that it is given at once, body by body
        if self.plans is None or self._left() <= 0:
            return False
        plan = self.plans(site)
        group = str(self.admission.plan.round)
        try:
            identifier = self.post.send(site.node, plan, group=group, seconds=max(self._left(), POLL_S))
        except PostError as error:
            self._fault(error)
            return False
        if identifier is None:
            self._drop(site.name, Drop.NO_ANSWER)
        else:
            self._waiting[identifier] = self._sent[identifier] = site
            self.attempt.asked.add(site.name)
            self.attempt.bytes_down += plan.size
        return True

    def _look(self) -> None:
        for identifier in list(self._waiting):
            if self._left() <= 0 or self._reached():
                return
            try:
                self._take(self.post.fetch(identifier))
            except PostError as error:
                self._fault(error)

    def _take(self, letters: Iterable[Letter]) -> None:
        # one message a fetch, and no name of it outlives this call: memory holds one update, whatever the cohort
        for letter in letters:
            site = self._sent.get(letter.answers)
            if site is None:
                continue
            if self._waiting.pop(letter.answers, None) is None:
                self._drop(site.name, Drop.DUPLICATE)
            elif self._left() <= 0:
                self._drop(site.name, Drop.LATE)
            else:
                self._judge(site, letter)

    def _judge(self, site: Addressee, letter: Letter) -> None:
        try:
            data = letter.read()
        except MalformedMessage:
            return self._drop(site.name, Drop.MALFORMED)
        if data is None:
            return self._drop(site.name, Drop.NO_ANSWER)
        self.attempt.bytes_up += len(data)
        verdict = self.admission.admit(site.name, data, key=site.key)
        if isinstance(verdict, Drop):
            return self._drop(site.name, verdict)
        if isinstance(verdict, Refusal):
            self.attempt.refused[verdict.code.value] += 1
            return self.told(site.name, verdict.code.value)
        return self._fold(site.name, verdict)

    def _fold(self, name: str, update: Update) -> None:
        self.attempt.fold.add(update, weight=weight_of(update, self.weights))
        self.attempt.heads[name] = update.ledger_head
        self.attempt.units[name] = update.nominal_units
        self.told(name, "update")

    def _close(self, rest: Sequence[Addressee]) -> None:
        for site in rest:
            if self._reached():
                self.attempt.spared.add(site.name)
            self._drop(site.name, Drop.NOT_NEEDED if self._reached() else Drop.NO_ANSWER)

    def _drop(self, name: str, reason: Drop) -> None:
        self.attempt.dropped[reason.value] += 1
        self.told(name, reason.value)

    def _fault(self, error: PostError) -> None:
        # once a kind and attempt: a transport that is away for an hour must not fill a log
        if str(error) not in self._faults:
            self._faults.add(str(error))
            self.note(f"messages do not pass ({error}); trying again until the deadline")
