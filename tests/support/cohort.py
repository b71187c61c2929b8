"""Sites for the cohort engine's tests: a trainer each, on one small resident model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedward_client.data import Records, SiteData
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.adapter import Adapter
from fedward_common.privacy.randomness import SeededRandom
from fedward_simulations.run import Workbench
from support.federation import some_records

METHODS: dict[str, dict[str, Any]] = {
    "core": {"method": "core", "rank": 4, "alpha": 16.0},
    "lora": {"method": "lora", "rank": 4, "alpha": 16.0},
    "frozen A": {"method": "lora", "rank": 4, "alpha": 16.0, "freeze_a": True},
}


def somewhere(bench: Workbench) -> Adapter:
    spec = bench.prepared.bundle.spec
    return Adapter(spec=spec, vector=np.random.default_rng(5).normal(0, 0.2, spec.size).astype(np.float32))


def paired(records: Records) -> Records:
    return replace(records, texts=tuple((text, "chronic " + text[:9]) for (text,) in records.texts))


def trainer_of(bench: Workbench, number: int, units: int, *, per_unit: int = 1, pairs: bool = False) -> LocalTrainer:
    records = some_records(max(units, 1), seed=number, per_unit=per_unit)
    records = paired(records) if pairs else records
    everyone = np.full(records.unit_count, units == 0)  # a site without training units: all of them validate
    return LocalTrainer(
        model=bench.prepared.model,
        data=SiteData(records=records, nominal_units=10, validation=everyone | (np.arange(len(everyone)) % 5 == 4)),
        inputs=SiteInputs(bench.prepared.base, records),
        randomness=SeededRandom(seed=3, site=f"site-{number}"),
    )
