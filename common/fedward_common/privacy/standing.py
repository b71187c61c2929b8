"""How a ledger stands: the fold of its facts. ``check`` says whether a fact may come next, ``apply`` takes it in.

Live and on replay the same code decides, so a ledger that is opened again stands where it stood. Nothing here writes.

Example:
    >>> from fedward_common.privacy.facts import Opened
    >>> from fedward_common.privacy.grants import Budget
    >>> Standing.of([Opened(budget=Budget(epsilon=1.0, delta=1e-5), owner="", key_check="")]).count
    1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from fedward_common.errors import BudgetError
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
)
from fedward_common.privacy.grants import Grant, Quote
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.privacy.spending import History

__all__ = ["Standing"]


class Standing:
    """Everything that follows from a ledger's facts. Read freely; only ``apply`` changes it.

    Attributes:
      count: how many facts there were.
      grants: by run id, oldest first.
      witnessed: grants that a witness added; every unit bears them.
      borne_by_all: runs that the data source as a whole bears.
      closed: runs of which no plan may ever start again.
      register: digest of the register of units that holds.
      run_of: the run of each started plan.
      done: the events that each run started, merged.
      outcomes: of settled plans.
      held: runs with a failure, or a hold, that was not cleared.
      heads: of other pasts, acknowledged when a witness was heard.
    """

    def __init__(self) -> None:
        """Nothing has happened."""
        self._opened: Opened | None = None
        self.count = 0
        self.grants: dict[str, Grant] = {}
        self.witnessed: list[Grant] = []
        self.borne_by_all: list[str] = []
        self.closed: set[str] = set()
        self.register = ""
        self.run_of: dict[str, str] = {}
        self._pending: dict[str, None] = {}  # ordered; a ledger asks for it in every round
        self.done: dict[str, tuple[GaussianSum, ...]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.held: set[str] = set()
        self.heads: set[str] = set()

    @classmethod
    def of(cls, facts: Iterable[Fact]) -> Self:
        """The standing after these facts.

        Raises:
          BudgetError: there is none, or one of them cannot follow those before it.
        """
        standing = cls()
        for fact in facts:
            standing.check(fact)
            standing.apply(fact)
        standing.opened  # noqa: B018  # refuses an empty ledger
        return standing

    @property
    def opened(self) -> Opened:
        """The opening fact, or ``BudgetError`` when there is none."""
        if self._opened is None:
            raise BudgetError("the ledger was never opened", hint="create it with its budget")
        return self._opened

    def unsettled(self) -> tuple[str, ...]:
        """Plans that were started and not settled."""
        return tuple(self._pending)

    def borne(self, history: History) -> list[Quote]:
        """What a unit with this history bears: what every unit bears, and its own."""
        runs = dict.fromkeys((*self.borne_by_all, *history))
        return [grant.quote for grant in (*(self.grants[run] for run in runs), *self.witnessed)]

    def counts(self, run_id: str, terms: PrivacyTerms) -> bool:
        """Say whether a grant of these terms to this run is counted already."""
        held = [self.grants[run_id]] if run_id in self.grants else []
        return any(g.quote.terms == terms for g in (*held, *(w for w in self.witnessed if w.run_id == run_id)))

    # ---- may it come next? -----------------------------------------------------------
    def check(self, fact: Fact) -> None:
        """Refuse a fact that cannot come next.

        Raises:
          BudgetError: it cannot; nothing was changed.
        """
        match fact:
            case Opened():
                _require(self._opened is None, "a ledger is opened twice", "restore a true copy")
            case Granted():
                self._check_granted(fact)
            case Started():
                self._check_started(fact)
            case Settled():
                self._check_settled(fact)
            case Held() | Cleared():
                self._check_held(fact)
            case Reconciled():
                self.opened  # noqa: B018  # nothing comes before the opening

    def _check_granted(self, fact: Granted) -> None:
        run_id, terms = fact.grant.run_id, fact.grant.quote.terms
        self.opened.budget.check_run(terms)
        _require(run_id not in self.grants, "a run is granted twice", "restore a true copy")
        _require(run_id not in self.closed, *CLOSED)
        _require(
            all(grant.quote.terms.unit is terms.unit for grant in self.grants.values()),
            "earlier grants protect another unit, whose losses do not add up with this one's",
            f"open another ledger, with data of its own, for the unit '{terms.unit.value}'",
        )

    def _check_started(self, fact: Started) -> None:
        _require(fact.run_id in self.grants, "a plan was started under an unknown grant", "reserve the run first")
        _require(fact.plan_id not in self.run_of, "a plan was started twice", "send the stored reply again")
        _require(bool(fact.events), "a plan was started without events", "name what it will do to the data")
        _require(fact.run_id not in self.closed, *CLOSED)
        _require(
            fact.run_id not in self.held,
            "the run is held: a plan of it failed after it had opened the data, or its operator holds it",
            "find out why, then let the site's operator clear the run",
        )
        allowed = {_kind(event): event.count for event in self.grants[fact.run_id].quote.events}
        _require(
            all(event.count <= allowed.get(_kind(event), 0) for event in self._done_with(fact)),
            "a plan's events go beyond what its run reserved",
            "the plan does not fit its terms",
        )

    def _check_settled(self, fact: Settled) -> None:
        _require(fact.plan_id in self.run_of, "a plan was settled that was never started", "start it first")
        held = self.outcomes.get(fact.plan_id)
        _require(held is None, f"a plan is already settled as {held}", "an outcome cannot be changed")

    def _check_held(self, fact: Held | Cleared) -> None:
        _require(fact.run_id in self.grants, "the run is unknown at this site", "list the runs of the ledger")
        if isinstance(fact, Held):
            _require(fact.run_id not in self.held, "a run is held twice", "restore a true copy")
            return
        cut_off = {plan for plan in self.unsettled() if self.run_of[plan] == fact.run_id}
        _require(bool(fact.plans) or fact.run_id in self.held, "a run is cleared that was not held", "hold it first")
        _require(cut_off.issuperset(fact.plans), "a plan is cleared that was not cut off", "restore a true copy")

    # ---- take it in ----------------------------------------------------------------------
    def apply(self, fact: Fact) -> None:
        """Take in a fact that was checked."""
        self.count += 1
        match fact:
            case Opened():
                self._opened = fact
            case Granted():
                self.grants[fact.grant.run_id] = fact.grant
                self.register = fact.register
                self.borne_by_all += [fact.grant.run_id] if fact.bearer is Bearer.SOURCE else []
            case Started():
                self.done[fact.run_id] = self._done_with(fact)
                self.run_of[fact.plan_id] = fact.run_id
                self._pending[fact.plan_id] = None
            case Settled():
                self._settle((fact.plan_id,), fact.outcome)
                self.held |= {self.run_of[fact.plan_id]} if fact.outcome is Outcome.FAILED else set()
            case Held():
                self.held.add(fact.run_id)
            case Cleared():
                self.held.discard(fact.run_id)
                self._settle(fact.plans, Outcome.FAILED)
            case Reconciled():
                self.witnessed += fact.grants
                self.heads.update(fact.heads)
                self.closed.update(self.grants, (grant.run_id for grant in fact.grants))

    def _settle(self, plans: tuple[str, ...], outcome: Outcome) -> None:
        for plan in plans:
            self.outcomes[plan] = outcome
            del self._pending[plan]

    def _done_with(self, fact: Started) -> tuple[GaussianSum, ...]:
        return merged((*self.done.get(fact.run_id, ()), *fact.events))


CLOSED = (
    "the run is closed: a witness knew more of it than this ledger, which had been rolled back",
    "ask the operator for a new run",
)


def _require(holds: bool, what: str, hint: str) -> None:
    if not holds:
        raise BudgetError(what, hint=hint)


def _kind(event: GaussianSum) -> tuple[str, float, float]:
    return event.side.value, event.sampling_rate, event.noise_multiplier
