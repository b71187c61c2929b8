from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from fedward_client.policy import Admitted, Denied, SitePolicy
from fedward_common.config import Method
from fedward_common.privacy.guarantee import Unit
from fedward_common.round import Code, RoundPlan
from fedward_simulations.run import Workbench
from support.federation import plan_of, small_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("policy"), sites=1)


def policy_for(bench: Workbench, **changes: Any) -> SitePolicy:
    values: dict[str, Any] = {
        "unit": Unit.RECORD,
        "base_fingerprints": frozenset({bench.prepared.base.fingerprint}),
        "max_delta": 1e-3,
    }
    return SitePolicy(**(values | changes))


def admit(bench: Workbench, policy: SitePolicy, plan: RoundPlan | None = None) -> Admitted | Denied:
    return policy.admit(plan or plan_of(bench), bench.prepared.bundle.spec, now=time.time())


def test_what_the_policy_allows_is_admitted(bench: Workbench) -> None:
    assert isinstance(admit(bench, policy_for(bench)), Admitted)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unit": Unit.PATIENT}, Code.TERMS_NOT_ALLOWED),
        ({"base_fingerprints": frozenset({"0" * 64})}, Code.UNKNOWN_MODEL),
        ({"methods": frozenset({Method.LORA})}, Code.TERMS_NOT_ALLOWED),
        ({"target_modules": frozenset({"query"})}, Code.TERMS_NOT_ALLOWED),
        ({"max_rank": 3}, Code.TERMS_NOT_ALLOWED),
        ({"max_epsilon": 7.99}, Code.TERMS_NOT_ALLOWED),
        ({"max_delta": 9e-4}, Code.TERMS_NOT_ALLOWED),
        ({"max_steps": 3}, Code.TERMS_NOT_ALLOWED),
        ({"max_clip_norm": 0.5}, Code.TERMS_NOT_ALLOWED),
        ({"max_records_per_unit": 0}, Code.TERMS_NOT_ALLOWED),
        ({"max_update_bytes": 100}, Code.TERMS_NOT_ALLOWED),
    ],
)
def test_each_limit_refuses_a_looser_plan(bench: Workbench, change: dict[str, Any], code: Code) -> None:
    verdict = admit(bench, policy_for(bench, **change))
    assert isinstance(verdict, Denied)
    assert verdict.code is code


def test_a_stricter_plan_is_admitted(bench: Workbench) -> None:
    terms = replace(plan_of(bench).terms, epsilon=1.0, delta=1e-6, clip_norm=0.1)
    assert isinstance(admit(bench, policy_for(bench), plan_of(bench, terms=terms)), Admitted)


def test_metrics_stay_where_the_policy_says_so(bench: Workbench) -> None:
    policy = policy_for(bench, metrics_may_leave=False)
    assert isinstance(admit(bench, policy), Admitted)
    verdict = admit(bench, policy, plan_of(bench, evaluate=True))
    assert isinstance(verdict, Denied)


def test_expiry_counts_from_the_given_clock(bench: Workbench) -> None:
    plan = plan_of(bench, expires_at=100.0)
    spec = bench.prepared.bundle.spec
    assert isinstance(policy_for(bench).admit(plan, spec, now=99.9), Admitted)
    verdict = policy_for(bench).admit(plan, spec, now=100.0)
    assert isinstance(verdict, Denied)
    assert verdict.code is Code.EXPIRED


def test_admission_takes_at_most_a_millisecond(bench: Workbench) -> None:
    policy, plan, spec = policy_for(bench), plan_of(bench), bench.prepared.bundle.spec
    best = min(_seconds(policy, plan, spec) for _ in range(50))
    assert best < 1e-3


def _seconds(policy: SitePolicy, plan: RoundPlan, spec: Any) -> float:
    start = time.perf_counter()
    policy.admit(plan, spec, now=0.0)
    return time.perf_counter() - start
