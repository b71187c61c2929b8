"""The ledger against a model of a dozen lines, over random lives: reservations, rounds, crashes, witnesses."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedward_common.errors import BudgetError
from fedward_common.privacy.events import GaussianSum
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget, Quote
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.journal import MemoryJournal
from fedward_common.privacy.ledger import LIFETIME, Ledger
from fedward_common.privacy.spending import MemoryRegister

BUDGET = Budget(epsilon=8.0, delta=1e-3)
ROUNDS = 3
UNITS = ("a", "b", "c")
NEW = "never seen"
RUNS = st.sampled_from(["r1", "r2", "r3", "r4", "r5"])
PLANS = st.sampled_from([f"p{number}" for number in range(8)])
EPSILONS = st.sampled_from([2.0, 3.0])
WHO = st.one_of(st.none(), st.lists(st.sampled_from(UNITS), max_size=3))


@cache
def quoted(target: float) -> Quote:
    stage = StageTerms(name="s", sampling_rate=1.0, rounds=ROUNDS, local_steps=1, noise_ratio=1.0)
    metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    return Quote.of(
        PrivacyTerms(
            epsilon=target,
            delta=1e-5,
            unit=Unit.RECORD,
            clip_norm=1.0,
            max_records_per_unit=1,
            stages=(stage,),
            metrics=metrics,
        )
    )


class Lives(RuleBasedStateMachine):
    """What must be: who bears what, how often each run started, and who may start."""

    def __init__(self) -> None:
        super().__init__()
        self.journal, self.register = MemoryJournal(), MemoryRegister()
        self.ledger = Ledger.create(self.journal, self.register, budget=BUDGET)
        self.granted: dict[str, float] = {}
        self.bearers: dict[str, set[str]] = {}
        self.witnessed: list[tuple[str, float]] = []
        self.started: dict[str, str] = {}
        self.open: set[str] = set()
        self.cut_off: set[str] = set()
        self.held: set[str] = set()
        self.closed: set[str] = set()
        self.written = 1

    def expect(self, allowed: bool, act: object) -> bool:
        """Do it, or see it refused; a refusal writes nothing."""
        assert callable(act)
        if allowed:
            act()
            self.written += 1
        else:
            with pytest.raises(BudgetError):
                act()
        return allowed

    def spent(self, unit: str) -> float:
        own = sum(self.granted[run] for run, units in self.bearers.items() if unit in units)
        return own + sum(target for _, target in self.witnessed)

    @rule(run=RUNS, goal=EPSILONS, who=WHO)
    def reserve(self, run: str, goal: float, who: list[str] | None) -> None:
        if run in self.granted:
            if self.granted[run] == goal:
                self.ledger.reserve(quoted(goal), run_id=run, units=who)
            else:
                with pytest.raises(BudgetError, match="other terms"):
                    self.ledger.reserve(quoted(goal), run_id=run, units=who)
            return
        able = {unit for unit in (*UNITS, NEW) if self.spent(unit) + goal <= BUDGET.epsilon}
        bearers = set(who) & able if who is not None else able
        # by unit it is enough that a new one could bear it; whether any of these can is not told
        allowed = (NEW in able if who is not None else len(able) == 4) and run not in self.closed
        if self.expect(allowed, lambda: self.ledger.reserve(quoted(goal), run_id=run, units=who)):
            self.granted[run], self.bearers[run] = goal, bearers

    @rule(run=RUNS, plan=PLANS, count=st.integers(1, 2))
    def start(self, run: str, plan: str, count: int) -> None:
        grants = {grant.run_id: grant for grant in self.ledger.grants()}
        if run not in grants:
            return
        before = sum(event.count for event in self.ledger.events(run))
        stopped = run in self.held | self.closed | {self.started[each] for each in self.cut_off}
        allowed = plan not in self.started and not stopped and before + count <= ROUNDS
        events: tuple[GaussianSum, ...] = (replace(grants[run].quote.events[0], count=count),)
        if self.expect(allowed, lambda: self.ledger.start(grants[run], plan, events=events)):
            self.started[plan] = run
            self.open.add(plan)
            assert sum(event.count for event in self.ledger.events(run)) == before + count

    @rule(plan=PLANS, outcome=st.sampled_from(Outcome))
    def settle(self, plan: str, outcome: Outcome) -> None:
        if plan in self.started and plan not in self.open | self.cut_off:
            return
        if self.expect(plan in self.started, lambda: self.ledger.settle(plan, outcome)):
            self.open.discard(plan)
            self.cut_off.discard(plan)
            self.held |= {self.started[plan]} if outcome is Outcome.FAILED else set()

    @rule(run=RUNS)
    def hold(self, run: str) -> None:
        if run not in self.held and self.expect(run in self.granted, lambda: self.ledger.hold(run)):
            self.held.add(run)

    @rule(run=RUNS)
    def clear(self, run: str) -> None:
        cut = {plan for plan in self.cut_off if self.started[plan] == run}
        if self.expect(bool(cut) or run in self.held, lambda: self.ledger.clear(run)):
            self.held.discard(run)
            self.cut_off -= cut

    @rule()
    def crash(self) -> None:
        self.ledger = Ledger.open(self.journal, self.register)
        self.cut_off |= self.open
        self.open = set()

    @rule(run=RUNS, goal=EPSILONS)
    def reconcile(self, run: str, goal: float) -> None:
        known = self.granted.get(run) == goal or (run, goal) in self.witnessed
        added = self.ledger.reconcile([(run, quoted(goal).terms)], [self.ledger.head])
        assert added == (() if known else (run,))
        if not known:
            self.witnessed.append((run, goal))
            self.closed |= {run, *self.granted}
            self.written += 1

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        assert self.ledger.sequence == self.written == len(self.journal.entries())
        assert set(self.ledger.unsettled()) == self.cut_off
        assert set(self.ledger.held()) == self.held | {self.started[plan] for plan in self.cut_off}
        for run, bearers in self.bearers.items():
            assert set(self.taking(run)) == (set(UNITS) if NEW in bearers else bearers)
        worst = max(self.spent(unit) for unit in (*UNITS, NEW))
        assert 0.99 * worst <= self.ledger.spent(LIFETIME, delta=1e-3) <= worst + 1e-9
        assert worst <= BUDGET.epsilon or self.witnessed

    def taking(self, run: str) -> list[str]:
        return [unit for unit, takes in zip(UNITS, self.ledger.taking_part(run, UNITS), strict=True) if takes]


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
