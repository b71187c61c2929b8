from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.errors import OutputError
from fedward_server.checkpoint import Checkpoints
from fedward_server.commands.export import export, summary_of
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder
from fedward_server.state import State
from support.operating import diary_row, new_operator, new_run, write_diary

EVALUATED = {"accuracy": 0.7, "macro_f1": 0.6, "majority_accuracy": 0.3}


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


@pytest.fixture
def run(folder: OperatorFolder, tmp_path: Path) -> RunFolder:
    return new_run(folder, tmp_path / "b")


def finish(run: RunFolder, rounds: int, *, run_id: str | None = None) -> State:
    bundle = run.load_bundle()
    state = replace(State.initial(bundle.initial.scaled(2)), finished=rounds)
    Checkpoints(run.checkpoints).save(state, run_id=run_id or bundle.run_id, heads={}, extra={})
    return state


def test_the_adapter_of_the_last_finished_round_in_pefts_format(
    folder: OperatorFolder, run: RunFolder, tmp_path: Path
) -> None:
    state = finish(run, 3)
    write_diary(run, diary_row(1), diary_row(2, evaluation=EVALUATED), diary_row(3))
    report = export(folder, "small", tmp_path / "out")
    assert report.facts["adapter_digest"] == state.adapter.digest
    assert "3 of 4: the run is not finished" in "\n".join(report.lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "labels.json",
    }
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["yes", "no"]


def test_by_default_it_lies_in_the_runs_folder_and_is_never_overwritten(folder: OperatorFolder, run: RunFolder) -> None:
    finish(run, 4)
    write_diary(run, diary_row(4, evaluation=EVALUATED))
    export(folder, "small", None)
    assert (run.adapter / "adapter_model.safetensors").is_file()
    with pytest.raises(OutputError, match="never overwritten"):
        export(folder, "small", None)
    assert not list(run.root.glob(".adapter*"))


def test_a_run_without_data_at_the_coordinator_exports_too(
    folder: OperatorFolder, run: RunFolder, tmp_path: Path
) -> None:
    finish(run, 4)
    write_diary(run, diary_row(4, sites={"accuracy": 0.5, "loss": 0.1, "units": 9.0, "sites": 2.0}))
    export(folder, "small", tmp_path / "out")
    assert "nan" not in (tmp_path / "out" / "README.md").read_text().lower()


def test_the_summary_says_what_was_promised_and_who_took_part(run: RunFolder) -> None:
    write_diary(run, diary_row(1, replied=3), diary_row(2, replied=1), diary_row(3, replied=9, abandoned=True))
    bundle = run.load_bundle()
    summary = summary_of(run, bundle, finished=2, digest="ab")
    assert summary["epsilon"] == bundle.config.privacy.epsilon
    assert summary["epsilon_is"] == "promised"
    assert (summary["sites"], summary["rounds"]) == (3, 2)
    assert summary["base_fingerprint"] == bundle.spec.base_fingerprint
    assert "accuracy" not in summary
    assert summary["waivers"] == []


def test_measured_figures_are_those_of_the_exported_round_or_left_out(run: RunFolder) -> None:
    sites = {"accuracy": 0.5, "loss": 0.1, "units": 9.0, "sites": 2.0}
    write_diary(run, diary_row(1), diary_row(2, evaluation=EVALUATED, sites=sites), diary_row(3))
    write_diary(run, diary_row(4, evaluation=EVALUATED | {"accuracy": 0.9}, sites=sites))
    bundle = run.load_bundle()
    found = {number: summary_of(run, bundle, finished=number, digest="ab") for number in (1, 2, 3, 4)}
    assert {number: one.get("accuracy") for number, one in found.items()} == {1: None, 2: 0.7, 3: None, 4: 0.9}
    assert [number for number, one in found.items() if one["site_metrics"]] == [2, 4]


def test_nothing_finished_is_nothing_to_export(folder: OperatorFolder, run: RunFolder) -> None:
    with pytest.raises(OutputError, match="no round of run small is finished"):
        export(folder, "small", None)
    finish(run, 0)
    with pytest.raises(OutputError, match="no round of run small is finished"):
        export(folder, "small", None)


def test_a_checkpoint_of_another_run_is_refused(folder: OperatorFolder, run: RunFolder) -> None:
    finish(run, 2, run_id="ef" * 32)
    with pytest.raises(OutputError, match="is of another run"):
        export(folder, "small", None)


def test_a_folder_that_cannot_be_written_leaves_nothing(folder: OperatorFolder, run: RunFolder, tmp_path: Path) -> None:
    finish(run, 2)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "missing" / "out"):
        with pytest.raises(OutputError) as caught:
            export(folder, "small", out)
        assert caught.value.hint
