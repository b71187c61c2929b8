from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedward_simulations.run import run
from fedward_simulations.sites.population import site_data
from fedward_simulations.sweep.sites import site_scores
from support.federation import small_bench
from support.watch import Recorder


def test_labels_are_those_of_the_data_also_at_a_poisoned_site(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=3, units=150, simulation={"poisoned": 1, "poison": "flip"})
    run(bench, out=tmp_path / "run", view=Recorder())
    dealt = {name: site_data(own, config=bench.prepared.bundle.config) for name, own in bench.source.sites.items()}
    assert site_scores(bench, tmp_path / "run") == site_scores(replace(bench, data=dealt), tmp_path / "run")
