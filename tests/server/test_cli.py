from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedward_common.errors import InputError
from fedward_common.files import rewrite_json
from fedward_server.cli import app, main
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunState, RunStatus, Wanted
from support.operating import bundle_folder, diary_row, new_operator, new_run, statement, write_diary
from support.typed import Told, typed

SERVER = [sys.executable, "-m", "fedward_server"]
HEAVY = ("torch", "flwr", "transformers", "peft")


Command = Callable[..., Told]


@pytest.fixture
def command() -> Command:
    return partial(typed, main, "fedward-server")


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return new_operator(tmp_path / "op")


def site_file(tmp_path: Path, name: str, *, node: int = 1, signing: int = 1) -> Path:
    path = tmp_path / f"{name}.pub"
    path.write_text(statement(name, node=node, signing=signing))
    return path


def commands() -> list[str]:
    import typer

    return sorted(typer.main.get_group(app).commands)


# ---- every command -----------------------------------------------------------------
@pytest.mark.parametrize("word", commands())
def test_every_command_has_the_common_options_and_says_what_it_does(command: Command, word: str) -> None:
    told = command(word, "--help")
    assert told.code == 0
    for option in ("--json", "--verbose", "-v", "--quiet", "--version", "[DIR]"):
        assert option in told.out
    assert re.fullmatch(r"fedward \d+\.\d+\.\d+\n", command(word, "--version").out)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["status", "nowhere"], ["run", "x", "nowhere"], ["--version"]],
)
def test_help_and_early_errors_answer_fast(arguments: list[str]) -> None:
    assert any(_seconds(arguments) < 1.5 for _ in range(3))


def _seconds(arguments: list[str]) -> float:
    start = os.times()
    subprocess.run([*SERVER, *arguments], capture_output=True, check=False)
    end = os.times()  # CPU time of the child: the machine may be busy with other tests
    return end.children_user + end.children_system - start.children_user - start.children_system


@pytest.mark.parametrize("program", ["--help", "init", "status", "sites", "stop x"])
def test_no_command_but_those_with_tensors_loads_anything_heavy(folder: OperatorFolder, program: str) -> None:
    code = (
        f"import atexit, sys\natexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        "from fedward_server.cli import main\n"
        f"sys.argv = ['fedward-server', *{program.split()!r}, {str(folder.root)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert done.stdout.endswith("[]\n")


def test_what_start_does_before_it_leaves_the_network_makes_no_thread(folder: OperatorFolder) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nimport fedward_server.cli, fedward_server.deployment.start\n"
        "from fedward_server.commands.lifecycle import preflight\n"
        "from fedward_server.deployment.folder import OperatorFolder\n"
        f"folder = OperatorFolder.open(Path({str(folder.root)!r}))\npreflight(folder)\n"
        "with folder.hold():\n    folder.authority().certificate()\n"
        "print('numpy' in sys.modules, len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False 1\n", done.stderr


def test_an_error_that_nobody_foresaw_shows_its_type_and_not_its_text(
    folder: OperatorFolder, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("CANARY patient 7")

    monkeypatch.setattr(OperatorFolder, "site_states", broken)
    told = command("sites", folder.root)
    assert told.code == 2
    assert re.fullmatch(r"fedward: error: internal error of type KeyError at \w+\.py:\d+\nhint: .*\n", told.err)
    assert "CANARY" not in told.out + told.err


def test_quiet_says_nothing_and_json_is_one_object(folder: OperatorFolder, command: Command) -> None:
    for words in (["init"], ["status"], ["sites"], ["runs"], ["renew"], ["shutdown"]):
        told = command(*words, folder.root, "--quiet")
        assert (told.out, told.err, told.code) == ("", "", 0)
        assert command(*words, folder.root, "--json").json["command"] == words[0]


def test_a_reader_that_has_seen_enough_is_no_error(folder: OperatorFolder) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*SERVER, "status", folder.root], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""


# ---- init, renew -------------------------------------------------------------------
def test_init_prints_what_sites_need_and_no_secret(tmp_path: Path, command: Command) -> None:
    told = command("init", tmp_path / "op", "--name", "fed.example.org", "--port", "9443", "-v")
    assert told.code == 0, told.err
    keys = OperatorFolder.open(tmp_path / "op").authority()
    for text in ("fed.example.org:9443", str(keys.ca_file), keys.plan_public, keys.plan_fingerprint):
        assert text in told.out
    for path in (keys.ca_key, keys.server_key, keys.plan_key_file):
        assert path.read_text().splitlines()[1] not in told.out


def test_init_again_changes_nothing_and_says_so(tmp_path: Path, command: Command) -> None:
    first = command("init", tmp_path / "op", "--name", "fed.example.org", "--json").json
    files = {path: path.read_bytes() for path in (tmp_path / "op").rglob("*") if path.is_file()}
    told = command("init", tmp_path / "op", "--name", "other.org", "--port", "1")
    assert told.code == 0
    assert "nothing was changed" in told.out
    assert "to add other.org" in told.out
    assert {path: path.read_bytes() for path in (tmp_path / "op").rglob("*") if path.is_file()} == files
    assert command("init", tmp_path / "op", "--json").json == {**first, "new": False}


def test_init_in_the_current_folder_takes_the_machines_names(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my op!").mkdir()
    monkeypatch.chdir(tmp_path / "my op!")
    told = command("init")
    assert told.code == 0, told.err
    assert "the names are those of this machine" in told.out
    assert 'name = "my-op"' in Path("server.toml").read_text()
    assert set(OperatorFolder.open(Path(".")).authority().certificate().names) >= {"localhost", "127.0.0.1"}
    assert command("status").code == 0


def test_renew_keeps_the_authority_and_takes_names(folder: OperatorFolder, command: Command) -> None:
    ca = folder.authority().ca_file.read_bytes()
    told = command("renew", folder.root, "--name", "other.org", "--json").json
    assert told["names"] == ["other.org"]
    assert "server.toml also names" in command("status", folder.root).out
    assert command("renew", folder.root).code == 0
    assert folder.authority().certificate().names == folder.load_server().gateway.names
    assert folder.authority().ca_file.read_bytes() == ca
    assert command("renew", folder.root, "--name", "a/b").code == 2


def test_renew_mends_a_lost_server_key(folder: OperatorFolder, command: Command) -> None:
    (folder.keys / "server.key").unlink()
    (folder.keys / "server.pem").write_text("damaged")
    done = command("renew", folder.root)
    assert (done.code, "none that can be read" in done.out) == (0, True)
    assert folder.authority().certificate().days_left() > 390


# ---- sites -------------------------------------------------------------------------
def test_enrolling_shows_both_fingerprints_and_works_while_the_server_is_down(
    folder: OperatorFolder, tmp_path: Path, command: Command
) -> None:
    told = command("enrol", site_file(tmp_path, "ucl"), folder.root, "--yes", "--name", "london")
    enrolled = folder.sites()["london"]
    assert told.code == 0, told.err
    assert enrolled.node_fingerprint in told.out
    assert enrolled.signing_fingerprint in told.out
    assert "london  (it calls itself ucl)" in told.out
    assert "the server is down: the site is let in once `fedward-server start" in told.out
    again = command("enrol", tmp_path / "ucl.pub", folder.root, "--name", "london")
    assert (again.code, "nothing was changed" in again.out) == (0, True)


def test_nobody_is_enrolled_where_nobody_can_compare(
    folder: OperatorFolder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "empty").open("w+") as empty:
        monkeypatch.setattr(sys, "stdin", empty)
        told = command("enrol", site_file(tmp_path, "ucl"), folder.root)
    assert told.code == 2
    assert "SHA256:" in told.out
    assert "--yes" in told.err
    assert folder.sites() == {}


@pytest.mark.parametrize(("answer", "enrolled"), [("y\n", True), ("n\n", False), ("\n", False), ("\x04", False)])
def test_a_person_at_a_terminal_is_asked(folder: OperatorFolder, tmp_path: Path, answer: str, enrolled: bool) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SERVER, "enrol", site_file(tmp_path, "ucl"), folder.root],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        os.write(ours, answer.encode())
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(ours)
        os.close(theirs)
    assert "SHA256:" in out
    assert "another channel" in err
    assert ("ucl" in folder.sites()) == enrolled
    assert process.returncode == (0 if enrolled else 130 if answer == "\x04" else 2)


def test_sites_are_as_the_desk_saw_them(folder: OperatorFolder, command: Command) -> None:
    folder.enrol(statement("charite"))
    folder.enrol(statement("ucl", node=2, signing=2))
    (folder.sites_folder / "torn.pub").write_text("{")
    rows = {"charite": {"connected": True, "last_seen": time.time() - 4, "node_id": "77"}}
    rewrite_json(folder.state / "versions.json", {"charite": "0.1.0"})  # the gateway heard it
    rewrite_json(folder.sites_file, {"schema": 1, "at": time.time(), "sites": rows})
    down = command("sites", folder.root)
    assert re.search(r"charite +\? +\d s ago +0\.1\.0 +77", down.out)
    assert "torn.pub cannot be read and enrols nobody" in down.out
    assert "the server is down" in down.out
    with folder.hold():
        up = command("sites", folder.root)
        facts = command("sites", folder.root, "--json").json
    assert re.search(r"charite +yes +\d s ago", up.out)
    assert re.search(r"ucl +no +never", up.out)
    assert [(row["name"], row["connected"]) for row in facts["sites"]] == [("charite", True), ("ucl", False)]
    assert folder.sites()["ucl"].signing_fingerprint in command("sites", folder.root, "-v").out
    os.utime(folder.sites_file, (1, 1))
    with folder.hold():
        assert "has not yet said" in command("sites", folder.root).out


def test_a_site_that_flower_does_not_take_is_named(folder: OperatorFolder, command: Command) -> None:
    folder.enrol(statement("ucl"))
    rewrite_json(folder.sites_file, {"sites": {"ucl": {"connected": False, "problem": "it needs a new key"}}})
    assert "ucl: it needs a new key" in command("sites", folder.root).out


def test_revoking_works_while_the_server_is_down(folder: OperatorFolder, command: Command) -> None:
    folder.enrol(statement("ucl"))
    told = command("revoke", "ucl", folder.root)
    assert told.code == 0
    assert "once `fedward-server start" in told.out
    assert folder.sites() == {}


# ---- runs --------------------------------------------------------------------------
def test_a_run_is_wished_for_while_the_server_is_down(folder: OperatorFolder, tmp_path: Path, command: Command) -> None:
    told = command("run", bundle_folder(tmp_path / "b"), folder.root, "--name", "wards")
    assert told.code == 0, told.err
    assert "once `fedward-server start" in told.out
    assert folder.find_run("wards").read_wanted() is Wanted.RUNNING
    listed = command("runs", folder.root)
    assert re.search(r"wards +waiting +0/4", listed.out)
    assert command("runs", folder.root, "--json").json["runs"][0]["run_id"] == "cd" * 32


def test_a_run_is_followed_where_the_server_runs(folder: OperatorFolder, tmp_path: Path, command: Command) -> None:
    def serve() -> None:
        while not folder.list_runs():
            time.sleep(0.05)
        run = folder.list_runs()[0]
        write_diary(run, diary_row(1))
        run.write_status(RunStatus(state=RunState.FINISHED, round=4, rounds=4, since=1.0))

    with folder.hold():
        thread = threading.Thread(target=serve)
        thread.start()
        told = command("run", bundle_folder(tmp_path / "b"), folder.root)
        thread.join()
    assert told.code == 0, told.err
    assert "round 1/4  head" in told.out
    assert "finished: fedward-server export small" in told.out


def test_a_run_that_fails_while_followed_is_exit_code_2(
    folder: OperatorFolder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = RunStatus(state=RunState.FAILED, reason="no disk space", hint="free some")
    monkeypatch.setattr("fedward_server.deployment.runs.RunFolder.read_status", lambda self: failed)
    told = command("run", bundle_folder(tmp_path / "b"), folder.root, "--follow")
    assert told.code == 2
    assert told.err == "fedward: error: run small failed\nhint: free some\n"
    assert "no disk space" in told.out


def test_ctrl_c_leaves_the_run_going_and_says_so(folder: OperatorFolder, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*SERVER, "run", bundle_folder(tmp_path / "b"), folder.root, "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "run small: waiting" in line:
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "fedward: note: run small goes on\nhint: fedward-server stop small ends it\n"
    assert folder.find_run("small").read_wanted() is Wanted.RUNNING


def test_stop_and_resume_work_while_the_server_is_down(
    folder: OperatorFolder, tmp_path: Path, command: Command
) -> None:
    run = new_run(folder, tmp_path / "b")
    assert "once `fedward-server start" in command("stop", "small", folder.root).out
    assert run.read_wanted() is Wanted.STOPPED
    assert re.search(r"small +stopping", command("runs", folder.root).out)
    assert "from round 1 of 4" in command("resume", "sm", folder.root).out
    assert run.read_wanted() is Wanted.RUNNING
    run.write_status(RunStatus(state=RunState.FINISHED, round=4, rounds=4))
    for word in ("stop", "resume"):
        told = command(word, "small", folder.root)
        assert (told.code, "is finished" in told.err) == (2, True)


def test_logs_are_lines_and_go_on_until_the_run_is_over(
    folder: OperatorFolder, tmp_path: Path, command: Command
) -> None:
    run = new_run(folder, tmp_path / "b")
    assert "nothing is logged yet" in command("logs", "small", folder.root).out
    rows = [{"time": "2026-01-31T12:00:00+00:00", "level": "INFO", "message": f"m{n}\x1b[2J"} for n in range(60)]
    run.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short, whole = command("logs", "small", folder.root).out, command("logs", "small", folder.root, "-v").out
    assert short.startswith("10 earlier lines: see -v\n")
    assert "m0?" in whole
    assert "m0?" not in short
    assert "\x1b" not in whole
    run.write_status(RunStatus(state=RunState.FINISHED))
    followed = command("logs", "small", folder.root, "-f").out.splitlines()
    assert len(followed) == 60
    assert len(command("logs", "small", folder.root, "-f", "--json").out.splitlines()) == 60


# ---- status, start, shutdown -------------------------------------------------------
def test_status_is_the_whole_at_a_glance(folder: OperatorFolder, tmp_path: Path, command: Command) -> None:
    folder.enrol(statement("ucl"))
    run = new_run(folder, tmp_path / "b")
    run.write_status(RunStatus(state=RunState.RUNNING, round=1, rounds=4, stage="head", sites_connected=1, starts=1))
    child = {"name": "superlink", "state": "running", "pid": 4321, "restarts": 2, "since": "2026-01-31T12:00:00+00:00"}
    rewrite_json(folder.processes_file, {"version": 1, "pid": 1, "children": [child]})
    down = command("status", folder.root)
    assert down.code == 0
    assert "down: fedward-server start" in down.out
    assert "superlink" not in down.out
    assert re.search(r"small +waiting  round 1/4  the server is down", down.out)
    with folder.hold():
        up = command("status", folder.root)
        facts = command("status", folder.root, "--json").json
    assert re.search(r"superlink +running +4321 +\d+ d +2", up.out)
    assert re.search(r"small +running  round 1/4  head  1 site connected", up.out)
    assert "1 site enrolled" in up.out
    assert facts["certificate_days_left"] > 390
    assert facts["processes"][0]["name"] == "superlink"


def test_status_of_one_run_shows_its_rounds(folder: OperatorFolder, tmp_path: Path, command: Command) -> None:
    run = new_run(folder, tmp_path / "b")
    write_diary(run, *(diary_row(number) for number in range(1, 13)))
    told = command("status", folder.root, "--run", "small")
    assert "2 earlier lines: see -v" in told.out
    assert len(re.findall(r"(?m)^round ", told.out)) == 10
    assert len(re.findall(r"(?m)^round ", command("status", folder.root, "--run", "small", "-v").out)) == 12


def test_status_says_what_is_not_in_order(folder: OperatorFolder, command: Command) -> None:
    (folder.keys / "plan.key").chmod(0o644)
    told = command("status", folder.root)
    assert told.code == 2
    assert "plan.key is open to other accounts" in told.err
    assert "0 sites enrolled" in told.out


def test_status_warns_of_a_certificate_that_ends(folder: OperatorFolder, command: Command) -> None:
    for days, expected in ((20, "run `fedward-server renew` soon"), (-2, "EXPIRED on")):
        folder.authority().renew(("fed.example.org",), days=days)
        assert expected in command("status", folder.root).out


def test_a_second_start_is_refused(folder: OperatorFolder, command: Command) -> None:
    with folder.hold():
        told = command("start", folder.root)
    assert told.code == 2
    assert f"the server runs already, as process {os.getpid()}" in told.err


def test_start_hands_over_and_passes_the_exit_code_on(
    folder: OperatorFolder, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fedward_server.deployment.start as module

    monkeypatch.setattr(module, "start", lambda given, *, verbose: 3 if verbose and given == folder else 4)
    assert command("start", folder.root, "-v").code == 3
    folder.authority().renew(("other.org",))
    assert "the certificate does not carry 192.0.2.7, fed.example.org" in command("start", folder.root).err

    def in_use(*_: object, **__: object) -> int:
        raise InputError("port 8443 is in use", hint="end what has it")

    monkeypatch.setattr(module, "start", in_use)
    assert command("start", folder.root).err.endswith("fedward: error: port 8443 is in use\nhint: end what has it\n")


def test_shutdown_ends_the_process_that_holds_the_folder(folder: OperatorFolder, command: Command) -> None:
    assert "was not running" in command("shutdown", folder.root).out
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fedward_server.deployment.folder import OperatorFolder\n"
        f"with OperatorFolder(Path({str(folder.root)!r})).hold():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        told = command("shutdown", folder.root)
        assert f"stopped the server (process {process.pid})" in told.out
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
