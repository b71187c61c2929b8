from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from fedward_common.errors import BudgetError
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.events import GaussianSum
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget, Grant, Quote
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.journal import MemoryJournal
from fedward_common.privacy.ledger import LIFETIME, Ledger
from fedward_common.privacy.spending import MemoryRegister

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


def opened() -> tuple[Ledger, Grant]:
    ledger = Ledger.in_memory(BUDGET)
    return ledger, ledger.reserve(ledger.quote(TERMS), run_id="one")


def steps(grant: Grant, count: int) -> tuple[GaussianSum, ...]:
    return (replace(grant.quote.events[0], count=count),)


def full() -> Ledger:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=(*steps(grant, 2), replace(grant.quote.events[1], count=1)))
    ledger.settle("p0", Outcome.RELEASED)
    ledger.start(grant, "p1", events=steps(grant, 2))
    ledger.settle("p1", Outcome.FAILED)
    ledger.reserve(ledger.quote(TERMS), run_id="two")
    return ledger


def test_a_fresh_ledger_has_spent_nothing() -> None:
    ledger = Ledger.in_memory(BUDGET)
    assert ledger.budget == BUDGET
    assert (ledger.events(LIFETIME), ledger.granted(LIFETIME), ledger.spent(LIFETIME, delta=1e-9)) == ((), (), 0.0)
    assert ledger.spent("nobody", delta=1e-5) == 0.0
    assert (ledger.held(), ledger.unsettled(), ledger.grants(), ledger.sequence) == ((), (), (), 1)


def test_a_quote_changes_nothing_and_keeps_the_terms() -> None:
    ledger = Ledger.in_memory(BUDGET)
    before = ledger.export()
    quote = ledger.quote(TERMS)
    assert ledger.export() == before
    assert 4.0 * (1 - 2e-3) <= quote.epsilon <= 4.0
    assert [event.count for event in quote.events] == [10, 2]


def test_a_quote_that_does_not_follow_from_its_terms_is_refused() -> None:
    quote = Quote.of(TERMS)
    with pytest.raises(BudgetError, match="not those of its terms"):
        replace(quote, events=quote.events[:1])


def test_a_quote_that_costs_more_than_its_terms_promise_is_never_reserved() -> None:
    noise = Quote.of(TERMS).calibration
    quiet = replace(noise, noise_scale=noise.noise_scale / 2)
    ledger = Ledger.in_memory(BUDGET)
    with pytest.raises(BudgetError, match="more than its terms promise"):
        ledger.reserve(Quote(terms=TERMS, calibration=quiet, events=quiet.events(TERMS)), run_id="one")
    assert ledger.grants() == ()


def test_terms_that_the_ledger_knows_are_quoted_and_reserved_without_an_accountant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger.restore(opened()[0].export(), BUDGET)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an accountant was asked")

    monkeypatch.setattr("fedward_common.privacy.calibration.calibrate", never)
    monkeypatch.setattr("fedward_common.privacy.accounting.epsilon", never)
    assert ledger.reserve(ledger.quote(TERMS), run_id="two").quote == ledger.grants()[0].quote
    with pytest.raises(AssertionError, match="asked"):
        ledger.quote(replace(TERMS, epsilon=3.9))


def test_the_same_run_and_terms_give_the_same_grant() -> None:
    ledger, grant = opened()
    assert ledger.reserve(ledger.quote(TERMS), run_id="one") is grant
    assert len(ledger.export()) == 2


def test_other_terms_under_the_same_run_are_refused() -> None:
    ledger, _ = opened()
    with pytest.raises(BudgetError, match="other terms"):
        ledger.reserve(ledger.quote(replace(TERMS, clip_norm=2.0)), run_id="one")


@pytest.mark.parametrize("budget", [Budget(epsilon=7.9, delta=1.0), Budget(epsilon=99.0, delta=1.9e-5)])
def test_the_budget_is_a_filter_and_a_refused_reservation_changes_nothing(budget: Budget) -> None:
    ledger = Ledger.in_memory(budget)
    ledger.reserve(ledger.quote(TERMS), run_id="one")
    before = ledger.export()
    with pytest.raises(BudgetError, match="beyond the budget"):
        ledger.reserve(ledger.quote(TERMS), run_id="two")
    assert ledger.export() == before
    assert ledger.granted("two") == ()


def test_a_budget_can_be_filled_exactly() -> None:
    ledger = Ledger.in_memory(Budget(epsilon=40.0, delta=1e-4))
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
    changed = replace(grant, quote=Quote.of(replace(TERMS, clip_norm=2.0)))
    with pytest.raises(BudgetError, match="unknown grant"):
        ledger.start(changed, "p0", events=steps(grant, 1))
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
    assert len(ledger.export()) == 4


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
    again = Ledger.restore(entries, BUDGET)
    assert again.export() == ledger.export() == entries
    assert again.events(LIFETIME) == ledger.events(LIFETIME)
    assert again.spent(LIFETIME, delta=2e-5) == ledger.spent(LIFETIME, delta=2e-5)
    again.clear("one")
    with pytest.raises(BudgetError, match="twice"):
        again.start(again.reserve(again.quote(TERMS), run_id="one"), "p1", events=steps(again.grants()[0], 1))


def test_changing_an_export_does_not_change_the_ledger() -> None:
    ledger = full()
    ledger.export()[1]["body"]["quote"]["terms"]["epsilon"] = 0.1
    assert ledger.export()[1]["body"]["quote"]["terms"]["epsilon"] == 4.0


def test_entries_hold_no_computed_epsilon() -> None:
    for entry in full().export():
        body = entry["body"]
        body.get("quote", {}).pop("terms", None)  # the target is a promise
        body.pop("budget", None)  # so is the limit
        assert "epsilon" not in json.dumps(body)


Edit = Callable[[list[dict[str, Any]]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.pop(0),
        lambda e: e.pop(1),
        lambda e: e.append(e[0]),
        lambda e: e.append(e[-1]),
        lambda e: e.reverse(),
        lambda e: e.append("x"),
        lambda e: e[1].update(sequence=3),
        lambda e: e[1].update(at=1.0),
        lambda e: e[1].update(at="0"),
        lambda e: e[1].pop("digest"),
        lambda e: e[1]["body"].update(run_id="three"),
        lambda e: e[1]["body"]["quote"]["calibration"].update(noise_scale=0.5),
        lambda e: e[3]["body"].update(outcome="failed"),
    ],
)
def test_a_changed_export_is_refused(edit: Edit) -> None:
    entries = full().export()
    edit(entries)
    with pytest.raises(BudgetError):
        Ledger.restore(entries, BUDGET)


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b.pop(0),
        lambda b: b.pop(1),
        lambda b: b.append(b[0]),
        lambda b: b.append(b[1]),
        lambda b: b.append(b[2]),
        lambda b: b.append(b[-2]),
        lambda b: b.append({"entry": "refund", "schema": 2}),
        lambda b: b.append({"entry": "hold", "run_id": "nobody", "schema": 2}),
        lambda b: b.append({"entry": "clear", "run_id": "two", "plans": [], "schema": 2}),
        lambda b: b.append({"entry": "clear", "run_id": "one", "plans": ["p0"], "schema": 2}),
        lambda b: b[1].update(schema=1),
        lambda b: b[1].pop("schema"),
        lambda b: b[1].pop("run_id"),
        lambda b: b[1].update(run_id=7),
        lambda b: b[1].update(note="x"),
        lambda b: b[1].update(bearer="nobody"),
        lambda b: b[1]["quote"]["calibration"].update(noise_scale=0.5),
        lambda b: b[2]["events"][0].update(count=11),
        lambda b: b[2]["events"][0].update(count="1"),
        lambda b: b[2].update(run_id="three"),
        lambda b: b[3].update(outcome="refunded"),
    ],
)
def test_a_chain_of_entries_that_cannot_follow_each_other_is_refused(edit: Edit) -> None:
    """Also where whoever edited it has computed the digests anew."""
    bodies = [entry["body"] for entry in full().export()]
    edit(bodies)
    with pytest.raises(BudgetError):
        Ledger.open(chained(bodies), MemoryRegister())


def chained(bodies: list[dict[str, Any]]) -> MemoryJournal:
    journal = MemoryJournal()
    for body in bodies:
        journal.append(body)
    return journal


def test_another_budget_than_the_one_it_was_opened_with_is_refused() -> None:
    with pytest.raises(BudgetError, match="another budget"):
        Ledger.restore(full().export(), Budget(epsilon=9.0, delta=2e-5))


def test_nothing_restores_to_a_fresh_ledger() -> None:
    assert Ledger.restore([], BUDGET).export() == Ledger.in_memory(BUDGET).export()


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


@pytest.mark.parametrize("run_id", ["", "x" * 257])
def test_ids_are_checked(run_id: str) -> None:
    ledger, grant = opened()
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.quote(TERMS), run_id=run_id)
    with pytest.raises(BudgetError):
        ledger.start(grant, run_id, events=steps(grant, 1))


# ---- opening ---------------------------------------------------------------------------
def test_a_ledger_is_opened_once_and_belongs_to_its_owner() -> None:
    journal = MemoryJournal()
    with pytest.raises(BudgetError, match="never opened"):
        Ledger.open(journal, MemoryRegister())
    Ledger.create(journal, MemoryRegister(), budget=BUDGET, owner="ab")
    with pytest.raises(BudgetError, match="opened before"):
        Ledger.create(journal, MemoryRegister(), budget=BUDGET)
    assert Ledger.open(journal, MemoryRegister(), owner="ab").owner == "ab"
    with pytest.raises(BudgetError, match="another site"):
        Ledger.open(journal, MemoryRegister(), owner="cd")


def test_another_digest_key_is_refused() -> None:
    class Keyed(MemoryRegister):
        key_check = "k"

    journal = MemoryJournal()
    Ledger.create(journal, Keyed(), budget=BUDGET)
    Ledger.open(journal, Keyed())
    with pytest.raises(BudgetError, match="digest key"):
        Ledger.open(journal, MemoryRegister())


def test_a_lost_register_is_refused() -> None:
    journal, register = MemoryJournal(), MemoryRegister()
    ledger = Ledger.create(journal, register, budget=BUDGET)
    ledger.reserve(ledger.quote(TERMS), run_id="one", units=["a"])
    Ledger.open(journal, register)
    with pytest.raises(BudgetError, match="register of units"):
        Ledger.open(journal, MemoryRegister())


# ---- limits of one run -------------------------------------------------------------------
@pytest.mark.parametrize("limit", [{"run_epsilon": 3.9}, {"run_delta": 0.9e-5}, {"unit": Unit.PATIENT}])
def test_what_one_run_may_promise_is_limited(limit: dict[str, Any]) -> None:
    ledger = Ledger.in_memory(replace(BUDGET, **limit))
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.quote(TERMS), run_id="one")
    assert ledger.sequence == 1


# ---- spending belongs to units ---------------------------------------------------------------
def test_a_unit_that_cannot_bear_a_run_is_left_out_and_the_others_go_on() -> None:
    ledger = Ledger.in_memory(BUDGET)
    ledger.reserve(ledger.quote(TERMS), run_id="one", units=["a", "b"])
    ledger.reserve(ledger.quote(TERMS), run_id="two", units=["b", "c"])
    ledger.reserve(ledger.quote(TERMS), run_id="three", units=["c", "a", "b", "d"])
    units = ["a", "b", "c", "d", "e"]
    assert ledger.taking_part("one", units).tolist() == [True, True, False, False, False]
    assert ledger.taking_part("three", units).tolist() == [True, False, True, True, False]
    assert ledger.spent(LIFETIME, delta=2e-5) == 2 * ledger.spent("one", delta=1e-5)
    ledger.reserve(ledger.quote(TERMS), run_id="four", units=["a", "b", "c"])  # granted to nobody: noise alone
    assert ledger.taking_part("four", units).tolist() == [False] * 5
    assert ledger.spent(LIFETIME, delta=2e-5) == 2 * ledger.spent("one", delta=1e-5)
    with pytest.raises(BudgetError, match="beyond the budget"):  # not even a new unit could bear it
        ledger.reserve(ledger.quote(replace(TERMS, epsilon=8.1)), run_id="five", units=["e"])


def test_a_source_without_ids_bears_what_any_of_its_units_bears() -> None:
    ledger = Ledger.in_memory(BUDGET)
    ledger.reserve(ledger.quote(TERMS), run_id="one", units=["a"])
    ledger.reserve(ledger.quote(TERMS), run_id="two")
    assert ledger.taking_part("two", ["a", "new"]).all()
    quote = ledger.quote(TERMS)
    assert not ledger.fits(quote)
    with pytest.raises(BudgetError, match="beyond the budget"):
        ledger.reserve(quote, run_id="three")
    ledger.reserve(quote, run_id="three", units=["a", "b"])
    assert ledger.taking_part("three", ["a", "b"]).tolist() == [False, True]


def test_units_that_come_later_do_not_take_part() -> None:
    ledger = Ledger.in_memory(BUDGET)
    grant = ledger.reserve(ledger.quote(TERMS), run_id="one", units=["a"])
    assert ledger.reserve(ledger.quote(TERMS), run_id="one", units=["a", "b"]) is grant
    assert ledger.taking_part("one", ["b", "a"]).tolist() == [False, True]


# ---- hold and clear ----------------------------------------------------------------------------
def test_a_failed_plan_holds_its_run_until_it_is_cleared() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    ledger.settle("p0", Outcome.FAILED)
    assert ledger.held() == ("one",)
    with pytest.raises(BudgetError, match="held"):
        ledger.start(grant, "p1", events=steps(grant, 1))
    ledger.clear("one")
    ledger.start(grant, "p1", events=steps(grant, 1))
    with pytest.raises(BudgetError, match="twice"):
        ledger.start(grant, "p0", events=steps(grant, 1))
    with pytest.raises(BudgetError, match="not held"):
        ledger.clear("one")


def test_a_plan_that_was_cut_off_holds_its_run_and_clearing_spends_it() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    assert (ledger.held(), ledger.unsettled()) == ((), ())
    again = Ledger.restore(ledger.export(), BUDGET)
    assert (again.held(), again.unsettled()) == (("one",), ("p0",))
    with pytest.raises(BudgetError, match="cut off"):
        again.start(grant, "p1", events=steps(grant, 1))
    again.clear("one")
    assert (again.held(), again.unsettled()) == ((), ())
    with pytest.raises(BudgetError, match="already settled as failed"):
        again.settle("p0", Outcome.RELEASED)
    again.start(grant, "p1", events=steps(grant, 9))
    with pytest.raises(BudgetError, match="beyond what its run reserved"):
        again.start(grant, "p2", events=steps(grant, 1))
    assert Ledger.restore(again.export(), BUDGET).unsettled() == ("p1",)


def test_a_plan_that_was_cut_off_after_its_reply_was_stored_can_be_settled() -> None:
    ledger, grant = opened()
    ledger.start(grant, "p0", events=steps(grant, 1))
    again = Ledger.restore(ledger.export(), BUDGET)
    again.settle("p0", Outcome.RELEASED)
    assert again.held() == ()
    again.start(grant, "p1", events=steps(grant, 1))


def test_a_run_can_be_held_by_hand() -> None:
    ledger, grant = opened()
    ledger.hold("one")
    ledger.hold("one")
    assert ledger.sequence == 3
    with pytest.raises(BudgetError, match="operator"):
        ledger.start(grant, "p0", events=steps(grant, 1))
    ledger.clear("one")
    ledger.start(grant, "p0", events=steps(grant, 1))
    for act in (ledger.hold, ledger.clear):
        with pytest.raises(BudgetError):
            act("nobody")


# ---- heads and witnesses ---------------------------------------------------------------------
def test_a_head_of_the_past_is_known_and_a_strange_one_is_not() -> None:
    ledger, _ = opened()
    head = ledger.head
    ledger.hold("one")
    assert ledger.knows(head)
    assert ledger.knows("")
    assert not ledger.knows("0" * 64)


def rolled_back() -> tuple[Ledger, Ledger, Grant]:
    """What a ledger was restored to, what it really was, and the grant that both know."""
    true, grant = opened()
    old = Ledger.restore(true.export(), BUDGET)
    true.reserve(true.quote(replace(TERMS, epsilon=3.0)), run_id="two")
    return old, true, grant


def test_what_a_witness_knows_counts_as_spent_and_such_runs_never_start_again() -> None:
    old, true, grant = rolled_back()
    assert not old.knows(true.head)
    witnessed = [(held.run_id, held.quote.terms) for held in true.grants()]
    assert old.reconcile(witnessed, [true.head]) == ("two",)
    assert old.knows(true.head)
    assert old.spent(LIFETIME, delta=2e-5) == true.spent(LIFETIME, delta=2e-5)
    assert old.granted("two") == true.granted("two")
    for run_id in ("one", "two"):
        with pytest.raises(BudgetError, match="closed"):
            old.start(old.reserve(grant.quote, run_id=run_id), "p0", events=steps(grant, 1))
    assert old.reconcile(witnessed, [true.head]) == ()
    again = Ledger.restore(old.export(), BUDGET)
    assert again.knows(true.head)
    assert again.spent(LIFETIME, delta=2e-5) == true.spent(LIFETIME, delta=2e-5)


def test_what_a_witness_knows_counts_beyond_the_budget_and_for_every_unit() -> None:
    ledger = Ledger.in_memory(BUDGET)
    ledger.reconcile([(f"run-{number}", TERMS) for number in range(3)], [])
    assert ledger.spent(LIFETIME, delta=3e-5) > BUDGET.epsilon
    with pytest.raises(BudgetError, match="beyond the budget"):
        ledger.reserve(ledger.quote(replace(TERMS, epsilon=1.0)), run_id="one", units=["never seen"])


def test_a_witness_that_knows_other_terms_of_a_run_adds_them() -> None:
    ledger, _ = opened()
    assert ledger.reconcile([("one", replace(TERMS, epsilon=3.0))], []) == ("one",)
    assert ledger.spent(LIFETIME, delta=2e-5) > 6.9


@pytest.mark.parametrize("heads", [["x" * 257], [str(number) for number in range(5000)], ["a", 7]])
def test_what_could_not_be_read_back_is_never_written(heads: list[Any]) -> None:
    ledger, grant = opened()
    with pytest.raises(BudgetError):
        ledger.reconcile([], heads)
    ledger.start(grant, "p0", events=steps(grant, 1))
    assert Ledger.restore(ledger.export(), BUDGET).sequence == 3


def test_a_witness_that_knows_nothing_new_adds_nothing() -> None:
    ledger, grant = opened()
    before = ledger.export()
    assert ledger.reconcile([("one", TERMS)], [ledger.head, ""]) == ()
    assert ledger.export() == before
    ledger.start(grant, "p0", events=steps(grant, 1))


# ---- the other rule ----------------------------------------------------------------------------
def test_renyi_losses_at_one_order_admit_more_small_runs_than_the_sum() -> None:
    terms = replace(TERMS, epsilon=0.5, delta=1e-6)
    counts = {}
    for order in (None, 16):
        ledger = Ledger.in_memory(Budget(epsilon=3.0, delta=1e-5, renyi_order=order))
        with pytest.raises(BudgetError, match="beyond the budget"):
            for run in range(100):
                ledger.reserve(ledger.quote(terms), run_id=str(run))
        counts[order] = len(ledger.grants())
        assert ledger.spent(LIFETIME, delta=1e-5) <= 3.0
        # never below the truth: what all events cost had they been fixed beforehand
        assert ledger.spent(LIFETIME, delta=1e-5) >= epsilon(ledger.granted(LIFETIME), delta=1e-5)
    assert counts[None] == 6
    assert counts[16] is not None and counts[16] > 10
