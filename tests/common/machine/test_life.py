from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedward_common.errors import InputError
from fedward_common.machine.life import FLOWER_EXIT, Child, Life
from fedward_common.machine.namespaces import Network

from .test_exec import gone
from .test_namespaces import needs_namespaces

Begin = Callable[..., Life]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start lives that end with the test."""
    lives: list[Life] = []

    def start(script: str, **options: object) -> Life:
        lives.append(Life(Child(name="a", argv=("sh", "-c", script), **options)))  # type: ignore[arg-type]
        return lives[-1]

    yield start
    for life in lives:
        try:
            life.kill()
            end(life)
        except ChildProcessError:  # the test saw its end
            pass


def end(life: Life) -> int:
    for _ in range(500):
        if (code := life.ended()) is not None:
            return code
        time.sleep(0.02)
    pytest.fail("it did not end")


def until(happened: Callable[[], object]) -> None:
    for _ in range(500):
        if happened():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen")


def test_it_runs_and_ends_with_its_code(begin: Begin) -> None:
    assert end(begin("exit 5")) == 5
    life = begin("sleep 30")
    assert life.ended() is None
    life.kill()
    assert end(life) == -signal.SIGKILL


def test_ask_is_sigterm(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    life = begin("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done", log=log)
    until(lambda: "up" in log.read_text())
    life.ask()
    assert end(life) == 9


def test_asking_one_that_has_ended_meanwhile_is_harmless(begin: Begin) -> None:
    life = begin("exit 5")
    os.waitid(os.P_PID, life.pid, os.WEXITED | os.WNOWAIT)
    life.ask()
    assert end(life) == 5


def test_when_it_has_ended_so_has_what_it_left(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    life = begin("sleep 30 & echo $!; exit 0", log=log)
    assert end(life) == 0
    assert gone(int(log.read_text()))


def test_it_dies_with_the_process_that_started_it_however(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from fedward_common.machine.life import Child, Life
life = Life(Child(name="a", argv=("sleep", "30")))
while open(f"/proc/{life.pid}/comm").read() != "sleep\\n":
    time.sleep(0.01)
print(life.pid, flush=True)
time.sleep(30)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        starter.kill()
    assert gone(child)


@needs_namespaces
def test_it_has_no_network_beyond_what_was_said(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert end(begin("readlink /proc/self/ns/net; grep -c : /proc/self/net/dev", network=Network.NONE, log=log)) == 0
    assert log.read_text().split()[0] != os.readlink("/proc/self/ns/net")


def test_only_what_was_passed_is_open_in_it(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    passed, kept = os.memfd_create("passed"), os.memfd_create("kept")
    os.set_inheritable(kept, True)
    os.write(passed, b"key")
    try:
        for _ in range(2):  # a restart reads it again
            code = f"""
import os
seen = [int(fd) for fd in os.listdir("/proc/self/fd")]
print(os.pread({passed}, 9, 0), sorted(fd for fd in seen if os.path.lexists(f"/proc/self/fd/{{fd}}")))
"""
            child = Child(name="a", argv=(sys.executable, "-c", code), log=log, pass_fds=(passed,))
            assert end(Life(child)) == 0
        assert log.read_text().splitlines() == [f"b'key' [0, 1, 2, {passed}]"] * 2
    finally:
        os.close(passed)
        os.close(kept)


def test_ctrl_c_in_the_terminal_does_not_reach_it(begin: Begin) -> None:
    life = begin("sleep 30")
    assert os.getpgid(life.pid) == life.pid != os.getpgid(0)


def test_the_log_is_private_and_keeps_what_former_lives_wrote(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    end(begin("echo one", log=log))
    end(begin("echo two >&2", log=log))
    assert log.read_text() == "one\ntwo\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_is_bounded_while_the_child_writes(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    life = begin("i=0; while :; do i=$((i+1)); echo $i; sleep 0.002; done", log=log, log_bytes=200)
    until(lambda: life.ended() is not None or (tmp_path / "log.1").exists())
    until(lambda: log.read_text().strip())
    assert log.stat().st_size < 2000
    assert not log.read_text().startswith("1\n")
    assert b"\0" not in log.read_bytes()  # it goes on at the new end


def test_a_log_that_cannot_be_copied_is_cut_all_the_same(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copy", full)
    log = tmp_path / "log"
    life = begin("i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; done; echo; sleep 30", log=log, log_bytes=200)
    until(lambda: log.stat().st_size >= 200)
    assert life.ended() is None
    assert log.stat().st_size < 200


def test_a_code_in_the_log_counts_only_if_this_life_wrote_it(begin: Begin, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = {"log": log, "pattern": FLOWER_EXIT}
    assert end(begin("echo 'Exit Code: 201'; echo 'Exit Code: 305'; exit 1", **options)) == 305
    assert end(begin("exit 1", **options)) == 1


def test_times_are_checked() -> None:
    with pytest.raises(InputError, match=r"a\.grace_s"):
        Child(name="a", argv=("true",), grace_s=0)
