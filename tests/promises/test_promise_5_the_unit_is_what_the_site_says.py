"""Promise 5: with patients as the unit, sampling, clipping, metrics and delta count patients, however many records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from fedward_client.data import Records, SiteData, split_validation
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply, new_key
from fedward_common.errors import BudgetError
from fedward_common.privacy.grants import Budget, Quote
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import SeededRandom
from fedward_common.round import Refusal, Update
from fedward_simulations.run import Workbench
from support.federation import plan_bytes, plan_of, population_of, small_bench
from support.heard import heard_steps

FALSE_ALARM = 1e-6

PATIENTS: dict[str, Any] = {
    "data": {"train": "memory", "unit": "patient"},
    "privacy": {"unit": "patient", "validation_fraction": 0.2, "delta": 1e-3, "max_records_per_unit": 3},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("patients"), sites=1, units=12, per_unit=3, **PATIENTS)


def chosen(records: Records, which: list[int] | NDArray[np.int64]) -> Records:
    """These records in this order, also several times; the units stay as they are."""
    return Records(
        texts=tuple(records.texts[i] for i in which),
        labels=records.labels[which],
        units=records.units[which],
        unit_ids=records.unit_ids,
        sites=None,
    )


def with_a_frequent_patient(records: Records) -> Records:
    """Patient 0 has forty times as many records as before."""
    first = np.flatnonzero(records.units == 0)
    return chosen(records, np.concatenate([np.arange(len(records)), np.repeat(first, 39)]))


def trainer_of(bench: Workbench, records: Records, *, validation: NDArray[np.bool_] | None = None) -> LocalTrainer:
    nobody = np.zeros(records.unit_count, bool)
    return LocalTrainer(
        model=bench.prepared.model,
        data=SiteData(records=records, nominal_units=1, validation=nobody if validation is None else validation),
        inputs=SiteInputs(bench.prepared.base, records),
        randomness=SeededRandom(seed=0, site="a"),
    )


def a_step(**changes: Any) -> PrivateSum:
    """A step that shows the sum itself, where nothing else is said."""
    values: dict[str, Any] = {
        "sampling_rate": 1.0,
        "noise_multiplier": 1e-8,
        "clip_norm": 0.1,
        "nominal_units": 1,
        "max_records_per_unit": 50,
    }
    return PrivateSum(**(values | changes))


def delta_of(
    bench: Workbench, records: Records, *, validation: NDArray[np.bool_] | None = None, **step: Any
) -> NDArray[np.float32]:
    training = plan_of(bench).training
    initial = bench.prepared.bundle.initial
    return trainer_of(bench, records, validation=validation).train(1, initial, training, a_step(**step)).vector


# ---- sampling and the cap ----------------------------------------------------------
def test_a_patient_takes_part_at_the_plans_rate_however_many_records(bench: Workbench) -> None:
    """100 steps at a rate of 0.3; exact binomial test for each of 12 patients, false alarm 1e-6 in all."""
    records = with_a_frequent_patient(bench.data["site-1"].records)
    training = replace(plan_of(bench).training, local_steps=100)
    with heard_steps() as steps:
        trainer_of(bench, records).train(1, bench.prepared.bundle.initial, training, a_step(sampling_rate=0.3))
    drawn = [np.unique(records.units[step]) for step in steps]
    for patient in range(12):
        times = sum(patient in units for units in drawn)
        assert stats.binomtest(times, 100, 0.3).pvalue > FALSE_ALARM / 12


def test_a_step_uses_at_most_the_cap_of_a_patients_records_drawn_anew_each_time(bench: Workbench) -> None:
    """200 steps with 3 of a patient's records each; chi-square over the records, false alarm 1e-6."""
    records = with_a_frequent_patient(bench.data["site-1"].records)
    own = np.flatnonzero(records.units == 0)
    assert len(own) >= 40
    training = replace(plan_of(bench).training, local_steps=200)
    with heard_steps() as steps:
        trainer_of(bench, records).train(1, bench.prepared.bundle.initial, training, a_step(max_records_per_unit=3))
    for step in steps:
        assert len(step) == len(np.unique(step))
        assert np.bincount(records.units[step]).max() == 3
    counts = np.bincount(np.concatenate([step[records.units[step] == 0] for step in steps]), minlength=len(records))
    assert stats.chisquare(counts[own]).pvalue > FALSE_ALARM


# ---- averaging and clipping -----------------------------------------------------------
def test_the_records_of_a_patient_are_averaged(bench: Workbench) -> None:
    """Below the clip norm a patient's share is the mean of what each record alone would give."""
    records = bench.data["site-1"].records
    unit = int(np.flatnonzero(np.bincount(records.units) == 3)[0])
    own = np.flatnonzero(records.units == unit)
    alone = [delta_of(bench, records.select([record]), clip_norm=1e3) for record in own]
    together = delta_of(bench, records.select(own), clip_norm=1e3)
    assert np.linalg.norm(together - np.mean(alone, axis=0)) <= 1e-5 * np.linalg.norm(together)
    assert np.linalg.norm(together) > 0.01


def test_a_patient_with_forty_records_moves_the_sum_no_more_than_one_with_one(bench: Workbench) -> None:
    records = bench.data["site-1"].records
    without = np.zeros(records.unit_count, bool)
    without[0] = True
    others = delta_of(bench, records, validation=without)
    for held in (records, with_a_frequent_patient(records)):
        assert np.linalg.norm(delta_of(bench, held) - others) <= 0.1 * (1 + 1e-4)


# ---- policy, accounting and delta -----------------------------------------------------
def test_an_update_names_the_patient_as_what_it_protects(bench: Workbench) -> None:
    operator = new_key()
    population = population_of(bench, operator)
    reply = decode_reply(
        population.sites["site-1"].answer(plan_bytes(bench, operator)),
        public_key=population.keys["site-1"],
        spec=bench.prepared.bundle.spec.subset(("head",)),
    )
    assert isinstance(reply, Update)
    assert reply.guarantee.unit is Unit.PATIENT
    assert "patient" in reply.guarantee.describe()


def test_a_ledger_that_counts_patients_bears_no_run_that_counts_records(bench: Workbench) -> None:
    """Losses of unlike units do not add up, whatever room the budget has."""
    terms = plan_of(bench).terms
    ledger = Ledger.in_memory(Budget(epsilon=100.0, delta=0.5))
    ledger.reserve(Quote.of(terms), run_id="first")
    with pytest.raises(BudgetError, match="another unit"):
        ledger.reserve(Quote.of(replace(terms, unit=Unit.RECORD)), run_id="second")
    ledger.reserve(Quote.of(terms), run_id="third")


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
        site._policy = replace(site._policy, max_delta=delta)  # the site's own limit; a plan's could be moved to count
        site._ledger = Ledger.in_memory(Budget(epsilon=100.0, delta=0.5))
        site.answer(plan_bytes(bench, operator))
        return bool(site._ledger.grants())

    assert served(0.08)  # too large if records counted
    assert not served(0.09)


# ---- metrics ------------------------------------------------------------------------
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


def sums_of(bench: Workbench, records: Records, adapter: Adapter) -> NDArray[np.float64]:
    """Metrics with every patient on the validation side, hardly any noise, and no cap that matters."""
    trainer = trainer_of(bench, records, validation=np.ones(records.unit_count, bool))
    metric = PrivateMetric(noise_multiplier=1e-6, loss_cap=trainer.loss_cap)
    sums = trainer.evaluate(1, adapter, metric, cap=a_step())
    return np.array([sums.correct, sums.units, sums.loss])


def somewhere(bench: Workbench) -> Adapter:
    """An adapter at which labels are not guessed uniformly."""
    spec = bench.prepared.bundle.initial.spec
    return Adapter(spec=spec, vector=np.random.default_rng(5).normal(0, 0.2, spec.size).astype(np.float32))


def test_a_metric_averages_the_records_of_a_patient(bench: Workbench) -> None:
    """Who is right in one record of two counts as half right."""
    records, adapter = bench.data["site-1"].records, somewhere(bench)
    right = np.array([sums_of(bench, records.select([n]), adapter)[0] for n in range(len(records))])
    halves = np.array([right[records.units == unit].mean() for unit in range(records.unit_count)])
    assert sums_of(bench, records, adapter)[0] == pytest.approx(halves.sum(), abs=1e-3)
    assert np.any((halves > 0.2) & (halves < 0.8))


def test_a_metric_counts_patients_however_many_records(bench: Workbench) -> None:
    records, adapter = bench.data["site-1"].records, somewhere(bench)
    before, after = (sums_of(bench, held, adapter) for held in (records, with_a_frequent_patient(records)))
    assert before[1] == pytest.approx(12, abs=1e-3)
    np.testing.assert_allclose(after, before, atol=1e-3)  # the same records again leave a patient's mean as it was
    assert np.abs(np.diff([before[0], after[0]])).max() < 1 <= before[0] <= 11
