"""``--profile``: a trace and a table a stage, spans that are the whole round, and a run that nothing changes."""

from __future__ import annotations

import csv
import gzip
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from fedward_common.errors import OutputError
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.profiling import REST, Profiles, span
from fedward_simulations.run import run
from support.federation import small_bench
from support.watch import Recorder

STAGES = [
    {"name": "head", "train": ["head"], "rounds": 3},
    {"name": "adapter", "train": ["adapter"], "rounds": 1, "sampling_rate": 0.5, "noise_ratio": 0.5},
]


def profiled(folder: Path, engine: Engine) -> tuple[list[dict[str, str]], Recorder, str]:
    bench, view, out = small_bench(folder, units=20, stages=STAGES), Recorder(), folder / engine.value
    with Profiles(out / "profile", view) as watched:
        summary = run(bench, out=out, view=watched, computing=Computing(engine=engine))
    rows = list(csv.DictReader((out / "profile" / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    return rows, view, summary["adapter_digest"]


@pytest.mark.parametrize("engine", [Engine.COHORT, Engine.SEQUENTIAL])
def test_the_second_round_of_each_stage_is_taken_apart(tmp_path: Path, engine: Engine) -> None:
    rows, view, _ = profiled(tmp_path, engine)
    assert {(row["stage"], row["round"]) for row in rows} == {("head", "2"), ("adapter", "4")}
    for stage in ("head", "adapter"):
        own = [row for row in rows if row["stage"] == stage]
        assert own[-1]["name"] == REST
        assert sum(float(row["part"]) for row in own) == pytest.approx(1, abs=1e-9)  # no span lies in another
        computed = [row for row in own if row["name"].startswith("cohort: ")]
        assert bool(computed) == (engine is Engine.COHORT)
    assert any("where a round's time goes" in note for note in view.notes)


def test_traces_can_be_opened_and_operators_read(tmp_path: Path) -> None:
    profiled(tmp_path, Engine.COHORT)
    folder = tmp_path / "cohort" / "profile"
    with gzip.open(folder / "2-adapter.json.gz", "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "fedward: cohort: forward" for event in events)
    assert "aten::" in (folder / "1-head.txt").read_text(encoding="utf-8")


def test_a_profile_changes_no_result(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=20, stages=STAGES)
    plain = run(bench, out=tmp_path / "plain", view=Recorder())
    assert profiled(tmp_path, Engine.COHORT)[2] == plain["adapter_digest"]


def test_nothing_is_measured_while_no_profile_is_taken() -> None:
    assert isinstance(span("anything"), nullcontext)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watched = Profiles(tmp_path / "file" / "profile", Recorder())
    watched.round_started(round=1, stage="head", attempt=1, cohort=2)
    watched.round_started(round=2, stage="head", attempt=1, cohort=2)
    with pytest.raises(OutputError, match="cannot write to"):
        watched.round_started(round=3, stage="head", attempt=1, cohort=2)
    assert isinstance(span("anything"), nullcontext)


def test_the_profiler_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profiled(tmp_path, Engine.COHORT)
    assert capfd.readouterr().err == ""
