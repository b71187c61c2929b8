from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedward_client.release import Gate
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply, new_key
from fedward_common.errors import NonFiniteUpdate, SpecMismatch
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import Guarantee, Unit
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import NO_PLAN, Code, Refusal, Update
from fedward_simulations.run import Workbench
from support.federation import plan_of, small_bench

KEY = new_key()
LEDGER = Ledger.in_memory(Budget(epsilon=8.0, delta=1e-5))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("gate"), sites=1)


def release(bench: Workbench, *, limit: int = 2**20, **changes: Any) -> bytes:
    spec = bench.prepared.bundle.spec
    values: dict[str, Any] = {
        "delta": Adapter.zeros(spec.subset(("head",))),
        "guarantee": Guarantee(unit=Unit.RECORD, delta=1e-5, events=(), waivers=()),
        "metrics": None,
    }
    gate = Gate(key=KEY, nominal_units=30, max_update_bytes=limit, ledger=LEDGER)
    evaluate = changes.pop("evaluate", False)
    return gate.update(plan_of(bench, evaluate=evaluate), spec, **(values | changes))


def test_an_update_passes(bench: Workbench) -> None:
    spec = bench.prepared.bundle.spec.subset(("head",))
    reply = decode_reply(release(bench), public_key=KEY.public_key(), spec=spec)
    assert isinstance(reply, Update)


def test_other_tensors_do_not_pass(bench: Workbench) -> None:
    with pytest.raises(SpecMismatch):
        release(bench, delta=Adapter.zeros(bench.prepared.bundle.spec))


def test_what_is_not_finite_does_not_pass(bench: Workbench) -> None:
    zeros = Adapter.zeros(bench.prepared.bundle.spec.subset(("head",)))
    vector = zeros.vector.copy()
    vector[1] = np.nan
    with pytest.raises(NonFiniteUpdate):
        release(bench, delta=replace(zeros, vector=vector))


def test_too_large_an_update_does_not_pass(bench: Workbench) -> None:
    with pytest.raises(SpecMismatch):
        release(bench, limit=4)


@pytest.mark.parametrize(("evaluate", "metrics"), [(True, None), (False, MetricSums(correct=1.0, units=2.0, loss=3.0))])
def test_metrics_pass_exactly_when_asked_for(bench: Workbench, evaluate: bool, metrics: MetricSums | None) -> None:
    with pytest.raises(SpecMismatch):
        release(bench, evaluate=evaluate, metrics=metrics)


def test_a_refusal_without_a_plan_names_none(bench: Workbench) -> None:
    gate = Gate(key=KEY, nominal_units=30, max_update_bytes=1, ledger=LEDGER)
    reply = decode_reply(gate.refusal(None, Code.BAD_SIGNATURE), public_key=KEY.public_key())
    assert reply == Refusal(plan_id=NO_PLAN, code=Code.BAD_SIGNATURE)


def test_no_argument_of_the_gate_could_carry_a_text_or_a_count() -> None:
    allowed = {"RoundPlan", "RoundPlan | None", "AdapterSpec", "Adapter", "Guarantee", "MetricSums | None", "Code"}
    for method in (Gate.update, Gate.refusal):
        parameters = list(inspect.signature(method).parameters.values())[1:]
        assert {str(parameter.annotation) for parameter in parameters} <= allowed
