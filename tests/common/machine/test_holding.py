from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedward_common.errors import InputError, OutputError
from fedward_common.machine import holding
from fedward_common.machine.holding import Stop, hold, holder, stop
from support.accounts import another_account, needs_root

HOLDING = """
import signal, subprocess, sys, time
from pathlib import Path
from fedward_common.machine.holding import hold
if sys.argv[2:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    if sys.argv[3:]:
        child = subprocess.Popen(["sleep", "20"], close_fds=False, stdout=subprocess.DEVNULL)
        while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
            time.sleep(0.01)
        print(child.pid, flush=True)
    time.sleep(30)
"""


@contextmanager
def other(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", HOLDING, str(path), *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def test_one_process_holds_it_and_the_next_is_told_who(path: Path) -> None:
    with other(path) as process:
        assert holder(path) == process.pid
        with pytest.raises(InputError, match=str(process.pid)), hold(path):
            pass
        assert holder(path) == process.pid
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_free_once_the_holder_has_ended_however(path: Path) -> None:
    with other(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert path.read_text() == f"{process.pid}\n"  # what a crash leaves
        assert holder(path) is None
        with hold(path):
            assert holder(path) == os.getpid()
    assert holder(path) is None


def test_a_number_that_a_dead_process_left_is_not_reported_even_if_it_lives(path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")
    assert holder(path) is None
    assert stop(path, 1) is Stop.NOT_RUNNING  # or this test would end here


def test_a_child_does_not_inherit_the_lock(path: Path) -> None:
    with other(path, "stubborn", "parent") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait(10)
            assert holder(path) is None
            os.kill(child, 0)  # it lives on, without the lock
        finally:
            os.kill(child, signal.SIGKILL)


def test_asking_who_holds_it_does_not_keep_anyone_from_holding_it(path: Path) -> None:
    with path.open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as holder() does, only longer
        done = threading.Timer(0.05, lambda: fcntl.flock(asking, fcntl.LOCK_UN))
        done.start()
        with hold(path):
            assert holder(path) == os.getpid()
        done.join()


def test_stop_ends_the_holder_and_says_so(path: Path) -> None:
    assert stop(path, 1) is Stop.NOT_RUNNING
    with other(path) as process:
        assert stop(path, 10) is Stop.ENDED
        assert process.wait(10) == 0
        assert stop(path, 1) is Stop.NOT_RUNNING


def test_stop_says_when_the_holder_does_not_end(path: Path) -> None:
    with other(path, "stubborn") as process:
        assert stop(path, 0.2) is Stop.STILL_RUNNING
        assert process.poll() is None
        assert holder(path) == process.pid


def test_a_number_read_before_the_holder_wrote_its_own_gets_no_signal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other(path) as process:
        # the first look falls between lock and number: the file still names a bystander, this process
        looks = iter([os.getpid()])
        real = holding.holder
        monkeypatch.setattr(holding, "holder", lambda where: next(looks, None) or real(where))
        assert stop(path, 10) is Stop.ENDED
        assert process.wait(10) == 0


def test_a_holder_that_cannot_be_seen_is_an_input_error(path: Path) -> None:
    with hold(path):
        path.write_text("x")
        with pytest.raises(InputError, match="can be seen"):
            stop(path, 1)


def test_a_holder_of_another_account_is_an_input_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with hold(path), pytest.raises(InputError, match="another account"):
        stop(path, 1)


def test_a_symbolic_link_and_a_missing_folder_are_refused(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("kept")
    path.symlink_to(target)
    for wrong in (path, path / "deeper"):
        with pytest.raises(OutputError), hold(wrong):
            pass
    assert target.read_text() == "kept"


@needs_root
def test_a_lock_in_another_account_s_folder_is_an_error_with_a_hint(path: Path) -> None:
    path.parent.chmod(0o700)
    with another_account(), pytest.raises(OutputError, match="Permission denied") as caught:
        holder(path)
    assert "the account that owns the folder" in caught.value.hint


def test_a_full_disk_is_an_error_with_a_hint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left") as caught, hold(path):
        pytest.fail("it is held")
    assert "free disk space" in caught.value.hint
    assert holder(path) is None
