from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedward_simulations.compare import with_comparison
from fedward_simulations.run import run
from support.federation import small_bench
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
