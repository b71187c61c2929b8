from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from fedward_common.errors import BudgetError, PrivacyError
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.events import GaussianSum
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.ledger import LIFETIME, Budget, Grant, Ledger, MemoryLedger, Outcome, Quote

STAGE = StageTerms(name="head", sampling_rate=1.0, rounds=5, local_steps=2, noise_ratio=1.0)
TERMS = PrivacyTerms(
    epsilon=4.0,
    delta=1e-5,
    unit=Unit.RECORD,
    clip_norm=1.0,
    max_records_per_unit=1,
    stages=(STAGE,),
    metrics=MetricTerms(evaluations=2, share=0.5, validation_fraction=0.1),
)
BUDGET = Budget(epsilon=8.0, delta=2e-5)


def opened() -> tuple[MemoryLedger, Grant]:
    ledger = MemoryLedger(BUDGET)
    return ledger, ledger.reserve(ledger.quote(TERMS), run_id="one")


def steps(grant: Grant, count: int) -> tuple[GaussianSum, ...]:
    return (replace(grant.quote.events[0], count=count),)


def full() -> MemoryLedger:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=(*steps(grant, 2), replace(grant.quote.events[1], count=1)))
    ledger.settle("p0", Outcome.RELEASED)
    ledger.start(grant, "p1", events=steps(grant, 2))
    ledger.settle("p1", Outcome.FAILED)
    ledger.reserve(ledger.quote(TERMS), run_id="two")
    return ledger


def test_a_memory_ledger_is_a_ledger() -> None:
    ledger: Ledger = MemoryLedger(BUDGET)
    assert ledger.budget == BUDGET
    assert (ledger.events(LIFETIME), ledger.granted(LIFETIME), ledger.spent(LIFETIME, delta=1e-9)) == ((), (), 0.0)
    assert ledger.spent("nobody", delta=1e-5) == 0.0


def test_a_quote_changes_nothing_and_keeps_the_terms() -> None:
    ledger = MemoryLedger(BUDGET)
    quote = ledger.quote(TERMS)
    assert ledger.export() == []
    assert 4.0 * (1 - 2e-3) <= quote.epsilon <= 4.0
    assert [event.count for event in quote.events] == [10, 2]


def test_a_quote_that_does_not_follow_from_its_terms_is_refused() -> None:
    quote = Quote.of(TERMS)
    with pytest.raises(BudgetError, match="not those of its terms"):
        replace(quote, events=quote.events[:1])
    quiet = replace(quote.calibration, noise_scale=quote.calibration.noise_scale / 2)
    with pytest.raises(BudgetError, match="more than its terms promise"):
        Quote(terms=TERMS, calibration=quiet, events=quiet.events(TERMS))


def test_the_same_run_and_terms_give_the_same_grant() -> None:
    ledger, grant = opened()
    assert ledger.reserve(ledger.quote(TERMS), run_id="one") is grant
    assert len(ledger.export()) == 1


def test_other_terms_under_the_same_run_are_refused() -> None:
    ledger, _ = opened()
    with pytest.raises(BudgetError, match="other terms"):
        ledger.reserve(ledger.quote(replace(TERMS, clip_norm=2.0)), run_id="one")


@pytest.mark.parametrize("budget", [Budget(epsilon=7.9, delta=1.0), Budget(epsilon=99.0, delta=1.9e-5)])
def test_the_budget_is_a_filter_and_a_refused_reservation_changes_nothing(budget: Budget) -> None:
    ledger = MemoryLedger(budget)
    ledger.reserve(ledger.quote(TERMS), run_id="one")
    before = ledger.export()
    with pytest.raises(BudgetError, match="beyond the budget"):
        ledger.reserve(ledger.quote(TERMS), run_id="two")
    assert ledger.export() == before
    assert ledger.granted("two") == ()


def test_a_budget_can_be_filled_exactly() -> None:
    ledger = MemoryLedger(Budget(epsilon=40.0, delta=1e-4))
    for run in range(10):
        ledger.reserve(ledger.quote(TERMS), run_id=str(run))
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.quote(TERMS), run_id="eleventh")


def test_another_unit_is_refused() -> None:
    ledger, _ = opened()
    with pytest.raises(BudgetError, match="another unit"):
        ledger.reserve(ledger.quote(replace(TERMS, unit=Unit.PATIENT)), run_id="two")


def test_nothing_starts_that_was_not_reserved() -> None:
    ledger, grant = opened()
    stranger = Grant(run_id="two", quote=grant.quote)
    with pytest.raises(BudgetError, match="unknown grant"):
        ledger.start(stranger, "p0", events=steps(grant, 1))
    with pytest.raises(BudgetError, match="without events"):
        ledger.start(grant, "p0", events=())
    other = replace(grant.quote.events[0], noise_multiplier=99.0, count=1)
    for events in (steps(grant, 11), (other,), (*steps(grant, 6), *steps(grant, 5))):
        with pytest.raises(BudgetError, match="beyond what its run reserved"):
            ledger.start(grant, "p0", events=events)
    assert ledger.events(LIFETIME) == ()


def test_starts_add_up_to_the_grant_and_no_further() -> None:
    ledger, grant = opened()
    for plan in range(5):
        ledger.start(grant, f"p{plan}", events=steps(grant, 2))
    with pytest.raises(BudgetError):
        ledger.start(grant, "p5", events=steps(grant, 1))
    assert ledger.events("one") == steps(grant, 10)


def test_a_plan_starts_once() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    with pytest.raises(BudgetError, match="twice"):
        ledger.start(grant, "p0", events=steps(grant, 1))


@pytest.mark.parametrize("outcome", Outcome)
def test_nothing_is_refunded_whatever_the_outcome(outcome: Outcome) -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 3))
    before = (ledger.events("one"), ledger.spent("one", delta=1e-5), ledger.spent(LIFETIME, delta=1e-5))
    ledger.settle("p0", outcome)
    ledger.settle("p0", outcome)
    assert (ledger.events("one"), ledger.spent("one", delta=1e-5), ledger.spent(LIFETIME, delta=1e-5)) == before
    assert len(ledger.export()) == 3


def test_an_outcome_cannot_be_changed_or_invented() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    ledger.settle("p0", Outcome.FAILED)
    with pytest.raises(BudgetError, match="already settled"):
        ledger.settle("p0", Outcome.RELEASED)
    with pytest.raises(BudgetError, match="never started"):
        ledger.settle("p1", Outcome.FAILED)


def test_spent_counts_what_was_granted_not_what_was_started() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    assert ledger.spent("one", delta=1e-5) == grant.quote.epsilon == epsilon(ledger.granted("one"), delta=1e-5)


def test_lifetime_is_the_sum_of_the_grants() -> None:
    ledger = full()
    assert ledger.spent(LIFETIME, delta=2e-5) == 2 * ledger.spent("one", delta=1e-5)
    assert [event.count for event in ledger.granted(LIFETIME)] == [20, 4]
    assert [event.count for event in ledger.events(LIFETIME)] == [4, 1]
    with pytest.raises(BudgetError, match="below the sum"):
        ledger.spent(LIFETIME, delta=1e-5)


def test_a_run_called_lifetime_is_a_run() -> None:
    ledger, _ = opened()
    assert ledger.granted("lifetime") == ()


def test_export_restores_to_an_equal_ledger() -> None:
    ledger = full()
    entries = json.loads(json.dumps(ledger.export()))
    again = MemoryLedger.restore(entries, BUDGET)
    assert again.export() == ledger.export() == entries
    assert again.events(LIFETIME) == ledger.events(LIFETIME)
    assert again.spent(LIFETIME, delta=2e-5) == ledger.spent(LIFETIME, delta=2e-5)
    with pytest.raises(BudgetError, match="twice"):
        again.start(again.reserve(again.quote(TERMS), run_id="one"), "p1", events=ledger.events("one"))


def test_changing_an_export_does_not_change_the_ledger() -> None:
    ledger = full()
    ledger.export()[0]["quote"]["terms"]["epsilon"] = 0.1
    assert ledger.export()[0]["quote"]["terms"]["epsilon"] == 4.0


def test_entries_hold_no_computed_epsilon() -> None:
    for entry in full().export():
        entry.get("quote", {}).pop("terms", None)  # the target is a promise
        assert "epsilon" not in json.dumps(entry)


Edit = Callable[[list[dict[str, Any]]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.pop(0),
        lambda e: e.pop(1),
        lambda e: e.append(e[0]),
        lambda e: e.append(e[-1]),
        lambda e: e.append(e[2]),
        lambda e: e.reverse(),
        lambda e: e.append("x"),
        lambda e: e.append({"entry": "refund", "schema": 1}),
        lambda e: e[0].update(schema=2),
        lambda e: e[0].pop("run_id"),
        lambda e: e[0].update(run_id=7),
        lambda e: e[0].update(note="x"),
        lambda e: e[0]["quote"]["calibration"].update(noise_scale=0.5),
        lambda e: e[0]["quote"]["terms"].update(epsilon=0.5),
        lambda e: e[1]["events"][0].update(count=11),
        lambda e: e[1]["events"][0].update(count="1"),
        lambda e: e[1].update(run_id="three"),
        lambda e: e[2].update(outcome="refunded"),
    ],
)
def test_a_changed_export_is_refused(edit: Edit) -> None:
    entries = full().export()
    edit(entries)
    with pytest.raises(BudgetError):
        MemoryLedger.restore(entries, BUDGET)


def test_a_smaller_budget_refuses_the_entries() -> None:
    with pytest.raises(BudgetError):
        MemoryLedger.restore(full().export(), Budget(epsilon=7.0, delta=1.0))


def test_threads_cannot_overspend() -> None:
    ledger, grant = opened()

    def start(plan: int) -> bool:
        try:
            ledger.start(grant, str(plan), events=steps(grant, 1))
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(40))) == 10
    assert ledger.events("one") == steps(grant, 10)


@pytest.mark.parametrize("numbers", [{"epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.5}])
def test_a_budget_is_checked(numbers: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        replace(BUDGET, **numbers)


@pytest.mark.parametrize("run_id", ["", "x" * 257])
def test_ids_are_checked(run_id: str) -> None:
    ledger, grant = opened()
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.quote(TERMS), run_id=run_id)
    with pytest.raises(BudgetError):
        ledger.start(grant, run_id, events=steps(grant, 1))
