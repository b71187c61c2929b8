"""Real files, as a first user takes them: inspect, then run what it suggests, cut to a few rounds and short texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedward_simulations.cli import main
from support.shared import shared_rows

SETTINGS = (
    "model.max_tokens=16",
    "stages.head.rounds=12",
    "stages.adapter.rounds=1",
    "stages.head.evaluate_every=6",
)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fedward-sim", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "sites", "unit"),
    [
        ("medquad_qtype", 9, "record"),
        ("eicu_dxgroup", 4, "patient"),
        ("banking77", 10, "record"),
        ("sst2", 10, "record"),
    ],
)
def test_inspect_then_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sites: int, unit: str) -> None:
    file = shared_rows(f"{name}.train.jsonl.gz", tmp_path)
    run_file, out = tmp_path / "run.toml", tmp_path / "run"
    call(monkeypatch, "inspect", str(file), "--write", str(run_file))
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    call(monkeypatch, "run", str(run_file), "--out", str(out), "--json", *changes)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["unit"] == unit
    assert summary["sites"] <= 10
    assert summary["sites"] >= min(sites, 4)
    assert 7.9 < summary["epsilon"] <= 8.0
    assert 0 < summary["accuracy"] <= 1
    assert (out / "adapter" / "adapter_model.safetensors").exists()
