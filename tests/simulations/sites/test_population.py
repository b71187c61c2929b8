from __future__ import annotations

from pathlib import Path

import pytest

from fedward_common.codec import new_key
from fedward_common.errors import BudgetError
from fedward_simulations.sites.population import Population, Watcher, site_data
from support.federation import SILENT, plan_bytes, population_of, small_bench, some_records


def test_each_site_has_its_own_keys_ledger_and_noise(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    operator = new_key()
    population = population_of(bench, operator)
    replies = {name: site.answer(plan_bytes(bench, operator)) for name, site in population.sites.items()}
    assert replies["site-1"] != replies["site-2"]
    assert population.keys["site-1"] != population.keys["site-2"]
    assert population.ledgers["site-1"] is not population.ledgers["site-2"]


def test_ledgers_come_back_from_a_checkpoint_with_the_same_epsilon(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    operator = new_key()
    population = population_of(bench, operator)
    for site in population.sites.values():
        site.answer(plan_bytes(bench, operator))
    entries = {name: export(0) for name, export in population.exports.items()}
    again = Population.build(
        bench.prepared, bench.data, operator=operator.public_key(), watcher=SILENT, inputs=bench.inputs, entries=entries
    )
    run_id = bench.prepared.bundle.run_id
    assert again.epsilon_by_site(run_id, delta=1e-3) == population.epsilon_by_site(run_id, delta=1e-3)
    entries["site-1"][0]["entry"] = "forged"
    with pytest.raises(BudgetError):
        Population.build(
            bench.prepared,
            bench.data,
            operator=operator.public_key(),
            watcher=SILENT,
            inputs=bench.inputs,
            entries=entries,
        )


def test_true_reasons_stay_with_the_watcher(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    notes: list[str] = []
    watcher = Watcher(caching=lambda site, done, total: None, note=notes.append)
    population = population_of(bench, new_key(), watcher=watcher)
    population.sites["site-2"].answer(b"")
    assert notes[0].startswith("site-2 refused: spec_mismatch")


def test_declared_numbers_are_round_and_the_split_is_by_key(tmp_path: Path) -> None:
    config = small_bench(tmp_path).prepared.bundle.config
    data = site_data(some_records(237), config=config)
    assert data.nominal_units == 200
    assert 20 < data.validation.sum() < 80
