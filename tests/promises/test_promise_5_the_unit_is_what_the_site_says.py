"""Promise 5: with patients as the unit, sampling, clipping, metrics and delta count patients, however many records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data import Records, SiteData, split_validation
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.codec import decode_reply, new_key
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.ledger import Budget, MemoryLedger
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import SeededRandom
from fedward_common.round import Refusal
from fedward_simulations.run import Workbench
from support.federation import plan_bytes, plan_of, population_of, small_bench

PATIENTS: dict[str, Any] = {
    "data": {"train": "memory", "unit": "patient"},
    "privacy": {"unit": "patient", "validation_fraction": 0.2, "delta": 1e-3, "max_records_per_unit": 3},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("patients"), sites=1, units=12, per_unit=3, **PATIENTS)


def delta_of(bench: Workbench, records: Records, *, validation: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    data = SiteData(records=records, nominal_units=1, validation=validation)
    trainer = LocalTrainer(
        model=bench.prepared.model,
        data=data,
        inputs=SiteInputs(bench.prepared.base, records),
        randomness=SeededRandom(seed=0, site="a"),
    )
    mechanism = PrivateSum(
        sampling_rate=1.0, noise_multiplier=1e-8, clip_norm=0.1, nominal_units=1, max_records_per_unit=50
    )
    plan = plan_of(bench)
    return trainer.train(1, bench.prepared.bundle.initial, plan.training, mechanism).vector


def test_a_patient_with_forty_records_moves_the_sum_no_more_than_one_with_one(bench: Workbench) -> None:
    records = bench.data["site-1"].records
    first = np.flatnonzero(records.units == 0)
    many = np.concatenate([np.arange(len(records)), np.repeat(first, 40)])
    grown = Records(
        texts=tuple(records.texts[i] for i in many),
        labels=records.labels[many],
        units=records.units[many],
        unit_ids=records.unit_ids,
        sites=None,
    )
    nobody = np.zeros(records.unit_count, bool)
    without = nobody.copy()
    without[0] = True
    others = delta_of(bench, records, validation=without)
    for held in (records, grown):
        assert np.linalg.norm(delta_of(bench, held, validation=nobody) - others) <= 0.1 * (1 + 1e-4)


def test_a_plan_for_records_is_refused_where_the_policy_protects_patients(bench: Workbench) -> None:
    operator = new_key()
    population = population_of(bench, operator)
    terms = replace(plan_of(bench).terms, unit=Unit.RECORD)
    reply = decode_reply(
        population.sites["site-1"].answer(plan_bytes(bench, operator, terms=terms)),
        public_key=population.keys["site-1"],
    )
    assert isinstance(reply, Refusal)
    assert reply.code == "terms_not_allowed"


def test_delta_is_held_against_the_number_of_patients_not_of_records(tmp_path: Path) -> None:
    def served(delta: float) -> bool:
        bench = small_bench(tmp_path, sites=1, units=12, per_unit=3, **PATIENTS)
        assert 1 / len(bench.data["site-1"].records) < 0.08 < 1 / 12 < 0.09
        operator = new_key()
        site = population_of(bench, operator).sites["site-1"]
        site._policy = replace(site._policy, max_delta=0.5)
        site._ledger = MemoryLedger(Budget(epsilon=100.0, delta=0.5))
        site.answer(plan_bytes(bench, operator, terms=replace(plan_of(bench).terms, delta=delta)))
        return bool(site._served)

    assert served(0.08)  # too large if records counted
    assert not served(0.09)


def test_no_patient_is_in_training_and_validation(bench: Workbench) -> None:
    data = bench.data["site-1"]
    training = {data.records.unit_ids[u] for u in data.training_units}
    validation = {data.records.unit_ids[u] for u in data.validation_units}
    assert not training & validation
    assert len(training | validation) == 12


def test_the_side_of_a_patient_never_changes() -> None:
    key = b"k" * 32
    before = dict(zip("abcdefgh", split_validation(tuple("abcdefgh"), key=key, fraction=0.5), strict=True))
    after = dict(zip("hgxfedyc", split_validation(tuple("hgxfedyc"), key=key, fraction=0.5), strict=True))
    assert all(before[unit] == after[unit] for unit in set(before) & set(after))


def test_a_metric_counts_patients(bench: Workbench) -> None:
    data = bench.data["site-1"]
    trainer = LocalTrainer(
        model=bench.prepared.model,
        data=data,
        inputs=bench.inputs["site-1"],
        randomness=SeededRandom(seed=0, site="a"),
    )
    metric = PrivateMetric(noise_multiplier=1e-6, loss_cap=trainer.loss_cap)
    cap = PrivateSum(sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, nominal_units=1, max_records_per_unit=3)
    sums = trainer.evaluate(1, bench.prepared.bundle.initial, metric, cap=cap)
    assert sums.units == pytest.approx(len(data.validation_units), abs=1e-3)
