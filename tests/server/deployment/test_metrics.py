from __future__ import annotations

import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_common.files import rewrite_json
from fedward_server.deployment.conducting import Conducting
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.metrics import Sources, registry, serve_metrics
from fedward_server.deployment.roster import Roster
from fedward_server.deployment.runs import RunFolder, RunState
from support.operating import diary_row, new_operator, new_run, write_diary


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


@pytest.fixture
def run(folder: OperatorFolder, tmp_path: Path) -> RunFolder:
    return new_run(folder, tmp_path / "bundle")


def sources(folder: OperatorFolder, runs: dict[str, Conducting] | None = None) -> Sources:
    roster = Roster(folder, None)  # type: ignore[arg-type]
    roster.enrolled, roster.connected = 3, 2
    return Sources(folder=folder, roster=roster, runs=runs or {})


def row(number: int, *, abandoned: bool = False) -> dict[str, object]:
    return diary_row(number, abandoned=abandoned, bytes_down=100, bytes_up=40, refused={"unavailable": 1})


def test_numbers_come_from_the_files(folder: OperatorFolder, run: RunFolder) -> None:
    write_diary(run, row(1), row(2, abandoned=True), row(2))
    run.write_status(replace(run.read_status(), state=RunState.RUNNING, round=2, rounds=4))
    rewrite_json(folder.processes_file, {"children": [{"name": "superlink", "restarts": 2}]})
    ask = registry(sources(folder)).get_sample_value
    assert ask("fedward_sites_enrolled") == 3
    assert ask("fedward_sites_connected") == 2
    assert ask("fedward_run_round", {"run": run.name}) == 2
    assert ask("fedward_runs", {"state": "running"}) == 1
    assert ask("fedward_rounds_total", {"run": run.name, "outcome": "finished"}) == 2
    assert ask("fedward_rounds_total", {"run": run.name, "outcome": "abandoned"}) == 1
    assert ask("fedward_updates_total", {"run": run.name, "outcome": "update"}) == 6
    assert ask("fedward_updates_total", {"run": run.name, "outcome": "unavailable"}) == 3
    assert ask("fedward_updates_total", {"run": run.name, "outcome": "no_answer"}) == 3
    assert ask("fedward_bytes_total", {"run": run.name, "direction": "down"}) == 300
    assert ask("fedward_process_restarts_total", {"process": "superlink"}) == 2
    assert (ask("fedward_certificate_expiry_seconds") or 0) > 86_400


def test_a_diary_that_grows_or_is_cut_is_read_again(folder: OperatorFolder, run: RunFolder) -> None:
    numbers, labels = registry(sources(folder)), {"run": run.name, "outcome": "finished"}
    write_diary(run, row(1))
    assert numbers.get_sample_value("fedward_rounds_total", labels) == 1
    write_diary(run, row(2))
    with run.rounds.open("a") as file:
        file.write('{"round": 3, "repl')
    assert numbers.get_sample_value("fedward_rounds_total", labels) == 2


def test_nothing_there_is_no_error(folder: OperatorFolder) -> None:
    folder.processes_file.write_text("{")
    for path in folder.keys.iterdir():
        path.unlink()
    names = {family.name for family in registry(sources(folder)).collect()}
    assert "fedward_sites_enrolled" in names
    assert "fedward_certificate_expiry_seconds" not in names


def test_a_reader_of_numbers_opens_no_secret(folder: OperatorFolder) -> None:
    folder.authority().server_key.unlink()
    assert registry(sources(folder)).get_sample_value("fedward_certificate_expiry_seconds")


def test_an_inherited_socket_serves_them(folder: OperatorFolder) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    end = serve_metrics(listener, sources(folder))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        end()
    assert "fedward_sites_connected 2.0" in text
