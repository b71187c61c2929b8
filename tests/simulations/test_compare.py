from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedward_common.config import RunConfig
from fedward_simulations import reference
from fedward_simulations.compare import with_comparison, without_privacy
from fedward_simulations.reference import ReferenceSite, cohort, pooled
from fedward_simulations.run import run
from support.federation import in_pairs, small_bench
from support.watch import Recorder


def test_both_baselines_stand_beside_the_result_at_the_same_epsilon(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    out = tmp_path / "run"
    summary = run(bench, out=out, view=Recorder())
    extended = with_comparison(bench, summary, out=out, view=Recorder())
    assert json.loads((out / "summary.json").read_text()) == extended
    assert set(extended["comparison"]) == {"head only", "no privacy"}
    alone = json.loads((out / "compare" / "head-only" / "summary.json").read_text())
    assert alone["accuracy"] == extended["comparison"]["head only"]
    assert alone["epsilon"] == pytest.approx(summary["epsilon"], rel=5e-3)
    assert alone["run_id"] != summary["run_id"]


def test_without_privacy_the_task_is_learned(tmp_path: Path) -> None:
    stages = [{"name": "head", "train": ["head"], "rounds": 60}]
    bench = small_bench(tmp_path, units=200, stages=stages)
    out = tmp_path / "run"
    summary = run(bench, out=out, view=Recorder())
    extended = with_comparison(bench, summary, out=out, view=Recorder())
    assert set(extended["comparison"]) == {"no privacy"}
    assert extended["comparison"]["no privacy"] > summary["majority_accuracy"] + 0.1


def test_the_same_sites_are_asked_without_privacy_as_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def noted(config: RunConfig, sites: Sequence[ReferenceSite], number: int) -> Sequence[ReferenceSite]:
        found = cohort(config, sites, number)
        asked.append([site.name for site in found])
        return found

    monkeypatch.setattr(reference, "cohort", noted)
    bench, view = small_bench(tmp_path, sites=5, rounds={"cohort": 2}), Recorder()
    summary = run(bench, out=tmp_path / "run", view=view)
    names = [name for name, _ in view.outcomes]
    with_privacy = [sorted(names[start : start + 2]) for start in range(0, len(names), 2)]
    with_comparison(bench, summary, out=tmp_path / "run", view=Recorder())
    assert asked == with_privacy
    assert len({tuple(names) for names in asked}) > 1


def test_where_sites_misbehave_no_figure_of_another_run_stands_for_no_privacy(tmp_path: Path) -> None:
    bench, view = small_bench(tmp_path, sites=4, simulation={"strict": 0.5}), Recorder()
    summary = run(bench, out=tmp_path / "run", view=Recorder())
    extended = with_comparison(bench, summary, out=tmp_path / "run", view=view)
    assert set(extended["comparison"]) == {"head only"}
    assert sum("knows no [simulation]" in note for note in view.notes) == 1


def test_pairs_are_read_as_pairs_also_without_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(twin: Any, tokens: Any, types: Any) -> Any:
        seen.append(types is not None and {int(row.max()) for row in types} == {1})
        return pooled(twin, tokens, types)

    monkeypatch.setattr(reference, "pooled", watched)
    without_privacy(in_pairs(small_bench(tmp_path, data={"train": "memory", "text": ["text", "other"]})))
    assert seen and all(seen)
