from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import pytest

from fedward_client.policy import Admitted, Denied, Hours, SitePolicy
from fedward_common.adapter import AdapterSpec
from fedward_common.config import Method
from fedward_common.errors import ConfigError
from fedward_common.privacy.guarantee import MetricTerms, Unit
from fedward_common.round import Code, RoundPlan
from support.nouns import SPEC, TERMS, plan_from

NOW = 1000.0
STEPS = sum(stage.steps for stage in TERMS.stages)
EXACT: dict[str, Any] = {
    "unit": Unit.RECORD,
    "base_fingerprints": frozenset({SPEC.base_fingerprint}),
    "methods": frozenset({Method.LORA}),
    "target_modules": frozenset({"query"}),
    "max_rank": SPEC.rank,
    "max_epsilon": TERMS.epsilon,
    "max_delta": TERMS.delta,
    "max_steps": STEPS,
    "max_sampling_rate": 0.5,
    "max_clip_norm": TERMS.clip_norm,
    "max_records_per_unit": TERMS.max_records_per_unit,
    "max_update_bytes": 4 * SPEC.size,
    "coordinator_states_min_sites": 3,
}


def policy_for(**changes: Any) -> SitePolicy:
    return SitePolicy(**(EXACT | changes))


def admit(policy: SitePolicy, plan: RoundPlan | None = None, spec: AdapterSpec = SPEC) -> Admitted | Denied:
    return policy.admit(plan or plan_from(states_min_sites=3), spec, now=NOW)


def denied(policy: SitePolicy, plan: RoundPlan | None = None, spec: AdapterSpec = SPEC) -> Denied:
    verdict = admit(policy, plan, spec)
    assert isinstance(verdict, Denied)
    return verdict


def test_a_plan_just_at_every_limit_is_admitted() -> None:
    assert isinstance(admit(policy_for()), Admitted)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unit": Unit.PATIENT}, Code.TERMS_NOT_ALLOWED),
        ({"base_fingerprints": frozenset({"0" * 64})}, Code.UNKNOWN_MODEL),
        ({"base_fingerprints": frozenset()}, Code.UNKNOWN_MODEL),
        ({"methods": frozenset({Method.CORE})}, Code.TERMS_NOT_ALLOWED),
        ({"target_modules": frozenset({"value"})}, Code.TERMS_NOT_ALLOWED),
        ({"max_rank": SPEC.rank - 1}, Code.TERMS_NOT_ALLOWED),
        ({"max_epsilon": TERMS.epsilon * (1 - 1e-12)}, Code.TERMS_NOT_ALLOWED),
        ({"max_delta": TERMS.delta * (1 - 1e-12)}, Code.TERMS_NOT_ALLOWED),
        ({"max_steps": STEPS - 1}, Code.TERMS_NOT_ALLOWED),
        ({"max_sampling_rate": 0.5 - 1e-12}, Code.TERMS_NOT_ALLOWED),
        ({"max_clip_norm": TERMS.clip_norm * (1 - 1e-12)}, Code.TERMS_NOT_ALLOWED),
        ({"max_records_per_unit": TERMS.max_records_per_unit - 1}, Code.TERMS_NOT_ALLOWED),
        ({"max_update_bytes": 4 * SPEC.size - 1}, Code.TERMS_NOT_ALLOWED),
        ({"coordinator_states_min_sites": 4}, Code.TERMS_NOT_ALLOWED),
        ({"validation_fraction": 0.0}, Code.TERMS_NOT_ALLOWED),
        ({"validation_fraction": 0.051}, Code.TERMS_NOT_ALLOWED),
    ],
)
def test_each_limit_refuses_a_plan_just_above_it(change: dict[str, Any], code: Code) -> None:
    assert denied(policy_for(**change)).code is code


def test_a_stricter_plan_is_admitted() -> None:
    terms = replace(TERMS, epsilon=1.0, delta=1e-6, clip_norm=0.1)
    assert isinstance(admit(policy_for(), plan_from(terms=terms, states_min_sites=9)), Admitted)


def test_evaluations_count_against_the_steps() -> None:
    metrics = MetricTerms(evaluations=STEPS + 1, share=1.0, validation_fraction=0.05)
    plan = plan_from(terms=replace(TERMS, metrics=metrics), states_min_sites=3)
    assert "evaluations" in denied(policy_for(), plan).reason


def test_every_target_module_must_be_allowed() -> None:
    spec = replace(SPEC, target_modules=("query", "value"))
    assert denied(policy_for(), spec=spec).code is Code.TERMS_NOT_ALLOWED


def test_metrics_stay_where_the_policy_says_so() -> None:
    policy = policy_for(metrics_may_leave=False)
    assert isinstance(admit(policy), Admitted)
    assert denied(policy, plan_from(evaluate=True, states_min_sites=3)).code is Code.TERMS_NOT_ALLOWED


def test_expiry_counts_from_the_given_clock() -> None:
    plan = plan_from(expires_at=100.0, states_min_sites=3)
    assert isinstance(policy_for().admit(plan, SPEC, now=99.9), Admitted)
    verdict = policy_for().admit(plan, SPEC, now=100.0)
    assert isinstance(verdict, Denied)
    assert verdict.code is Code.EXPIRED


def test_fields_that_came_later_restrict_nothing_by_default() -> None:
    policy = SitePolicy(unit=Unit.RECORD, base_fingerprints=frozenset({SPEC.base_fingerprint}))
    assert isinstance(admit(policy, plan_from()), Admitted)


# ---- hours -------------------------------------------------------------------------
def at(clock: str) -> float:
    hour, minute = map(int, clock.split(":"))
    return time.mktime((2026, 7, 1, hour, minute, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("09:00-17:30", ["09:00", "12:00", "17:29"], ["08:59", "17:30", "00:00", "23:59"]),
        ("19:00-06:30", ["19:00", "23:59", "00:00", "06:29"], ["06:30", "12:00", "18:59"]),
        ("00:00-24:00", ["00:00", "23:59"], []),
        ("22:00-00:00", ["22:00", "23:59"], ["00:00", "21:59"]),
    ],
)
def test_training_runs_in_the_hours_alone_also_over_midnight(hours: str, inside: list[str], outside: list[str]) -> None:
    policy = policy_for(hours=(Hours.parse(hours),))
    plan = plan_from(states_min_sites=3, expires_at=1e12)
    for clock in inside:
        assert isinstance(policy.admit(plan, SPEC, now=at(clock)), Admitted), clock
    for clock in outside:
        verdict = policy.admit(plan, SPEC, now=at(clock))
        assert isinstance(verdict, Denied), clock
        assert verdict.code is Code.UNAVAILABLE


def test_one_of_several_hours_is_enough() -> None:
    policy = policy_for(hours=(Hours.parse("01:00-02:00"), Hours.parse("12:00-13:00")))
    assert [policy.open_at(at(clock)) for clock in ("01:30", "12:30", "02:30")] == [True, True, False]


def test_outside_the_hours_a_plan_that_is_not_allowed_gets_its_own_code() -> None:
    policy = policy_for(hours=(Hours.parse("01:00-02:00"),), max_epsilon=1.0)
    verdict = policy.admit(plan_from(expires_at=1e12, states_min_sites=3), SPEC, now=at("12:00"))
    assert isinstance(verdict, Denied)
    assert verdict.code is Code.TERMS_NOT_ALLOWED


@pytest.mark.parametrize(
    "text", ["", "9:00-17:00", "09:00", "09:00-09:00", "24:00-25:00", "24:00-01:00", "09:60-10:00", "09:00-24:01",
             "\u0660\u0669:00-10:00", "09:00-17:00 "]
)  # fmt: skip
def test_what_is_no_part_of_a_day_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no part of a day"):
        Hours.parse(text)


# ---- time --------------------------------------------------------------------------
def test_admission_takes_at_most_a_millisecond() -> None:
    hours = tuple(Hours.parse(f"{hour:02}:00-{hour:02}:01") for hour in range(24))
    policy, plan = policy_for(hours=hours), plan_from(states_min_sites=3)
    seconds = []
    for _ in range(2001):
        start = time.perf_counter()
        policy.admit(plan, SPEC, now=NOW)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1e-3


def test_admission_runs_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedward_common.privacy import accounting, calibration

    def ran(*arguments: object, **more: object) -> None:
        raise AssertionError("an accountant ran")

    monkeypatch.setattr(accounting, "epsilon", ran)
    monkeypatch.setattr(calibration, "calibrate", ran)
    monster = replace(TERMS.stages[0], sampling_rate=1.0, rounds=10**9)
    plan = plan_from(terms=replace(TERMS, stages=(monster, TERMS.stages[1])), states_min_sites=3)
    assert denied(policy_for(), plan).code is Code.TERMS_NOT_ALLOWED
