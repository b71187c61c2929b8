from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from fedward_common.errors import BudgetError, MalformedMessage, PrivacyError
from fedward_common.privacy import accounting
from fedward_common.privacy.accounting import epsilon, renyi_loss
from fedward_common.privacy.grants import Budget, Filter, Grant, Quote
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit

TERMS = PrivacyTerms(
    epsilon=2.0,
    delta=1e-5,
    unit=Unit.RECORD,
    clip_norm=1.0,
    max_records_per_unit=1,
    stages=(StageTerms(name="head", sampling_rate=1.0, rounds=5, local_steps=2, noise_ratio=1.0),),
    metrics=MetricTerms(evaluations=2, share=0.5, validation_fraction=0.1),
)
QUOTE = Quote.of(TERMS)
BUDGET = Budget(epsilon=8.0, delta=1e-4)


@pytest.mark.parametrize(
    "numbers",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.5},
        {"run_epsilon": 0.0},
        {"run_delta": -1.0},
        {"renyi_order": 1},
        {"renyi_order": 2.5},
        {"renyi_order": True},
        {"renyi_order": 513},
        {"renyi_order": 2},  # at delta 1e-4 even nothing at all converts to epsilon 7.8
        {"renyi_order": 3, "epsilon": 3.0},
    ],
)
def test_a_budget_is_checked(numbers: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(BUDGET, **({"epsilon": 7.0} | numbers))


@pytest.mark.parametrize(
    "budget",
    [
        BUDGET,
        replace(BUDGET, unit=Unit.PATIENT, run_epsilon=4, run_delta=1e-5),
        replace(BUDGET, renyi_order=16),
    ],
)
def test_a_budget_survives_json(budget: Budget) -> None:
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


@pytest.mark.parametrize(
    "edit", [{"filter": "pld"}, {"filter": "rdp"}, {"unit": "site"}, {"epsilon": "8"}, {"epsilon": -8.0}, {"more": 1}]
)
def test_a_malformed_budget_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        Budget.from_json({**BUDGET.to_json(), **edit})


def test_grants_add_up_to_the_budget_and_no_further() -> None:
    assert BUDGET.filter is Filter.SUM
    assert BUDGET.bears([QUOTE] * 4)
    assert not BUDGET.bears([QUOTE] * 5)
    assert not replace(BUDGET, delta=3.9e-5).bears([QUOTE] * 4)
    assert Budget(epsilon=20.0, delta=1e-4).bears([QUOTE] * 10)  # ten times 1e-5, in floating point


def test_the_rule_of_sums_asks_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object, **__: object) -> float:
        raise AssertionError("an accountant ran")

    monkeypatch.setattr(accounting, "epsilon", boom)
    assert BUDGET.bears([QUOTE])


def test_spent_is_computed_from_events() -> None:
    assert BUDGET.spent([], delta=1e-9) == 0.0
    assert BUDGET.spent([QUOTE, QUOTE], delta=2e-5) == 2 * epsilon(QUOTE.events, delta=1e-5) < 4.0
    with pytest.raises(BudgetError, match="below the sum"):
        BUDGET.spent([QUOTE, QUOTE], delta=1e-5)


@pytest.mark.parametrize("order", [8, 16, 64])
def test_the_renyi_rule_is_a_bound_at_its_order(order: int) -> None:
    """Canonne et al. 2020, proposition 12, on the sum of the losses; never below what PLD says of all events."""
    budget = replace(BUDGET, renyi_order=order)
    assert budget.filter is Filter.RENYI
    for count in (1, 3, 9):
        loss = count * renyi_loss(QUOTE.events, order=order)
        expected = loss + math.log((order - 1) / order) - (math.log(1e-4) + math.log(order)) / (order - 1)
        spent = budget.spent([QUOTE] * count, delta=1e-4)
        assert spent == pytest.approx(max(0.0, expected), rel=1e-12)
        assert spent >= epsilon(QUOTE.events * count, delta=1e-4)
        assert budget.bears([QUOTE] * count) == (spent <= 8.0)


def test_what_one_run_may_promise() -> None:
    BUDGET.check_run(TERMS)
    replace(BUDGET, run_epsilon=2.0, run_delta=1e-5, unit=Unit.RECORD).check_run(TERMS)
    for limit in ({"run_epsilon": 1.9}, {"run_delta": 0.9e-5}, {"unit": Unit.PATIENT}):
        with pytest.raises(BudgetError):
            replace(BUDGET, **limit).check_run(TERMS)


def test_a_quote_survives_json() -> None:
    assert Quote.from_json(json.loads(json.dumps(QUOTE.to_json()))) == QUOTE
    QUOTE.check()


def test_reading_a_quote_asks_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a ledger must not take a second for each grant: what was reserved was checked then."""

    def boom(*_: object, **__: object) -> float:
        raise AssertionError("an accountant ran")

    monkeypatch.setattr(accounting, "epsilon", boom)
    again = Quote.from_json(QUOTE.to_json())
    assert again == QUOTE
    with pytest.raises(AssertionError, match="an accountant ran"):
        again.check()


def test_a_grant_survives_json_and_checks_its_run_id() -> None:
    grant = Grant(run_id="one", quote=QUOTE)
    assert Grant.from_json(json.loads(json.dumps(grant.to_json()))) == grant
    for run_id in ("", "x" * 257):
        with pytest.raises(BudgetError):
            replace(grant, run_id=run_id)
