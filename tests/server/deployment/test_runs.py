from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.errors import FedwardError, InputError, OutputError
from fedward_server.deployment import runs as module
from fedward_server.deployment.runs import RunFolder, RunState, RunStatus, Wanted, create_run, find_run, list_runs
from support.operating import bundle_folder

ONE, TWO, THREE = "aa" * 32, "ab" * 32, "cc" * 32


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(place: Path, tmp_path: Path) -> RunFolder:
    return create_run(place, bundle_folder(tmp_path / "b", run_id=ONE), name="wards")


def test_a_new_run_is_wanted_and_waits(run: RunFolder) -> None:
    assert run.load_bundle().run_id == run.run_id == ONE
    assert run.read_wanted() is Wanted.RUNNING
    status = run.read_status()
    assert (status.state, status.round, status.rounds, status.starts) == (RunState.WAITING, 0, 4, 0)
    assert status.since == run.created > 1e9


@pytest.mark.parametrize("file", ["bundle.json", "initial.safetensors", "frozen.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_the_run_is_there_whole_and_checked_or_not_at_all(place: Path, tmp_path: Path, file: str, damage: str) -> None:
    bundle = bundle_folder(tmp_path / "b")
    if damage == "cut":
        (bundle / file).write_bytes((bundle / file).read_bytes()[:-3])
    else:
        (bundle / file).unlink()
    with pytest.raises(OutputError) as caught:
        create_run(place, bundle)
    assert caught.value.hint
    assert os.listdir(place) == []


def test_what_a_killed_one_left_is_gone_with_the_next(place: Path, tmp_path: Path) -> None:
    draft = place / f".draft-{'0a' * 8}"
    (draft / "bundle").mkdir(parents=True)
    (draft / "bundle" / "frozen.safetensors").write_bytes(b"half of it")
    create_run(place, bundle_folder(tmp_path / "b"), name="wards")
    assert os.listdir(place) == ["wards"]


@pytest.mark.parametrize("step", ["_copy", "rewrite_json", "_settle"])
def test_a_crash_leaves_no_half_run(place: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    bundle = bundle_folder(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(module, step, full)
        with pytest.raises(OutputError, match="No space left"):
            create_run(place, bundle)
    assert os.listdir(place) == []
    (place / ".draft-0123").mkdir()  # of a command that was killed
    (place / "thesis.txt").write_text("")
    assert list_runs(place) == []
    assert create_run(place, bundle).name == "small"


def test_a_bundle_becomes_one_run(place: Path, run: RunFolder, tmp_path: Path) -> None:
    for name in ("other", None):
        with pytest.raises(InputError, match="this bundle is run wards already") as caught:
            create_run(place, tmp_path / "b", name=name)
    assert "resume wards" in caught.value.hint
    assert [found.name for found in list_runs(place)] == ["wards"]


def test_without_a_name_it_has_that_of_the_run_file_and_a_number(place: Path, tmp_path: Path) -> None:
    names = [create_run(place, bundle_folder(tmp_path / f"b{n}", run_id=f"{n}a" * 32)).name for n in range(3)]
    assert names == ["small", "small-2", "small-3"]
    long = bundle_folder(tmp_path / "long", run_id=ONE, name="x" * 64)
    again = bundle_folder(tmp_path / "again", run_id=TWO, name="x" * 64)
    assert create_run(place, long).name == "x" * 64
    assert create_run(place, again).name == "x" * 58 + "-2"


def test_a_taken_name_is_refused(place: Path, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is a run wards already"):
        create_run(place, bundle_folder(tmp_path / "c", run_id=TWO), name="wards")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "-x", "a b", "x" * 65])
def test_a_name_is_a_name_and_no_path(place: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no name for a run"):
        create_run(place, bundle_folder(tmp_path / "b"), name=name)


def test_a_run_is_found_by_name_or_by_a_beginning(place: Path, tmp_path: Path) -> None:
    made = {
        name: create_run(place, bundle_folder(tmp_path / name, run_id=run_id), name=name)
        for name, run_id in (("wards", ONE), ("wards-2", TWO), ("icu", THREE))
    }
    assert find_run(place, "wards") == made["wards"]
    assert find_run(place, "wards-") == find_run(place, "ab") == made["wards-2"]
    assert find_run(place, "i") == find_run(place, THREE) == made["icu"]
    for text in ("ward", "a"):
        with pytest.raises(InputError, match="is the beginning of 2 runs: wards, wards-2"):
            find_run(place, text)
    for text in ("", "x", "../runs/icu", "/"):
        with pytest.raises(InputError, match="there is no run"):
            find_run(place, text)


def test_runs_are_listed_by_age(place: Path, tmp_path: Path) -> None:
    for name, run_id in (("z", ONE), ("a", TWO)):
        create_run(place, bundle_folder(tmp_path / name, run_id=run_id), name=name)
    assert [run.name for run in list_runs(place)] == ["z", "a"]
    assert list_runs(tmp_path / "nowhere") == []


def test_a_status_round_trips_and_what_is_strange_has_its_default(run: RunFolder) -> None:
    status = RunStatus(state=RunState.RUNNING, round=2, rounds=4, stage="head", attempt=1, since=5.5, starts=3)
    run.write_status(status)
    assert run.read_status() == status
    row = json.loads(run.status_file.read_text())
    run.status_file.write_text(json.dumps({**row, "unknown": 1, "round": "many", "starts": None}))
    assert run.read_status() == replace(status, round=0, starts=0)
    for garbage in ("", "[]", '{"state": "asleep"}', "{"):
        run.status_file.write_text(garbage)
        assert run.read_status() == RunStatus()


def test_a_reader_sees_the_old_status_or_the_new_one(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run.read_status()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError):
            run.write_status(RunStatus(state=RunState.FAILED))
    assert run.read_status() == before


def test_a_damaged_wish_means_stopped(run: RunFolder) -> None:
    for garbage in ("", "[]", '{"state": "go"}', "{"):
        run.wanted_file.write_text(garbage)
        assert run.read_wanted() is Wanted.STOPPED


def test_stop_and_resume_are_wishes(run: RunFolder) -> None:
    created = run.created
    run.stop()
    assert run.read_wanted() is Wanted.STOPPED
    assert run.read_status().state is RunState.WAITING
    run.resume()
    assert run.read_wanted() is Wanted.RUNNING
    assert run.created == created


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.ABANDONED, RunState.STOPPED])
def test_resume_forgets_earlier_failures(run: RunFolder, state: RunState) -> None:
    run.write_status(RunStatus(state=state, round=2, rounds=4, starts=6, reason="r", hint="h"))
    run.resume()
    status = run.read_status()
    assert (status.state, status.round, status.starts, status.reason, status.hint) == (RunState.WAITING, 2, 0, "", "")


def test_a_running_run_is_left_in_peace_and_a_finished_one_stays(run: RunFolder) -> None:
    at_work = RunStatus(state=RunState.RUNNING, round=1, rounds=4, starts=2)
    run.write_status(at_work)
    run.resume()
    assert run.read_status() == at_work
    run.write_status(RunStatus(state=RunState.FINISHED, round=4, rounds=4))
    with pytest.raises(FedwardError, match="is finished"):
        run.resume()
