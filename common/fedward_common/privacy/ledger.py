"""The ledger: what was reserved, what was started, and whether the budget allows more.

``Ledger`` is the interface; ``MemoryLedger`` keeps it in memory, for simulation and as the model that a durable ledger
is tested against. Entries are events, never epsilons. This module knows no files, plans or data.

Example:
    >>> from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=0.5, rounds=20, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=8.0, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> ledger = MemoryLedger(Budget(epsilon=10.0, delta=1e-4))
    >>> grant = ledger.reserve(ledger.quote(terms), run_id="run-1")
    >>> 7.98 < ledger.spent("run-1", delta=1e-5) <= 8.0
    True
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final, Protocol, Self, TypeAlias

from fedward_common.errors import BudgetError, FedwardError
from fedward_common.privacy import accounting, calibration, checks
from fedward_common.privacy.calibration import Calibration
from fedward_common.privacy.events import GaussianSum, events_from_json, merged
from fedward_common.privacy.guarantee import PrivacyTerms

__all__ = ["LIFETIME", "Budget", "Grant", "Ledger", "Lifetime", "MemoryLedger", "Outcome", "Quote", "Scope"]

SCHEMA = 1
SLACK = 1 + 1e-9  # ten grants of delta 1e-5 fill a budget of 1e-4, also in floating point


class Lifetime(Enum):  # not a StrEnum: a run could be called "lifetime"
    """The scope of all runs together."""

    LIFETIME = "lifetime"  # everything that the budget was ever asked for


LIFETIME: Final = Lifetime.LIFETIME
Scope: TypeAlias = str | Lifetime


class Outcome(StrEnum):
    """How a started plan ended. Neither gives anything back."""

    RELEASED = "released"  # its update was handed over
    FAILED = "failed"  # nothing was handed over; the data was opened all the same


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What all runs together may cost a unit, fixed when the ledger is opened."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.positive("the budget's epsilon", self.epsilon)
        checks.within("the budget's delta", self.delta, 1e-300, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """What a whole run will do to the data: fixed before the first byte of it is read.

    Guarantees:
      - The events are those of the terms under the calibration, and their epsilon is at most the terms' epsilon.

    Raises:
      BudgetError: they are not.
    """

    terms: PrivacyTerms
    calibration: Calibration
    events: tuple[GaussianSum, ...]

    def __post_init__(self) -> None:
        """Check that terms, noise and events agree; whoever made them."""
        if self.events != merged(self.calibration.events(self.terms)):
            raise BudgetError("a quote's events are not those of its terms", hint="ask the ledger for a quote")
        if self.epsilon > self.terms.epsilon * SLACK:
            raise BudgetError("a quote costs more than its terms promise", hint="ask the ledger for a quote")

    @classmethod
    def of(cls, terms: PrivacyTerms) -> Self:
        """The quote of these terms."""
        noise = calibration.calibrate(terms)
        return cls(terms=terms, calibration=noise, events=merged(noise.events(terms)))

    @property
    def epsilon(self) -> float:
        """Of the whole run at the terms' delta, computed from the events."""
        return accounting.epsilon(self.events, delta=self.terms.delta)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "calibration": self.calibration.to_json(),
            "events": [event.to_json() for event in self.events],
            "terms": self.terms.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The quote of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("calibration", "events", "terms"), where="a quote")
        return cls(
            terms=PrivacyTerms.from_json(row["terms"]),
            calibration=Calibration.from_json(row["calibration"]),
            events=events_from_json(row["events"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A reserved quote: the right to start the quote's events in this run, and no others."""

    run_id: str
    quote: Quote

    def __post_init__(self) -> None:
        """Check the run id."""
        _check_id("run_id", self.run_id)


class Ledger(Protocol):
    """The append-only record of a site. A durable one writes each entry to disk before it returns.

    Guarantees:
      - Spend before release: nothing starts that was not reserved.
      - Nothing is refunded, whatever the outcome.
      - The sum of the grants' (epsilon, delta) never exceeds the budget.
    """

    @property
    def budget(self) -> Budget:
        """Fixed when the ledger was opened."""
        ...

    def quote(self, terms: PrivacyTerms) -> Quote:
        """What a run under these terms would do; changes nothing. ``BudgetError`` when no noise meets the terms."""
        ...

    def reserve(self, quote: Quote, *, run_id: str) -> Grant:
        """Reserve the whole run, or ``BudgetError``. Again with the same terms: the same grant, at no cost."""
        ...

    def start(self, grant: Grant, plan_id: str, *, events: tuple[GaussianSum, ...]) -> None:
        """Mark events as done, before data is opened; ``BudgetError`` beyond the grant or for a plan seen before."""
        ...

    def settle(self, plan_id: str, outcome: Outcome) -> None:
        """Note how a started plan ended. Again with the same outcome changes nothing."""
        ...

    def events(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was started, merged."""
        ...

    def granted(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was reserved, merged."""
        ...

    def spent(self, scope: Scope, *, delta: float) -> float:
        """The epsilon spent, at ``delta``."""
        ...

    def export(self) -> list[dict[str, Any]]:
        """All entries, oldest first, as JSON objects."""
        ...


class MemoryLedger:
    """A ledger in memory, safe for threads.

    The budget is a privacy filter: a later plan may be chosen after seeing earlier outputs, so the sum of the grants'
    (epsilon, delta) must stay within the budget. Inside a grant the events are fixed beforehand, and PLD is valid.

    Source: Rogers et al. 2016, arXiv:1605.08294, theorem 5.1 (basic composition is a valid filter).
    """

    def __init__(self, budget: Budget) -> None:
        """Open an empty ledger; the budget cannot be changed afterwards."""
        self._budget = budget
        self._lock = threading.RLock()
        self._entries: list[dict[str, Any]] = []
        self._grants: dict[str, Grant] = {}
        self._started: dict[str, tuple[str, tuple[GaussianSum, ...]]] = {}
        self._settled: dict[str, Outcome] = {}

    @property
    def budget(self) -> Budget:
        """Fixed when the ledger was opened."""
        return self._budget

    def quote(self, terms: PrivacyTerms) -> Quote:
        """What a run under these terms would do; changes nothing."""
        return Quote.of(terms)

    def reserve(self, quote: Quote, *, run_id: str) -> Grant:
        """Reserve the whole run.

        Guarantees:
          - The same run and terms give the same grant and add no entry.
          - A refused reservation changes nothing.

        Raises:
          BudgetError: the lifetime budget would be exceeded, the run has a grant under other terms, or earlier grants
            protect another unit.
        """
        grant = Grant(run_id=run_id, quote=quote)
        with self._lock:
            held = self._grants.get(run_id)
            if held is not None:
                return _same_terms(held, quote)
            self._check_unit(quote)
            self._check_budget(quote)
            self._grants[run_id] = grant
            self._append({"entry": "grant", "quote": quote.to_json(), "run_id": run_id})
        return grant

    def start(self, grant: Grant, plan_id: str, *, events: tuple[GaussianSum, ...]) -> None:
        """Mark events as done, before data is opened.

        Raises:
          BudgetError: the grant is not this ledger's, the plan was started before, or the run would exceed its grant.
        """
        _check_id("plan_id", plan_id)
        with self._lock:
            if self._grants.get(grant.run_id) != grant:
                raise BudgetError("a plan was started under an unknown grant", hint="reserve the run first")
            if plan_id in self._started:
                raise BudgetError("a plan was started twice", hint="send the stored reply again")
            if not events:
                raise BudgetError("a plan was started without events", hint="name what it will do to the data")
            _check_covered(merged((*self.events(grant.run_id), *events)), grant)
            self._started[plan_id] = (grant.run_id, merged(events))
            started = [event.to_json() for event in merged(events)]
            self._append({"entry": "start", "events": started, "plan_id": plan_id, "run_id": grant.run_id})

    def settle(self, plan_id: str, outcome: Outcome) -> None:
        """Note how a started plan ended; nothing is refunded.

        Raises:
          BudgetError: the plan was never started, or settled otherwise.
        """
        with self._lock:
            if plan_id not in self._started:
                raise BudgetError("a plan was settled that was never started", hint="start it first")
            held = self._settled.get(plan_id)
            if held is None:
                self._settled[plan_id] = outcome
                self._append({"entry": "settle", "outcome": outcome.value, "plan_id": plan_id})
            elif held is not outcome:
                raise BudgetError(f"a plan is already settled as {held.value}", hint="an outcome cannot be changed")

    def events(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was started, merged."""
        with self._lock:
            return merged(e for run, events in self._started.values() if scope in (run, LIFETIME) for e in events)

    def granted(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was reserved, merged."""
        with self._lock:
            return merged(e for run, g in self._grants.items() if scope in (run, LIFETIME) for e in g.quote.events)

    def spent(self, scope: Scope, *, delta: float) -> float:
        """The epsilon spent.

        For a run: of all events granted, started or not. When to stop is decided after seeing outputs, and a list of
        events that was shortened because of what came out is not a list fixed beforehand; only the granted one is.
        For ``LIFETIME``: the filter's sum, each grant at its own delta.

        Args:
          scope: a run id, or ``LIFETIME``.
          delta: for ``LIFETIME`` at least the sum of the grants' deltas, below which the filter says nothing.

        Raises:
          BudgetError: ``delta`` is too small.
        """
        if not isinstance(scope, Lifetime):
            return accounting.epsilon(self.granted(scope), delta=delta)
        with self._lock:
            quotes = [grant.quote for grant in self._grants.values()]
        if math.fsum(quote.terms.delta for quote in quotes) > delta * SLACK:
            raise BudgetError(f"delta {delta:g} is below the sum of the grants' deltas", hint="ask at the budget's")
        return math.fsum(quote.epsilon for quote in quotes)

    def export(self) -> list[dict[str, Any]]:
        """All entries, oldest first, as JSON objects; changing them does not change the ledger."""
        with self._lock:
            return copy.deepcopy(self._entries)

    @classmethod
    def restore(cls, entries: Iterable[object], budget: Budget) -> Self:
        """The ledger that ``export`` came from, every entry checked as if it were new.

        Raises:
          BudgetError: an entry is malformed, out of order, or refused.
        """
        ledger = cls(budget)
        try:
            for entry in entries:
                ledger._replay(entry)
        except BudgetError:
            raise
        except FedwardError as error:
            raise BudgetError(f"a ledger entry is malformed: {error}", hint=error.hint) from None
        return ledger

    def _check_unit(self, quote: Quote) -> None:
        units = {grant.quote.terms.unit for grant in self._grants.values()}
        if units - {quote.terms.unit}:
            raise BudgetError(
                "earlier grants protect another unit, whose losses do not add up with this one's",
                hint=f"open another ledger, with data of its own, for the unit '{quote.terms.unit.value}'",
            )

    def _check_budget(self, quote: Quote) -> None:
        quotes = [*(grant.quote for grant in self._grants.values()), quote]
        epsilon = math.fsum(q.epsilon for q in quotes)
        delta = math.fsum(q.terms.delta for q in quotes)
        if epsilon > self._budget.epsilon * SLACK or delta > self._budget.delta * SLACK:
            raise BudgetError(
                f"the run would bring the lifetime spend to ({epsilon:.4g}, {delta:.4g}), beyond the budget of "
                f"({self._budget.epsilon:g}, {self._budget.delta:g})",
                hint="ask for a run with a smaller epsilon or delta; a budget is never raised",
            )

    def _append(self, entry: dict[str, Any]) -> None:
        self._entries.append({**entry, "schema": SCHEMA})

    def _replay(self, entry: object) -> None:
        count = len(self._entries)
        kind = entry.get("entry") if isinstance(entry, dict) else None
        if kind == "grant":
            self._replay_grant(entry)
        elif kind == "start":
            self._replay_start(entry)
        elif kind == "settle":
            self._replay_settle(entry)
        # Also refuses another schema, and a repeated entry, which adds nothing.
        if len(self._entries) != count + 1 or self._entries[-1] != entry:
            raise BudgetError(f"ledger entry {count + 1} is of an unknown kind or repeated", hint="restore a true copy")

    def _replay_grant(self, entry: object) -> None:
        row = checks.table(entry, ("entry", "quote", "run_id", "schema"), where="a ledger entry")
        self.reserve(Quote.from_json(row["quote"]), run_id=checks.text(row["run_id"], where="run_id"))

    def _replay_start(self, entry: object) -> None:
        row = checks.table(entry, ("entry", "events", "plan_id", "run_id", "schema"), where="a ledger entry")
        grant = self._grants.get(checks.text(row["run_id"], where="run_id"))
        if grant is None:
            raise BudgetError("a ledger entry starts a plan of a run without a grant", hint="restore a true copy")
        plan_id = checks.text(row["plan_id"], where="plan_id")
        self.start(grant, plan_id, events=events_from_json(row["events"]))

    def _replay_settle(self, entry: object) -> None:
        row = checks.table(entry, ("entry", "outcome", "plan_id", "schema"), where="a ledger entry")
        outcome = checks.member(Outcome, row["outcome"], where="outcome")
        self.settle(checks.text(row["plan_id"], where="plan_id"), outcome)


def _same_terms(held: Grant, quote: Quote) -> Grant:
    if held.quote.terms != quote.terms:
        raise BudgetError("the run already has a grant under other terms", hint="give a new run a new run id")
    return held


def _check_covered(started: tuple[GaussianSum, ...], grant: Grant) -> None:
    allowed = {_kind(event): event.count for event in grant.quote.events}
    if any(event.count > allowed.get(_kind(event), 0) for event in started):
        raise BudgetError("a plan's events go beyond what its run reserved", hint="the plan does not fit its terms")


def _kind(event: GaussianSum) -> tuple[str, float, float]:
    return event.side.value, event.sampling_rate, event.noise_multiplier


def _check_id(name: str, value: str) -> None:
    if not 1 <= len(value) <= 256:
        raise BudgetError(f"{name} has {len(value)} characters", hint=f"give {name} 1 to 256 characters")
