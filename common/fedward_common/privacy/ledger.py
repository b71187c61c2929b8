"""The ledger: what was reserved, what was started, how it ended, and whether the budget allows more.

One ledger for a site, shared by all runs and coordinators. It keeps no state of its own: all follows from the entries
of a journal, which may lie in memory or on disk, and from a register that says which units share which spending.
Entries are facts, never epsilons. This module knows no files, plans or data.

Example:
    >>> from fedward_common.privacy.grants import Budget
    >>> from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=0.5, rounds=20, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=8.0, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> ledger = Ledger.in_memory(Budget(epsilon=10.0, delta=1e-4))
    >>> grant = ledger.reserve(ledger.quote(terms), run_id="run-1")
    >>> 7.98 < ledger.spent("run-1", delta=1e-5) <= 8.0
    True
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fedward_common.errors import BudgetError
from fedward_common.privacy import accounting
from fedward_common.privacy.events import GaussianSum, merged
from fedward_common.privacy.facts import (
    Bearer,
    Cleared,
    Fact,
    Granted,
    Held,
    Opened,
    Outcome,
    Reconciled,
    Settled,
    Started,
    body_of,
    fact_of,
)
from fedward_common.privacy.grants import Budget, Grant, Quote, check_id
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.privacy.journal import Journal, MemoryJournal
from fedward_common.privacy.spending import History, MemoryRegister, Register, nobody_bears
from fedward_common.privacy.standing import Standing

__all__ = ["LIFETIME", "Ledger", "Lifetime", "Scope"]


class Lifetime(Enum):  # not a StrEnum: a run could be called "lifetime"
    """The scope of all runs together."""

    LIFETIME = "lifetime"  # everything that the budget was ever asked for


LIFETIME: Final = Lifetime.LIFETIME
Scope: TypeAlias = str | Lifetime


class Ledger:
    """The append-only record of a site, safe for threads.

    The budget is a privacy filter over whole grants: a later plan may be chosen after seeing earlier outputs. Inside a
    grant the events are fixed beforehand, and PLD is valid.

    Guarantees:
      - Spend before release: nothing starts that was not reserved; over a durable journal, reserved on disk.
      - Nothing is refunded, whatever the outcome.
      - The grants that a unit bears never exceed the budget, except by what a witness added.
      - A plan starts once. A run with a plan that failed or was cut off is held until its site's operator clears it.
      - Whatever is refused changes nothing.
    """

    def __init__(self, journal: Journal, register: Register, standing: Standing) -> None:
        """For ``create`` and ``open``, which everyone else uses."""
        self._journal, self._register, self._standing = journal, register, standing
        self._lock = threading.RLock()
        self._cut_off = frozenset(standing.unsettled())

    # ---- opening -------------------------------------------------------------------
    @classmethod
    def create(cls, journal: Journal, register: Register, *, budget: Budget, owner: str = "") -> Self:
        """Write the opening entry; the budget cannot be changed afterwards.

        Args:
          journal: an empty one.
          register: of the units, with the digest key that it will always have.
          budget: for life.
          owner: the fingerprint of the site's key.

        Raises:
          BudgetError: the journal is not empty.
        """
        if journal.head:
            raise BudgetError("the ledger was opened before", hint="open it; a budget is fixed for life")
        register.adopt("")
        ledger = cls(journal, register, Standing())
        ledger._record(Opened(budget=budget, owner=owner, key_check=register.key_check))
        return ledger

    @classmethod
    def open(cls, journal: Journal, register: Register, *, owner: str | None = None) -> Self:
        """The ledger of a journal, every entry checked as if it were new.

        Plans that were started and not settled were cut off, by a crash or otherwise: see ``unsettled``.

        Raises:
          BudgetError: no opening entry; an entry that cannot follow those before it; a ledger of another owner; another
            digest key; or a register that is not the one that the ledger names.
        """
        standing = Standing.of(fact_of(entry.body) for entry in journal.entries())
        if owner is not None and standing.opened.owner != owner:
            raise BudgetError("the ledger belongs to another site", hint="restore this site's own ledger")
        if register.key_check != standing.opened.key_check:
            raise BudgetError(
                "the digest key of the units is not the one that the ledger was opened with",
                hint="restore the key from a backup: with another key all spending of units would be forgotten",
            )
        register.adopt(standing.register)
        return cls(journal, register, standing)

    @classmethod
    def in_memory(cls, budget: Budget) -> Self:
        """A fresh ledger that is gone with the process, for simulation."""
        return cls.create(MemoryJournal(), MemoryRegister(), budget=budget)

    @classmethod
    def restore(cls, rows: Iterable[object], budget: Budget) -> Self:
        """The in-memory ledger that ``export`` came from; without rows, a fresh one.

        Raises:
          BudgetError: a row was changed, left out or moved, or the ledger was opened with another budget.
        """
        journal = MemoryJournal.restore(rows)
        if not journal.head:
            return cls.in_memory(budget)
        ledger = cls.open(journal, MemoryRegister())
        if ledger.budget != budget:
            raise BudgetError("the ledger was opened with another budget", hint="a budget is fixed for life")
        return ledger

    def export(self, after: int = 0) -> list[dict[str, Any]]:
        """All entries after the first so many, oldest first, as JSON objects; changing them changes no ledger."""
        return [entry.to_json() for entry in self._journal.entries()[after:]]

    # ---- the life of a run ---------------------------------------------------------
    def quote(self, terms: PrivacyTerms) -> Quote:
        """What a run under these terms would do; changes nothing. ``BudgetError`` when no noise meets the terms.

        Terms that an earlier grant had are quoted from its entry, without a search for the noise: entries are a cache.
        """
        return self._known(terms) or Quote.of(terms)

    def fits(self, quote: Quote) -> bool:
        """Say whether every unit, whatever its history, can bear this now; changes nothing."""
        with self._lock:
            return all(self._bears(history, quote) for history in self._histories())

    def reserve(self, quote: Quote, *, run_id: str, units: Sequence[str] | None = None) -> Grant:
        """Reserve the whole run.

        Args:
          quote: what it will do.
          run_id: of the run.
          units: ids of the units in the data now. A unit whose own history cannot bear the run is left out, silently;
            see ``taking_part``. Where that is every unit, the run is granted all the same and its updates are noise
            alone: a refusal that turns into an update would tell that one new unit came. None where units have no
            lasting id: then the data source as a whole bears it.

        Guarantees:
          - The same run and terms give the same grant and add no entry.

        Raises:
          BudgetError: the budget cannot bear it, the quote costs more than its terms promise, the run has a grant under
            other terms, or earlier grants protect another unit.
        """
        grant = Grant(run_id=run_id, quote=quote)
        with self._lock:
            held = self._standing.grants.get(run_id)
            if held is not None:
                return _same_terms(held, quote)
            if self._known(quote.terms) != quote:  # a known one was checked when it was first reserved
                quote.check()
            fact = Granted(grant=grant, bearer=Bearer.SOURCE, register=self._standing.register)
            self._standing.check(fact)
            if not self._bears((), quote):  # beyond the budget of a unit that bore nothing of its own
                raise nobody_bears()
            if units is not None:
                charge = self._units().charge(units, run_id=run_id, bears=lambda past: self._bears(past, quote))
                fact = Granted(grant=grant, bearer=Bearer.UNITS, register=charge.digest)
            elif not self.fits(quote):
                raise nobody_bears()
            self._record(fact)
            self._units()
        return grant

    def taking_part(self, run_id: str, units: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) True where a unit bears the run's grant. Only such units may be trained or evaluated on in it."""
        with self._lock:
            if run_id in self._standing.borne_by_all:
                return np.ones(len(units), dtype=np.bool_)
            return self._units().taking_part(run_id, units)

    def start(self, grant: Grant, plan_id: str, *, events: tuple[GaussianSum, ...]) -> None:
        """Mark events as done, before data is opened.

        Raises:
          BudgetError: the grant is not this ledger's, the plan was started before, the run would exceed its grant, or
            the run is held or closed.
        """
        check_id("plan_id", plan_id)
        with self._lock:
            if self._standing.grants.get(grant.run_id) != grant:
                raise BudgetError("a plan was started under an unknown grant", hint="reserve the run first")
            fact = Started(run_id=grant.run_id, plan_id=plan_id, events=merged(events))
            self._standing.check(fact)
            if grant.run_id in self.held():
                raise BudgetError(
                    "the run is held: a plan of it was cut off after it had opened the data",
                    hint="find out why, then let the site's operator clear the run",
                )
            self._record(fact)

    def settle(self, plan_id: str, outcome: Outcome) -> None:
        """Note how a started plan ended; nothing is refunded. Again with the same outcome changes nothing.

        Raises:
          BudgetError: the plan was never started, or settled otherwise.
        """
        with self._lock:
            if self._standing.outcomes.get(plan_id) is not outcome:
                self._record(Settled(plan_id=plan_id, outcome=outcome))

    # ---- what the site's own operator does -------------------------------------------
    def hold(self, run_id: str) -> None:
        """Let no plan of the run start until it is cleared; ``BudgetError`` for an unknown run."""
        with self._lock:
            if run_id not in self._standing.held:
                self._record(Held(run_id=run_id))

    def clear(self, run_id: str) -> None:
        """Let a held run go on within its grant. A plan that was cut off counts as failed and never starts again.

        Raises:
          BudgetError: the run is not held.
        """
        with self._lock:
            if run_id not in self.held():
                raise BudgetError("the run is not held at this site", hint="list the held runs")
            plans = tuple(plan for plan in self.unsettled() if self._standing.run_of[plan] == run_id)
            self._record(Cleared(run_id=run_id, plans=plans))

    def reconcile(self, grants: Iterable[tuple[str, PrivacyTerms]], heads: Iterable[str]) -> tuple[str, ...]:
        """Count what a witness knows and this ledger, being older than the truth, does not.

        Each such grant is spent for every unit, also beyond the budget. The heads count as known from here on. Every
        run that is known by now is closed: how much of it was really started is lost.

        Args:
          grants: run id and terms of all grants that the witness knows.
          heads: ledger heads that the witness holds.

        Returns:
          The run ids that were added. Nothing is written where the witness knows nothing new.
        """
        with self._lock:
            unknown = [(run_id, terms) for run_id, terms in grants if not self._standing.counts(run_id, terms)]
            strange = tuple(dict.fromkeys(head for head in heads if not self.knows(head)))
            added = tuple(Grant(run_id=run_id, quote=Quote.of(terms)) for run_id, terms in unknown)
            if added or strange:
                self._record(Reconciled(grants=added, heads=strange))
        return tuple(grant.run_id for grant in added)

    # ---- what can be seen --------------------------------------------------------------
    @property
    def budget(self) -> Budget:
        """Fixed when the ledger was first opened."""
        return self._standing.opened.budget

    @property
    def owner(self) -> str:
        """The fingerprint of the key of the site that opened the ledger."""
        return self._standing.opened.owner

    @property
    def head(self) -> str:
        """The digest of the last entry."""
        return self._journal.head

    @property
    def sequence(self) -> int:
        """The number of entries."""
        return self._standing.count

    def check_usable(self) -> None:
        """Raise where nothing more can be recorded."""
        self._journal.check_usable()

    def knows(self, head: str) -> bool:
        """Say whether a coordinator that holds this head saw this ledger's past, or was reconciled with it."""
        return self._journal.knows(head) or head in self._standing.heads

    def grants(self) -> tuple[Grant, ...]:
        """Every grant, oldest first; those of a witness are not among them."""
        with self._lock:
            return tuple(self._standing.grants.values())

    def held(self) -> tuple[str, ...]:
        """The runs that are held, by a failure, a crash, or their operator."""
        with self._lock:
            cut = (self._standing.run_of[plan] for plan in self.unsettled())
            return tuple(sorted(self._standing.held.union(cut)))

    def outcome(self, plan_id: str) -> Outcome | None:
        """How a plan ended here; None where it was never started or is not settled."""
        with self._lock:
            return self._standing.outcomes.get(plan_id)

    def unsettled(self) -> tuple[str, ...]:
        """Plans that had been started but not settled when the ledger was opened, and still are not.

        A caller that finds the finished reply of one stored may settle it as released, and the rest as failed.
        """
        with self._lock:
            return tuple(plan for plan in self._standing.unsettled() if plan in self._cut_off)

    def events(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was started, merged."""
        with self._lock:
            done = self._standing.done
            return merged(event for run, events in done.items() if scope in (run, LIFETIME) for event in events)

    def granted(self, scope: Scope) -> tuple[GaussianSum, ...]:
        """What was reserved, merged; what a witness added is in it."""
        with self._lock:
            grants = (*self._standing.grants.values(), *self._standing.witnessed)
            return merged(event for g in grants if scope in (g.run_id, LIFETIME) for event in g.quote.events)

    def spent(self, scope: Scope, *, delta: float) -> float:
        """The epsilon spent.

        For a run: of all events granted, started or not. When to stop is decided after seeing outputs, and a list of
        events that was shortened because of what came out is not a list fixed beforehand; only the granted one is.
        For ``LIFETIME``: by the filter's rule, of the unit that bore most.

        Args:
          scope: a run id, or ``LIFETIME``.
          delta: for ``LIFETIME`` under the rule of sums at least the sum of a unit's deltas.

        Raises:
          BudgetError: ``delta`` is too small.
        """
        if not isinstance(scope, Lifetime):
            return accounting.epsilon(self.granted(scope), delta=delta)
        with self._lock:
            borne = [self._standing.borne(history) for history in self._histories()]
        return max(self.budget.spent(quotes, delta=delta) for quotes in borne)

    # ---- within ------------------------------------------------------------------------
    def _record(self, fact: Fact) -> None:
        self._standing.check(fact)
        body = body_of(fact)
        if fact_of(body) != fact:  # what cannot be read back would make the ledger unreadable for ever
            raise BudgetError("a ledger entry would not come back as it is", hint="this is a fault of the program")
        self._journal.append(body)
        self._standing.apply(fact)

    def _known(self, terms: PrivacyTerms) -> Quote | None:
        with self._lock:
            grants = self._standing.grants.values()
            return next((grant.quote for grant in grants if grant.quote.terms == terms), None)

    def _histories(self) -> tuple[History, ...]:
        return ((), *self._units().histories())  # () is that of a unit nobody has seen yet

    def _units(self) -> Register:
        if self._register.digest != self._standing.register:  # just charged, or a disk error kept it from being read
            self._register.adopt(self._standing.register)
        return self._register

    def _bears(self, history: History, quote: Quote) -> bool:
        return self.budget.bears([*self._standing.borne(history), quote])


def _same_terms(held: Grant, quote: Quote) -> Grant:
    if held.quote.terms != quote.terms:
        raise BudgetError("the run already has a grant under other terms", hint="give a new run a new run id")
    return held
