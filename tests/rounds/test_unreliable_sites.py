"""Whole runs in foul weather: the coordinator drops what is bad, and every site's own account stays true."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedward_simulations.results.folders import read_stopped
from fedward_simulations.run import resume, run
from fedward_simulations.sites.faults import Fate, FaultPlan, Temper, tempers
from fedward_simulations.sites.ledgers import LedgerFile
from fedward_simulations.sites.population import site_data
from fedward_simulations.watching.view import OutputMode, choose_view
from support.federation import small_bench
from support.watch import Recorder

pytestmark = pytest.mark.filterwarnings("ignore")
SITES = [f"site-{number}" for number in range(1, 9)]
WEATHER = {"dropout": 0.2, "late": 0.2, "corrupt": 0.2, "compute_s": 100.0, "straggle_sigma": 1.0}
ROUNDS = {"deadline_s": 300.0, "minimum": 2, "retries": 20, "set_aside_after": 0}


def finished(folder: Path, out: str, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    bench = small_bench(folder, sites=len(SITES), **changes)
    with choose_view(OutputMode.LINES) as view:
        summary = run(bench, out=folder / out, view=view)
    return summary, [json.loads(line) for line in (folder / out / "rounds.jsonl").read_text().splitlines()]


def test_what_is_counted_is_what_the_fault_plan_says_and_a_run_repeats_itself(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"simulation": WEATHER, "rounds": ROUNDS}
    summary, rows = finished(tmp_path, "one", **changes)
    bench = small_bench(tmp_path, sites=len(SITES), **changes)
    config = bench.prepared.bundle.config
    assert config.simulation is not None
    plan = FaultPlan(settings=config.simulation, seed=config.seed, deadline_s=300.0)
    seen: Counter[Fate] = Counter()
    for row in rows:
        fates = Counter(plan.fault(site, round=row["round"], attempt=row["attempt"]).fate for site in SITES)
        seen += fates
        dropped = Counter(row["dropped"])
        assert row["replied"] == fates[Fate.ANSWER]
        assert dropped["no_answer"] == fates[Fate.SILENCE] + fates[Fate.LATE]
        assert dropped["bad_signature"] + dropped["malformed"] == fates[Fate.CORRUPT]
        assert not row["refused"]
    assert set(seen) == set(Fate)
    assert finished(tmp_path, "two", **changes)[0]["adapter_digest"] == summary["adapter_digest"]


def test_a_stop_forgets_nothing_of_what_late_sites_spent(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=len(SITES), simulation={"late": 0.5}, rounds={**ROUNDS, "minimum": 1})
    config = bench.prepared.bundle.config

    class Stopping(Recorder):
        def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
            if round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench, out=tmp_path / "run", view=Stopping())
    assert config.simulation is not None
    plan = FaultPlan(settings=config.simulation, seed=config.seed, deadline_s=config.rounds.deadline_s)
    late = {site for site in SITES if plan.fault(site, round=1, attempt=1).fate is Fate.LATE}
    stopped = read_stopped(tmp_path / "run")
    ledgers = LedgerFile(tmp_path / "run" / "ledgers.jsonl", end=stopped.checkpoint.extra["ledgers_end"]).entries
    assert late
    assert all(len(ledgers[site]) > 1 for site in SITES)  # more than the opening entry


@pytest.mark.parametrize("goal", [0, 2])
def test_a_stopped_run_meets_the_same_weather_and_ends_with_the_same_bits(tmp_path: Path, goal: int) -> None:
    rounds = {**ROUNDS, "cohort": 5, "goal": goal}
    changes: dict[str, Any] = {"simulation": {**WEATHER, "jitter_sigma": 1.0}, "rounds": rounds}
    whole, expected = finished(tmp_path, "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(small_bench(tmp_path, sites=len(SITES), **changes), out=tmp_path / "run", view=Recorder(stop_after=2))
    stopped = read_stopped(tmp_path / "run")
    bench = small_bench(tmp_path, sites=len(SITES), **changes)
    bench = type(bench).open(stopped.bundle.config, bench.source, run_id=stopped.bundle.run_id)
    summary = resume(bench, stopped, out=tmp_path / "run", view=Recorder())
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [{**row, "seconds": None} for row in rows] == [{**row, "seconds": None} for row in expected]
    assert summary["adapter_digest"] == whole["adapter_digest"]
    assert any(row["dropped"].get("not_needed") for row in expected) == bool(goal)


def test_sites_refuse_by_their_own_policy_and_budget(tmp_path: Path) -> None:
    weather = {"strict": 0.25, "spent": 0.125, "other_unit": 0.125}
    summary, rows = finished(tmp_path, "run", simulation=weather, rounds={**ROUNDS, "minimum": 1})
    assert all(row["refused"] == {"terms_not_allowed": 3, "unavailable": 1} and row["replied"] == 4 for row in rows)
    config = small_bench(tmp_path, sites=len(SITES), simulation=weather).prepared.bundle.config
    kinds = tempers(config.simulation, seed=config.seed, sites=SITES)
    for site, epsilon in summary["epsilon_by_site"].items():
        assert (epsilon > 0) == (kinds[site] is Temper.WILLING)


@pytest.mark.parametrize(("bound", "dropped"), [(1e6, {}), (100.0, {"too_large": 1})])
def test_a_poisoned_update_is_well_signed_and_only_its_norm_may_tell(
    bound: float, dropped: dict[str, int], tmp_path: Path
) -> None:
    weather = {"poisoned": 1, "poison_factor": -10_000.0}
    summary, rows = finished(tmp_path, "run", simulation=weather, server={"max_update_norm": bound}, rounds=ROUNDS)
    assert all(row["dropped"] == dropped and row["replied"] == len(SITES) - len(dropped) for row in rows)
    assert (rows[0]["update_norm"] > 100.0) == (not dropped)
    assert set(summary["epsilon_by_site"].values()) == {summary["epsilon"]}  # its own account is as true as any


def test_flipped_labels_change_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=len(SITES), simulation={"poisoned": 1, "poison": "flip"})
    config = bench.prepared.bundle.config
    dealt = {name: site_data(own, config=config) for name, own in bench.source.sites.items()}
    with choose_view(OutputMode.LINES) as view:
        honest = run(replace(bench, data=dealt), out=tmp_path / "honest", view=view)
        poisoned = run(bench, out=tmp_path / "flipped", view=view)
    assert poisoned["epsilon_by_site"] == honest["epsilon_by_site"]
    assert poisoned["adapter_digest"] != honest["adapter_digest"]
    assert poisoned["bytes_up"] > 0.99 * honest["bytes_up"]
