from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from fedward_common.errors import PrivacyError
from fedward_common.machine import kernel
from fedward_common.machine.kernel import only_one_thread, prctl, syscall, unshare

from .conftest import Python


def test_what_the_kernel_refuses_is_an_os_error() -> None:
    for call in (lambda: syscall(100_000), lambda: prctl(100_000), lambda: unshare(1)):
        with pytest.raises(OSError, match=r"Errno") as caught:
            call()
        assert caught.value.errno in (errno.ENOSYS, errno.EINVAL)


def test_a_result_comes_back() -> None:
    assert prctl(3, 0, 0, 0, 0) in (0, 1)  # PR_GET_DUMPABLE


def test_no_new_privileges_is_for_good(python: Python) -> None:
    python("""
        from fedward_common.machine.kernel import no_new_privileges, prctl
        assert prctl(39, 0, 0, 0, 0) == 0
        no_new_privileges()
        assert prctl(39, 0, 0, 0, 0) == 1
    """)


def test_only_one_thread_refuses_two() -> None:
    end = threading.Event()
    other = threading.Thread(target=end.wait, args=(10,))
    other.start()
    try:
        with pytest.raises(PrivacyError, match="comes too late") as caught:
            only_one_thread("this")
        assert "numpy" in caught.value.hint
    finally:
        end.set()
        other.join()


def test_only_one_thread_refuses_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "TASKS", tmp_path / "none")
    with pytest.raises(PrivacyError, match="needs /proc"):
        only_one_thread("this")
