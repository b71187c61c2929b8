from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedward_common.config import ModelConfig
from fedward_common.errors import InputError, OutputError, RoundAbandoned
from fedward_server.commands import runs as module
from fedward_server.commands.runs import begin, outcome
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunState, RunStatus
from support.coordinating import bundle_of
from support.operating import bundle_folder, new_operator, new_run


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text("schema = 1\n")
    return path


def prepared(code: int, stderr: str = "") -> Any:
    """Instead of the child process: what it was asked is kept in ``asked``."""
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        if code == 0:
            bundle_folder(Path(command[command.index("--out") + 1]))
        return SimpleNamespace(returncode=code, stderr=stderr)

    return SimpleNamespace(run=run, asked=asked)


def test_a_run_file_is_prepared_in_another_process(
    folder: OperatorFolder, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = prepared(0)
    monkeypatch.setattr(subprocess, "run", child.run)
    run, report = begin(folder, run_file, name="wards", settings=["adapter.rank=2"])
    assert run.name == report.facts["name"] == "wards"
    command = child.asked[0]
    assert command[1:5] == ["-m", "fedward_simulations", "prepare", str(run_file)]
    assert command[-2:] == ["--set", "adapter.rank=2"]
    assert not Path(command[command.index("--out") + 1]).exists()


def test_a_real_run_file_becomes_a_run(folder: OperatorFolder, tiny: ModelConfig, run_file: Path) -> None:
    run_file.write_text(
        f'schema = 1\nname = "wards"\n[model]\nbase = "{tiny.base}"\nmax_tokens = 32\n'
        '[task]\nlabels = ["lung", "skin"]\n[data]\ntrain = "nowhere.csv"\n[privacy]\ndelta = 1e-4\n'
    )
    run, _ = begin(folder, run_file, name=None, settings=["adapter.rank=2"])
    assert (run.name, run.load_bundle().spec.rank) == ("wards", 2)


def test_what_preparing_says_is_said_again(
    folder: OperatorFolder, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "SomeWarning: noise\nfedward: error: run.toml: task is missing\nhint: fill it in\n"
    monkeypatch.setattr(subprocess, "run", prepared(2, said).run)
    with pytest.raises(InputError, match=r"run\.toml: task is missing") as caught:
        begin(folder, run_file, name=None, settings=())
    assert caught.value.hint == "fill it in"
    monkeypatch.setattr(subprocess, "run", prepared(1, "Traceback: CANARY\nKeyError: CANARY").run)
    with pytest.raises(InputError, match="ended with exit code 1") as caught:
        begin(folder, run_file, name=None, settings=())
    assert "CANARY" not in str(caught.value) + caught.value.hint
    monkeypatch.setattr(subprocess, "run", prepared(130).run)
    with pytest.raises(KeyboardInterrupt):
        begin(folder, run_file, name=None, settings=())
    assert folder.list_runs() == []


def test_without_torch_a_run_file_needs_another_machine(
    folder: OperatorFolder, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEEDED", ("fedward_simulations", "torch_that_is_not_there"))
    with pytest.raises(InputError, match="torch_that_is_not_there is not installed") as caught:
        begin(folder, run_file, name=None, settings=())
    assert "fedward-sim prepare" in caught.value.hint


def test_a_bundle_takes_no_settings(folder: OperatorFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a bundle is fixed"):
        begin(folder, bundle_folder(tmp_path / "b"), name=None, settings=["a=1"])
    with pytest.raises(InputError, match="there is no bundle and no run file"):
        begin(folder, tmp_path / "nowhere", name=None, settings=())


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (RunState.FINISHED, None),
        (RunState.STOPPED, None),
        (RunState.ABANDONED, RoundAbandoned),
        (RunState.FAILED, OutputError),
    ],
)
def test_how_a_run_ended_decides_the_exit_code(
    folder: OperatorFolder, tmp_path: Path, state: RunState, problem: type[Exception] | None
) -> None:
    run = new_run(folder, tmp_path / "b")
    run.write_status(RunStatus(state=state, reason="a reason", rounds=4))
    report = outcome(folder, run)
    assert (type(report.problem) if report.problem else None) is problem
    assert report.problem is None or "fedward-server resume small" in report.problem.hint
    run.write_status(RunStatus(state=state, reason="a reason", hint="buy a disk"))
    told = outcome(folder, run).problem
    assert told is None or told.hint == "buy a disk"


@pytest.mark.parametrize(("deadline_s", "noted"), [(59.0, True), (60.0, False)])
def test_a_deadline_that_is_shorter_than_two_slots_is_noted(
    folder: OperatorFolder, tmp_path: Path, deadline_s: float, noted: bool
) -> None:
    (tmp_path / "bundle").mkdir()
    bundle_of(rounds={"deadline_s": deadline_s}).save(tmp_path / "bundle")
    _, report = begin(folder, tmp_path / "bundle", name=None, settings=())
    assert any("note: rounds.deadline_s is 59 s" in line for line in report.lines) is noted
    assert bool(report.facts["notes"]) is noted
