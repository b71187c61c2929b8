from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_common.errors import InputError, OutputError
from fedward_common.machine.keeper import Backoff
from fedward_common.machine.life import Child
from fedward_common.machine.processes import Ended, Supervisor

from .test_exec import gone
from .test_life import until

TRAP = "trap 'echo {name} asked >> {log}; exit 0' TERM; echo {name} up >> {log}; while :; do sleep 0.05; done"


def trapping(name: str, log: Path, **options: object) -> Child:
    """A child that writes when it starts and when it is asked to end."""
    return Child(name=name, argv=("sh", "-c", TRAP.format(name=name, log=log)), **options)  # type: ignore[arg-type]


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


class When:
    """A sleep that does something once something has happened, and fails the test when it never does."""

    def __init__(self, *steps: tuple[Callable[[], object], Callable[[], object]]) -> None:
        self._steps, self._end = list(steps), time.monotonic() + 15

    def __call__(self, seconds: float) -> None:
        time.sleep(0.02)
        if self._steps and self._steps[0][0]():
            self._steps.pop(0)[1]()
        assert time.monotonic() < self._end, "it did not happen"


def signal_me(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_children_start_in_order_and_end_in_reverse(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    children = [trapping(name, log, ready=lambda n=name: f"{n} up" in lines(log)) for name in "abc"]
    handler = signal.getsignal(number)
    ended = Supervisor(children, status=None, sleep=When((lambda: "c up" in lines(log), signal_me(number)))).run()
    assert ended == Ended(None, 0)
    assert lines(log) == ["a up", "b up", "c up", "c asked", "b asked", "a asked"]
    assert signal.getsignal(number) is handler


def test_a_child_starts_only_when_all_former_ones_are_ready(tmp_path: Path) -> None:
    log, ready = tmp_path / "log", tmp_path / "ready"
    children = [trapping("a", log, ready=ready.exists), trapping("b", log)]
    seen: list[list[str]] = []
    supervisor = Supervisor(children, status=None, sleep=lambda _: None)
    end = time.monotonic() + 0.5

    def sleep(_: float) -> None:
        time.sleep(0.02)
        if time.monotonic() > end and not ready.exists():
            seen.append(lines(log))
            ready.touch()
        if "b up" in lines(log):
            supervisor.stop()

    supervisor._sleep = sleep
    supervisor.run()
    assert seen == [["a up"]]


def test_one_that_ends_is_started_again(tmp_path: Path) -> None:
    log, status = tmp_path / "log", tmp_path / "status.json"
    child = Child(name="a", argv=("sh", "-c", f"echo up >> {log}; exit 4"))
    stop = When((lambda: len(lines(log)) == 3, signal_me(signal.SIGTERM)))
    Supervisor([child], status=status, sleep=stop, backoff=Backoff(first_s=0.01)).run()
    (told,) = json.loads(status.read_text())["children"]
    assert told["restarts"] >= 2
    assert told["state"] == "stopped"


def test_one_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    began = time.monotonic()
    child = Child(name="a", argv=("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"), grace_s=0.3)
    supervisor = Supervisor([child], status=None, sleep=When((lambda: time.monotonic() > began + 0.5, lambda: None)))
    threading.Timer(0.5, supervisor.stop).start()
    supervisor.run()
    assert 0.8 <= time.monotonic() - began < 5
    assert not supervisor._keepers[0].alive


def test_a_second_signal_ends_the_grace(tmp_path: Path) -> None:
    up = tmp_path / "up"
    script = f"trap 'touch {tmp_path}/asked' TERM; touch {up}; while :; do sleep 0.05; done"
    sleep = When((up.exists, signal_me(signal.SIGINT)), ((tmp_path / "asked").exists, signal_me(signal.SIGINT)))
    began = time.monotonic()
    Supervisor([Child(name="a", argv=("sh", "-c", script), grace_s=60)], status=None, sleep=sleep).run()
    assert time.monotonic() - began < 10


def test_a_fatal_code_stops_all_and_is_the_result(tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [trapping("a", log, ready=lambda: "a up" in lines(log)), Child(name="b", argv=("sh", "-c", "exit 2"))]
    assert Supervisor(children, status=None, sleep=When()).run() == Ended("b", 2)
    assert lines(log) == ["a up", "a asked"]
    absent = Child(name="c", argv=("fedward-absent",), log=tmp_path / "out")
    assert Supervisor([absent], status=None, sleep=When()).run() == Ended("c", 127)


def test_one_that_may_fail_holds_nobody_up(tmp_path: Path) -> None:
    log, status = tmp_path / "log", tmp_path / "status.json"
    children = [Child(name="a", argv=("sh", "-c", "exit 2"), critical=False, ready=lambda: False), trapping("b", log)]
    stop = When((lambda: "b up" in lines(log) and "failed" in status.read_text(), signal_me(signal.SIGTERM)))
    assert Supervisor(children, status=status, sleep=stop).run() == Ended(None, 0)
    assert [one["state"] for one in json.loads(status.read_text())["children"]] == ["failed", "stopped"]


def test_the_status_file_says_the_last_change_and_is_whole_at_every_instant(tmp_path: Path) -> None:
    status, seen = tmp_path / "status.json", []
    child = Child(name="a", argv=("sleep", "30"))
    supervisor = Supervisor([child], status=status)

    def sleep(_: float) -> None:
        seen.append(json.loads(status.read_text()))
        time.sleep(0.02)
        if len(seen) == 3:
            supervisor.stop()

    supervisor._sleep = sleep
    supervisor.run()
    (told,) = seen[2]["children"]
    assert seen[2]["pid"] == os.getpid()
    assert (told["name"], told["state"]) == ("a", "running")
    assert told["pid"] is not None
    assert status.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_status_file_that_cannot_be_written_leaves_no_child_behind(tmp_path: Path) -> None:
    pids: list[int] = []
    supervisor = Supervisor([Child(name="a", argv=("sleep", "30"))], status=tmp_path / "absent" / "status")
    with pytest.raises(OutputError, match="cannot write"):
        supervisor.run()
    pids.extend(one["pid"] for one in supervisor._told or [] if one["pid"])  # type: ignore[misc]
    assert not supervisor._keepers[0].alive
    assert not pids


def test_a_status_file_that_cannot_be_written_later_ends_no_child_and_is_written_when_it_can_be(tmp_path: Path) -> None:
    folder, log = tmp_path / "state", tmp_path / "log"
    folder.mkdir()
    status = folder / "status.json"

    def told() -> list[str]:
        return [one["state"] for one in json.loads(status.read_text())["children"]]

    children = [
        trapping("a", log, ready=lambda: "a up" in lines(log)),
        trapping("b", log, ready=lambda: gone_away(folder)),
    ]
    stop = When(
        (lambda: "b up" in lines(log) and not folder.exists(), folder.mkdir),
        (lambda: status.exists() and told() == ["running", "running"], signal_me(signal.SIGTERM)),
    )
    assert Supervisor(children, status=status, sleep=stop).run() == Ended(None, 0)
    assert lines(log) == ["a up", "b up", "b asked", "a asked"]


def gone_away(folder: Path) -> bool:
    """Take a folder away, once; whether it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    return True


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from fedward_common.machine.life import Child
from fedward_common.machine.processes import Supervisor
stubborn = ("sh", "-c", "trap '' TERM; touch $0; while :; do sleep 0.05; done")
children = [Child(name=n, argv=(*stubborn, f"{sys.argv[1]}/{n}")) for n in "ab"]
Supervisor(children, status=Path(sys.argv[1]) / "status").run()
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        process.kill()
    pids = [one["pid"] for one in json.loads((tmp_path / "status").read_text())["children"]]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_two_children_of_one_name_are_refused() -> None:
    child = Child(name="a", argv=("true",))
    with pytest.raises(InputError, match="a, a"):
        Supervisor([child, child], status=None)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        began = time.monotonic()
        hang_up = When(
            (lambda: True, signal_me(signal.SIGHUP)),
            (lambda: time.monotonic() > began + 0.3, signal_me(signal.SIGTERM)),
        )
        Supervisor([Child(name="a", argv=("sleep", "30"))], status=None, sleep=hang_up).run()
        assert time.monotonic() - began >= 0.3
    finally:
        signal.signal(signal.SIGHUP, former)
