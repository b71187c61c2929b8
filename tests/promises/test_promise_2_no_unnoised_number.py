"""Promise 2: rates, divisor, noise, weight and refusal depend on plan, policy and declared numbers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.data import SiteData
from fedward_client.trainers import FixedTrainer
from fedward_client.training import LocalTrainer
from fedward_common.codec import decode_reply, new_key
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.round import Update
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import Population
from support.federation import plan_bytes, population_of, small_bench

OPERATOR = new_key()


def update_of(bench: Workbench, population: Population, **plan: Any) -> Update:
    reply = decode_reply(
        population.sites["site-1"].answer(plan_bytes(bench, OPERATOR, **plan)),
        public_key=population.keys["site-1"],
        spec=bench.prepared.bundle.spec.subset(("head",)),
    )
    assert isinstance(reply, Update)
    return reply


def test_guarantee_weight_and_divisor_are_the_same_for_unlike_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[PrivateSum] = []
    honest = LocalTrainer.train

    def listen(self: LocalTrainer, round: int, adapter: Any, training: Any, mechanism: PrivateSum) -> Any:
        used.append(mechanism)
        return honest(self, round, adapter, training, mechanism)

    monkeypatch.setattr(LocalTrainer, "train", listen)
    updates = []
    for units in (30, 39):  # both are declared as 30
        bench = small_bench(tmp_path, sites=1, units=units)
        assert bench.data["site-1"].nominal_units == 30
        updates.append(update_of(bench, population_of(bench, OPERATOR)))
    assert updates[0].guarantee == updates[1].guarantee
    assert updates[0].nominal_units == updates[1].nominal_units
    assert used[0] == used[1]


def test_one_patient_more_moves_the_update_by_at_most_the_clip_norm_over_the_divisor(tmp_path: Path) -> None:
    """Same noise, same draws (q = 1): what is left of the difference is one unit's clipped share."""
    bench = small_bench(tmp_path, sites=1)
    data = bench.data["site-1"]
    full = update_of(bench, population_of(bench, OPERATOR))
    validation = data.validation.copy()
    validation[data.training_units[0]] = True
    fewer = SiteData(records=data.records, nominal_units=data.nominal_units, validation=validation)
    smaller = Workbench(
        prepared=bench.prepared,
        source=bench.source,
        data={"site-1": fewer},
        inputs=bench.inputs,
        evaluator=bench.evaluator,
    )
    less = update_of(smaller, population_of(smaller, OPERATOR))
    bound = bench.prepared.bundle.config.privacy.clip_norm / data.nominal_units
    assert 0 < (full.delta - less.delta).l2_norm() <= bound * (1 + 1e-3)


def test_a_refusal_for_reasons_of_data_or_ledger_is_one_code_of_one_size(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=1)
    exhausted = population_of(bench, OPERATOR)
    exhausted.sites["site-1"].answer(plan_bytes(bench, OPERATOR))
    of_ledger = exhausted.sites["site-1"].answer(plan_bytes(bench, OPERATOR, run_id="d" * 64))

    broken = population_of(bench, OPERATOR)
    trainers = broken.sites["site-1"]._trainers
    assert isinstance(trainers, FixedTrainer)
    trainers.trainer.data = None  # type: ignore[assignment]
    of_data = broken.sites["site-1"].answer(plan_bytes(bench, OPERATOR))
    for reply, population in ((of_ledger, exhausted), (of_data, broken)):
        answer = decode_reply(reply, public_key=population.keys["site-1"])
        assert getattr(answer, "code", None) == "unavailable"
    assert len(of_ledger) == len(of_data)


def test_noise_is_there_even_if_no_unit_is_drawn(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=1)
    data = bench.data["site-1"]
    nobody = SiteData(records=data.records, nominal_units=data.nominal_units, validation=np.ones_like(data.validation))
    empty = Workbench(
        prepared=bench.prepared,
        source=bench.source,
        data={"site-1": nobody},
        inputs=bench.inputs,
        evaluator=bench.evaluator,
    )
    delta = update_of(empty, population_of(empty, OPERATOR)).delta
    assert np.all(delta.vector != 0)
