from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from fedward_common.errors import PrivacyError
from fedward_common.machine import namespaces
from fedward_common.machine.namespaces import has_network, interfaces, leave_network

from .conftest import Python

HAS_NAMESPACES = subprocess.run(["/bin/sh", "-c", "unshare -rn true"], capture_output=True, timeout=20).returncode == 0
needs_namespaces = pytest.mark.skipif(not HAS_NAMESPACES, reason="this kernel permits no network namespace")
ORDINARY = "os.setgroups([]); os.setgid(12345); os.setuid(12345); prctl(4, 1, 0, 0, 0)"
"""Becomes an ordinary account; PR_SET_DUMPABLE, since changing accounts took /proc/self away."""

START = """
import os, socket, subprocess, sys
from fedward_common.errors import PrivacyError
from fedward_common.machine.kernel import prctl
from fedward_common.machine.namespaces import bring_up_loopback, has_network, interfaces, leave_network
"""


@needs_namespaces
def test_no_interface_but_loopback_which_is_down(python: Python) -> None:
    python(
        START
        + """
before = os.readlink("/proc/self/ns/net")
leave_network()
assert os.readlink("/proc/self/ns/net") != before
assert "lo" in interfaces() and not has_network()
try:
    socket.create_connection(("127.0.0.1", 1), timeout=5)
except ConnectionRefusedError:
    sys.exit("loopback is up")
except OSError:
    pass
assert subprocess.check_output(["readlink", "/proc/self/ns/net"], text=True).strip() != before  # children too
"""
    )


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_an_ordinary_account_leaves_too_and_files_look_the_same(python: Python, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.write_text("")
    other.write_text("")
    os.chown(mine, 12345, 12345)
    python(
        START
        + f"""
mine, other = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDONLY)
{ORDINARY}
before = os.readlink("/proc/self/ns/net")
leave_network()
assert os.readlink("/proc/self/ns/net") != before and not has_network()
assert (os.getuid(), os.getgid()) == (12345, 12345)
assert (os.fstat(mine).st_uid, os.fstat(mine).st_gid) == (12345, 12345)
assert os.fstat(other).st_uid != 12345
bring_up_loopback()
""",
        mine,
        other,
    )


def test_a_process_with_more_than_one_thread_is_refused(python: Python) -> None:
    python(
        START
        + """
import threading
before = os.readlink("/proc/self/ns/net")
threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()
try:
    leave_network()
except PrivacyError as error:
    assert "threads" in str(error)
else:
    sys.exit("not refused")
assert os.readlink("/proc/self/ns/net") == before
"""
    )


def test_a_kernel_that_forbids_it_is_a_privacy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(flags: int) -> None:
        asked.append(flags)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(namespaces, "unshare", refuse)
    monkeypatch.setattr(namespaces, "only_one_thread", lambda what: None)
    with pytest.raises(PrivacyError, match="Operation not permitted") as caught:
        leave_network()
    assert "--network none" in caught.value.hint
    assert asked == [0x40000000, 0x50000000]  # alone first, then with a user namespace


def test_a_namespace_that_is_not_empty_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "unshare", lambda flags: None)
    monkeypatch.setattr(namespaces, "only_one_thread", lambda what: None)
    monkeypatch.setattr(namespaces, "interfaces", lambda: ("lo", "eth0"))
    with pytest.raises(PrivacyError, match="not empty"):
        leave_network()


@needs_namespaces
def test_loopback_works_once_it_is_up_and_is_no_network(python: Python) -> None:
    python(
        START
        + """
leave_network()
bring_up_loopback()
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=5).close()
assert not has_network()
"""
    )


def test_interfaces_are_those_of_this_process() -> None:
    listed = {line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]}
    assert set(interfaces()) == listed
    assert "lo" in interfaces()


@pytest.mark.parametrize(
    ("names", "up", "answer"),
    [
        (("lo",), (), False),
        (("lo", "eth0"), (), True),  # a cable may be plugged in later
        (("lo", "tunl0", "sit0"), (), False),
        (("lo", "tunl0", "sit0"), ("sit0",), True),
        (("wg0",), (), True),
        ((), (), False),
    ],
)
def test_what_counts_as_a_network(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], up: tuple[str, ...], answer: bool
) -> None:
    monkeypatch.setattr(namespaces, "interfaces", lambda: names)
    monkeypatch.setattr(namespaces, "_flags", lambda name: int(name in up))
    assert has_network() is answer


def test_a_tunnel_that_cannot_be_asked_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "interfaces", lambda: ("lo", "sit0"))  # _flags finds no such interface
    assert "sit0" not in Path("/proc/self/net/dev").read_text()
    assert has_network()


def test_without_proc_nobody_can_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespaces, "SELF", tmp_path)
    with pytest.raises(PrivacyError, match="nobody can tell"):
        has_network()
