from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedward_common.adapter import Adapter
from fedward_common.config import LocalOptimiser, Weights
from fedward_common.errors import FedwardError, InputError, SpecMismatch
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import Aggregate, Fold, RoundPlan, RoundRecord, Training
from support.memory import traced
from support.nouns import HEAD, SPEC, TERMS, TRAINING, plan_from, update_for

PLAN = plan_from()
STAGE = TERMS.stages[0]
OTHERWISE: dict[str, dict[str, Any]] = {
    "run_id": {"run_id": "ef" * 32},
    "round": {"round": 2},
    "stage": {"stage": 1, "training": replace(TRAINING, local_steps=2)},
    "spec_digest": {"spec_digest": "ef" * 32},
    "adapter_digest": {"adapter_digest": "ef" * 32},
    "evaluate": {"evaluate": True},
    "public_seed": {"public_seed": 4},
    "weights": {"weights": Weights.EQUAL},
    "terms.epsilon": {"terms": replace(TERMS, epsilon=7.0)},
    "terms.delta": {"terms": replace(TERMS, delta=1e-6)},
    "terms.unit": {"terms": replace(TERMS, unit=Unit.PATIENT)},
    "terms.clip_norm": {"terms": replace(TERMS, clip_norm=2.0)},
    "terms.max_records_per_unit": {"terms": replace(TERMS, max_records_per_unit=2)},
    "terms.stages": {"terms": replace(TERMS, stages=TERMS.stages[:1])},
    "terms.stages.name": {"terms": replace(TERMS, stages=(replace(STAGE, name="x"), TERMS.stages[1]))},
    "terms.stages.rounds": {"terms": replace(TERMS, stages=(replace(STAGE, rounds=9), TERMS.stages[1]))},
    "terms.stages.rate": {"terms": replace(TERMS, stages=(replace(STAGE, sampling_rate=0.4), TERMS.stages[1]))},
    "terms.stages.ratio": {"terms": replace(TERMS, stages=(replace(STAGE, noise_ratio=0.9), TERMS.stages[1]))},
    "terms.metrics": {"terms": replace(TERMS, metrics=replace(TERMS.metrics, share=0.5))},
    "training.groups": {"training": replace(TRAINING, groups=("adapter",))},
    "training.optimiser": {"training": replace(TRAINING, optimiser=LocalOptimiser.ADAM)},
    "training.learning_rate": {"training": replace(TRAINING, learning_rate=0.25)},
}
UPDATES = st.lists(
    st.tuples(npst.arrays(np.float32, HEAD.size, elements=st.floats(-1e6, 1e6, width=32)), st.floats(1e-3, 1e6)),
    min_size=3,
    max_size=6,
)


@pytest.mark.parametrize(
    "changes", [{"expires_at": 5.0}, {"site": "ab"}, {"ledger_head": "cd" * 32}, {"states_min_sites": 7}]
)
def test_the_plan_id_does_not_depend_on_expiry_addressee_or_head(changes: dict[str, Any]) -> None:
    assert replace(PLAN, **changes).plan_id == PLAN.plan_id


@pytest.mark.parametrize("changes", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_the_plan_id_depends_on_everything_else(changes: dict[str, Any]) -> None:
    assert replace(PLAN, **changes).plan_id != PLAN.plan_id


def test_no_field_of_a_plan_was_forgotten_above() -> None:
    tried = {name.split(".")[0] for name in OTHERWISE} | {"expires_at", "site", "ledger_head", "states_min_sites"}
    assert tried == {field.name for field in fields(RoundPlan)}
    deep = {name.split(".")[1] for name in OTHERWISE if name.startswith("terms.")}
    assert deep == {field.name for field in fields(type(TERMS))}
    groups = {name.split(".")[1] for name in OTHERWISE if name.startswith("training.")} | {"local_steps"}
    assert groups == {field.name for field in fields(Training)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": 0},
        {"stage": 2},
        {"stage": -1},
        {"stage": 1},
        {"run_id": "x"},
        {"spec_digest": ""},
        {"adapter_digest": "A" * 64},
    ],
)
def test_a_plan_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FedwardError):
        replace(PLAN, **wrong)


@pytest.mark.parametrize("wrong", [{"local_steps": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}])
def test_training_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(TRAINING, **wrong)


@pytest.mark.parametrize("wrong", [{"nominal_units": 0}, {"plan_id": "x"}])
def test_an_update_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        update_for(PLAN, **wrong)


@settings(deadline=None, max_examples=50)
@given(updates=UPDATES)
def test_aggregates_are_a_monoid_up_to_rounding(updates: list[tuple[Any, float]]) -> None:
    sums = [
        Aggregate.of(update_for(PLAN, delta=Adapter(spec=HEAD, vector=vector)), weight=weight)
        for vector, weight in updates
    ]
    a, b, *rest = sums
    for same in (Aggregate.empty(HEAD) + a, a + Aggregate.empty(HEAD)):
        np.testing.assert_array_equal(same.total, a.total)
        assert (same.weight, same.count, same.evaluated) == (a.weight, a.count, a.evaluated)
    left, right = (a + b) + rest[0], a + (b + rest[0])
    size = max(float(np.abs(s.total).max()) for s in sums)
    np.testing.assert_allclose(left.total, right.total, rtol=1e-12, atol=1e-12 * size)
    assert left.weight == pytest.approx(right.weight)
    assert left.count == right.count == 3


@settings(deadline=None, max_examples=50)
@given(updates=UPDATES)
def test_the_mean_is_the_weighted_mean(updates: list[tuple[Any, float]]) -> None:
    total = Aggregate.empty(HEAD)
    for vector, weight in updates:
        total = total + Aggregate.of(update_for(PLAN, delta=Adapter(spec=HEAD, vector=vector)), weight=weight)
    vectors = np.array([vector for vector, _ in updates], np.float64)
    expected = np.average(vectors, axis=0, weights=[weight for _, weight in updates])
    least = np.finfo(np.float32).smallest_subnormal  # what lies below becomes zero
    np.testing.assert_allclose(total.mean().vector, expected, rtol=1e-6, atol=1e-6 * np.abs(vectors).max() + least)
    assert total.count == len(updates)


def test_the_mean_of_nothing_is_zero() -> None:
    mean = Aggregate.empty(HEAD).mean()
    assert mean.spec.digest == HEAD.digest
    np.testing.assert_array_equal(mean.vector, np.zeros(6))


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(InputError):
        Aggregate.of(update_for(PLAN), weight=weight)


def test_unlike_aggregates_refuse_to_add() -> None:
    with pytest.raises(SpecMismatch):
        _ = Aggregate.empty(HEAD) + Aggregate.empty(SPEC)


def test_folding_changes_neither_part() -> None:
    a = Aggregate.of(update_for(PLAN), weight=2.0)
    before = a.total.copy()
    _ = a + a
    np.testing.assert_array_equal(a.total, before)
    assert a.count == 1


def test_site_metrics_add_up_before_ratios_are_taken() -> None:
    one = update_for(PLAN, metrics=MetricSums(correct=9.0, units=10.0, loss=5.0))
    two = update_for(PLAN, metrics=MetricSums(correct=0.0, units=30.0, loss=15.0))
    total = Aggregate.of(one, weight=5.0) + Aggregate.of(two, weight=1.0) + Aggregate.of(update_for(PLAN), weight=1.0)
    assert total.site_metrics() == {"accuracy": 9 / 40, "loss": 0.5, "units": 40.0, "sites": 2.0}


def test_noise_cannot_push_site_metrics_out_of_range() -> None:
    for sums in (MetricSums(correct=-3.0, units=-2.0, loss=-1.0), MetricSums(correct=9.0, units=4.0, loss=-1.0)):
        metrics = Aggregate.of(update_for(PLAN, metrics=sums), weight=1.0).site_metrics()
        assert metrics is not None
        assert 0.0 <= metrics["accuracy"] <= 1.0
        assert metrics["loss"] == 0.0


def test_without_evaluations_there_are_no_site_metrics() -> None:
    assert Aggregate.of(update_for(PLAN), weight=1.0).site_metrics() is None


def test_an_evaluation_of_nothing_but_zeros_still_counts_as_one() -> None:
    update = update_for(PLAN, metrics=MetricSums(correct=0.0, units=0.0, loss=0.0))
    metrics = Aggregate.of(update, weight=1.0).site_metrics()
    assert metrics == {"accuracy": 0.0, "loss": 0.0, "units": 0.0, "sites": 1.0}


# ---- an aggregate while it grows


@settings(deadline=None, max_examples=50)
@given(updates=UPDATES)
def test_a_fold_is_to_the_bit_the_sum_of_aggregates(updates: list[tuple[Any, float]]) -> None:
    fold, total = Fold(HEAD), Aggregate.empty(HEAD)
    for number, (vector, weight) in enumerate(updates):
        sums = MetricSums(correct=-0.5, units=2.0 + number, loss=1.5) if number % 2 else None
        update = update_for(PLAN, delta=Adapter(spec=HEAD, vector=vector), metrics=sums)
        fold.add(update, weight=weight)
        total = total + Aggregate.of(update, weight=weight)
    done = fold.aggregate()
    assert done.total.tobytes() == total.total.tobytes()
    assert done.metrics.tobytes() == total.metrics.tobytes()
    assert (done.weight, done.count, done.evaluated) == (total.weight, total.count, total.evaluated)


def test_a_fold_of_many_blocks_is_the_same_sum() -> None:
    spec = replace(HEAD, tensors={"head.weight": (1000, 600), "head.bias": (7,)})
    generator = np.random.default_rng(1)
    fold, total = Fold(spec), Aggregate.empty(spec)
    for weight in (0.3, 70.0):
        delta = Adapter(spec=spec, vector=generator.normal(size=spec.size).astype(np.float32))
        fold.add(update_for(PLAN, delta=delta), weight=weight)
        total = total + Aggregate.of(update_for(PLAN, delta=delta), weight=weight)
    done = fold.aggregate()
    assert done.total.tobytes() == total.total.tobytes()
    assert done.mean().vector.tobytes() == (total.total / 70.3).astype(np.float32).tobytes()


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_fold_refuses_a_weight_out_of_range(weight: float) -> None:
    fold = Fold(HEAD)
    with pytest.raises(InputError):
        fold.add(update_for(PLAN), weight=weight)
    assert fold.count == 0
    np.testing.assert_array_equal(fold.aggregate().total, np.zeros(6))


def test_a_fold_refuses_an_update_over_other_tensors() -> None:
    with pytest.raises(SpecMismatch):
        Fold(SPEC).add(update_for(PLAN), weight=1.0)


def test_what_was_handed_over_no_longer_changes() -> None:
    fold = Fold(HEAD)
    fold.add(update_for(PLAN), weight=1.0)
    done = fold.aggregate()
    with pytest.raises(ValueError, match="read-only"):
        fold.add(update_for(PLAN), weight=1.0)
    assert done.total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert done.count == 1


def test_adding_an_update_takes_no_memory_that_grows_with_its_size() -> None:
    spec = replace(HEAD, tensors={"head.weight": (2000, 2000), "head.bias": (2,)})
    fold = Fold(spec)
    update = update_for(PLAN, delta=Adapter.zeros(spec))
    with traced() as peak:
        fold.add(update, weight=2.0)
    assert peak() < spec.size


def test_a_record_is_the_same_after_json() -> None:
    record = RoundRecord(
        round=1,
        stage="head",
        attempt=1,
        cohort=2,
        replied=1,
        refused={},
        dropped={},
        bytes_down=1,
        bytes_up=1,
        seconds=1.0,
        update_norm=1.0,
        adapter_digest="0" * 64,
        set_aside=("a", "b"),
    )
    assert RoundRecord(**json.loads(json.dumps(asdict(record)))) == record
