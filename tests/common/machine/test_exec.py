from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedward_common.errors import FedwardError
from fedward_common.machine import exec as becoming
from fedward_common.machine.exec import command, main
from fedward_common.machine.namespaces import Network

from .test_namespaces import needs_namespaces

STARTER = """
import subprocess, sys, time
from fedward_common.machine.exec import command
from fedward_common.machine.namespaces import Network
child = subprocess.Popen(command(["sleep", "30"], network=Network.SHARED))
while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
    time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(30)
"""


def run(*argv: str, network: Network = Network.SHARED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(argv, network=network), capture_output=True, text=True, timeout=20)


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            # a container's first process may leave orphans unreaped
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_it_holds_through_exec_also_when_the_starter_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        starter.kill()
        starter.wait(10)
    try:
        assert gone(child)
    finally:
        if not gone(child):
            os.kill(child, signal.SIGKILL)


def test_where_the_parent_is_gone_already_it_ends() -> None:
    argv = [sys.executable, "-m", "fedward_common.machine.exec", "--parent", "1", "--", "echo", "ran"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_program_takes_the_place_of_the_wrapper() -> None:
    done = run("sh", "-c", "echo $$ $0 $1; exit 7", "a b", "--parent")
    assert done.stdout.split(maxsplit=1)[1] == "a b --parent\n"
    assert done.returncode == 7


def test_the_program_gets_default_signals_and_quiet_libraries() -> None:
    done = run("sh", "-c", "grep SigIgn /proc/$$/status; echo $FLWR_TELEMETRY_ENABLED")
    ignored, quiet = done.stdout.splitlines()
    assert int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1) == 0
    assert quiet == "0"


@needs_namespaces
@pytest.mark.parametrize("network", list(Network))
def test_the_network_is_what_was_asked(network: Network) -> None:
    code = """
import os, socket
from fedward_common.machine.namespaces import has_network
with socket.socket() as server:
    try:
        server.bind(("127.0.0.1", 0)); server.listen(); server.setblocking(False)
        socket.create_connection(server.getsockname(), timeout=5).close(); loopback = True
    except OSError:
        loopback = False
print(loopback, has_network(), os.readlink("/proc/self/ns/net"))
"""
    loopback, outside, namespace = run(sys.executable, "-c", code, network=network).stdout.split()
    mine = os.readlink("/proc/self/ns/net")
    assert (namespace == mine) is (network is Network.SHARED)
    if network is not Network.SHARED:
        assert outside == "False"
        assert loopback == str(network is Network.LOOPBACK)


def test_it_ends_as_a_shell_does_when_there_is_no_such_program(tmp_path: Path) -> None:
    assert run("fedward-absent").returncode == 127
    assert "cannot start fedward-absent" in run("fedward-absent").stderr
    assert run(str(tmp_path)).returncode == 126


def test_a_network_that_cannot_be_left_ends_it_before_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise FedwardError("no way out", hint="a container")

    monkeypatch.setattr(becoming, "leave_network", refuse)
    monkeypatch.setattr(os, "execvp", lambda *_: pytest.fail("the program ran"))
    assert main(["--network", "none", "--", "true"]) == 2
    assert capsys.readouterr().err == "fedward: error: no way out\nhint: a container\n"


def test_the_current_folder_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "fedward_common.py").write_text("raise SystemExit(99)")
    done = subprocess.run(command(["true"], network=Network.SHARED), cwd=tmp_path, timeout=20)
    assert done.returncode == 0
