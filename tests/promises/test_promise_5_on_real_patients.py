"""Promise 5 on data sets with real patients, where they are there: a few hundred rows of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedward_client.data import Records, SiteData, load_records, read_unit_ids
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.config import DataConfig, PartitionConfig, PartitionMethod
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import SeededRandom
from fedward_simulations.dealing.partition import holdout, partition
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import site_data
from support.federation import plan_of, small_bench, small_config
from support.shared import shared_rows

C = 0.01


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """Rows as they stand in the file, and the records made of them with patients as the unit."""

    patients: tuple[str, ...]
    columns: DataConfig
    records: Records


@pytest.fixture(scope="module", params=["eicu_dxgroup", "diabetes130", "parkinsons_tele"])
def hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    file = shared_rows(f"{request.param}.train.jsonl.gz", tmp_path_factory.mktemp("rows"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    columns = DataConfig(train=str(file), text=("text",), label="label", unit="patient")
    labels = sorted({row["label"] for row in rows})
    return Hospital(
        patients=tuple(row["patient"] for row in rows), columns=columns, records=load_records(columns, labels)
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.mktemp("base"), sites=1)


def test_the_units_are_the_patients_of_the_file(hospital: Hospital) -> None:
    records = hospital.records
    assert [records.unit_ids[unit] for unit in records.units] == list(hospital.patients)
    assert records.unit_count == len(set(hospital.patients)) < len(records)
    ids, count = read_unit_ids(hospital.columns)
    assert ids == records.unit_ids
    assert count == records.unit_count


@pytest.mark.filterwarnings("ignore")
def test_no_patient_is_at_two_virtual_sites_nor_in_training_and_test(hospital: Hospital) -> None:
    kept, aside = holdout(hospital.records, fraction=0.2, seed=1)
    train, test = hospital.records.select(kept), hospital.records.select(aside)
    assert not set(train.unit_ids) & set(test.unit_ids)
    config = PartitionConfig(method=PartitionMethod.DIRICHLET, sites=3, alpha=1.0, minimum_units=3)
    parts = [set(train.select(rows).unit_ids) for rows in partition(train, config, seed=1).values()]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == train.unit_count


def test_every_row_of_a_patient_is_on_one_side(hospital: Hospital, tmp_path: Path) -> None:
    config = small_config(tmp_path, privacy={"validation_fraction": 0.3, "delta": 1e-3})
    whole = site_data(hospital.records, config=config)
    training, validation = (
        {hospital.patients[row] for unit in units for row in whole.records_of(int(unit))}
        for units in (whole.training_units, whole.validation_units)
    )
    assert training
    assert validation
    assert not training & validation
    later = site_data(hospital.records.select(range(100, len(hospital.records))), config=config)
    for unit, side in zip(later.records.unit_ids, later.validation, strict=True):
        assert (unit in validation) == side


def test_a_real_patient_moves_the_sum_by_at_most_the_clip_norm(hospital: Hospital, bench: Workbench) -> None:
    """The one with most rows and one with fewest, on a tiny base."""
    labels = hospital.records.labels % 3  # the tiny head has three classes
    records = Records(
        texts=hospital.records.texts,
        labels=labels,
        units=hospital.records.units,
        unit_ids=hospital.records.unit_ids,
        sites=None,
    )
    inputs, rows = SiteInputs(bench.prepared.base, records), np.bincount(records.units)
    everyone = summed(bench, records, inputs, without=None)
    for unit in (int(rows.argmax()), int(rows.argmin())):
        others = summed(bench, records, inputs, without=unit)
        assert 0 < np.linalg.norm(everyone - others) <= C * (1 + 1e-3)


def summed(bench: Workbench, records: Records, inputs: SiteInputs, *, without: int | None) -> NDArray[np.float64]:
    validation = np.zeros(records.unit_count, bool)
    if without is not None:
        validation[without] = True
    trainer = LocalTrainer(
        model=bench.prepared.model,
        data=SiteData(records=records, nominal_units=1, validation=validation),
        inputs=inputs,
        randomness=SeededRandom(seed=0, site="a"),
    )
    mechanism = PrivateSum(
        sampling_rate=1.0, noise_multiplier=1e-6, clip_norm=C, nominal_units=1, max_records_per_unit=1000
    )
    training = plan_of(bench).training
    return trainer.train(1, bench.prepared.bundle.initial, training, mechanism).vector.astype(np.float64)
