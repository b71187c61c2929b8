from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine import kernel, landlock
from fedward_common.machine.landlock import confine, landlock_abi

from .conftest import Python


def needs(abi: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(landlock_abi() < abi, reason=f"this kernel's Landlock is older than version {abi}")


pytestmark = needs(1)
START = """
import ctypes, errno, os, signal, socket, subprocess, sys
from pathlib import Path
from fedward_common.errors import PrivacyError
from fedward_common.machine.kernel import syscall
from fedward_common.machine.landlock import confine, landlock_abi
from fedward_common.machine.paths import python_paths

def refused(call, *numbers):
    try:
        call()
    except OSError as error:
        assert error.errno in (numbers or (errno.EACCES,)), error
    else:
        sys.exit("it went through")

here = Path(sys.argv[1]) if sys.argv[1:] else None
"""


def test_a_file_that_is_not_named_cannot_be_opened_also_by_children(python: Python, folders: Path) -> None:
    python(
        START
        + """
assert (here / "secret" / "file").read_text() == "secret"
confine(read=(*python_paths(), here / "read"), write=[here / "write"])
assert (here / "read" / "file").read_text() == "read"
assert (here / "write" / "file").read_text() == "write"
refused((here / "secret" / "file").read_text)
refused((here / "read" / "link").read_text)
refused((here / "read" / ".." / "secret" / "file").read_text)
refused(lambda: os.listdir(here / "secret"))
refused(lambda: os.listdir(here))
refused(lambda: os.link(here / "secret" / "file", here / "write" / "mine"), errno.EXDEV, errno.EACCES)
refused(lambda: os.rename(here / "secret" / "file", here / "write" / "mine"), errno.EXDEV, errno.EACCES)
assert subprocess.run(["cat", here / "read" / "file"]).returncode == 0
assert subprocess.run(["cat", here / "secret" / "file"], stderr=subprocess.DEVNULL).returncode == 1
""",
        folders,
    )


def test_a_file_outside_write_cannot_be_written_made_or_removed(python: Python, folders: Path) -> None:
    python(
        START
        + """
confine(read=(*python_paths(), here / "read"), write=[here / "write"])
for folder in ("read", "secret"):
    refused(lambda: (here / folder / "file").write_text("x"))
    refused(lambda: (here / folder / "new").write_text("x"))
    refused((here / folder / "file").unlink)
    refused(lambda: (here / folder / "new").mkdir())
if landlock_abi() >= 3:
    refused(lambda: os.truncate(here / "read" / "file", 0))
new = here / "write" / "new"
new.write_text("x")
os.truncate(new, 0)
new.rename(here / "write" / "newer")
(here / "write" / "newer").unlink()
(here / "write" / "folder").mkdir()
socket.socket(socket.AF_UNIX).bind(str(here / "write" / "socket"))
Path("/dev/null").write_text("x")
""",
        folders,
    )


def test_a_single_file_can_be_allowed(python: Python, folders: Path) -> None:
    (folders / "secret" / "other").write_text("")
    python(
        START
        + """
confine(read=(*python_paths(), here / "secret" / "file"), write=())
(here / "secret" / "file").read_text()
refused((here / "secret" / "other").read_text)
""",
        folders,
    )


def test_processes_outside_keep_memory_and_open_files_to_themselves(python: Python) -> None:
    """As the same account, often root here: the parent is this test."""
    python(
        START
        + """
parent = f"/proc/{os.getppid()}"
open(parent + "/mem", "rb").close()
os.readlink(parent + "/fd/1")
confine(read=python_paths(), write=())
refused(lambda: open(parent + "/mem", "rb"), errno.EACCES, errno.EPERM)
refused(lambda: os.readlink(parent + "/fd/1"))
refused(lambda: os.listdir(parent + "/root"))
x86 = os.uname().machine == "x86_64"
refused(lambda: syscall(101 if x86 else 117, 0x4206, os.getppid(), 0, 0), errno.EPERM)  # ptrace: seize
place = ctypes.create_string_buffer(8)
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(place), 8)
for number in (310, 311) if x86 else (270, 271):  # process_vm_readv and writev
    at = ctypes.addressof(vector)
    refused(lambda: syscall(number, os.getppid(), at, 1, at, 1, 0), errno.EPERM)
held = os.pidfd_open(os.getppid())
refused(lambda: syscall(438, held, 0, 0), errno.EPERM)  # pidfd_getfd
Path("/proc/self/environ").read_bytes()  # its own it may
"""
    )


def test_the_environment_stays_hidden_from_the_same_account(python: Python) -> None:
    python(
        START
        + """
from fedward_common.machine.kernel import prctl
if os.geteuid() == 0:  # root reads it by CAP_PERFMON
    os.setgroups([]); os.setgid(12345); os.setuid(12345); prctl(4, 1, 0, 0, 0)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
parent = Path(f"/proc/{os.getppid()}")
assert (parent / "environ").read_bytes() and (parent / "maps").read_bytes()
confine(read=[Path("/proc")], write=())
for name in ("environ", "maps", "mem"):
    refused((parent / name).open, errno.EACCES, errno.EPERM)
"""
    )


@needs(4)
def test_tcp_goes_only_to_the_ports_that_were_named(python: Python) -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_one, socket.create_server(("127.0.0.1", 0)) as closed_one:
        python(
            START
            + """
allowed, other = int(sys.argv[1]), int(sys.argv[2])
held = confine(read=python_paths(), write=(), connect_ports=[allowed], bind_ports=())
assert held.connects and held.binds
socket.create_connection(("127.0.0.1", allowed), timeout=5).close()
refused(lambda: socket.create_connection(("127.0.0.1", other), timeout=5))
refused(lambda: socket.create_server(("127.0.0.1", 0)))
""",
            open_one.getsockname()[1],
            closed_one.getsockname()[1],
        )


@needs(4)
def test_no_port_at_all_and_all_ports_are_two_things(python: Python) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        python(
            START
            + """
port = int(sys.argv[1])
assert not confine(read=python_paths(), write=()).connects
socket.create_connection(("127.0.0.1", port), timeout=5).close()
assert confine(read=python_paths(), write=(), connect_ports=()).connects
refused(lambda: socket.create_connection(("127.0.0.1", port), timeout=5))
""",
            server.getsockname()[1],
        )


@needs(6)
def test_no_signal_and_no_abstract_socket_leads_out(python: Python, tmp_path: Path) -> None:
    name = f"fedward-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(f"\0{name}")
        abstract.listen()
        named.bind(str(tmp_path / "s"))
        named.listen()
        python(
            START
            + """
os.kill(os.getppid(), 0)
socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[2])
assert confine(read=(*python_paths(), here), write=()).scoped
refused(lambda: os.kill(os.getppid(), 0), errno.EPERM)
refused(lambda: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[2]), errno.EPERM)
socket.socket(socket.AF_UNIX).connect(str(here / "s"))
child = subprocess.Popen(["sleep", "20"])
child.terminate()  # its own it may
assert child.wait(5) == -signal.SIGTERM
""",
            tmp_path,
            name,
        )


def test_python_imports_and_starts_python_with_only_its_paths(python: Python, tmp_path: Path) -> None:
    python(
        START
        + """
confine(read=python_paths(), write=[here])
import json, ssl, sqlite3, ctypes, multiprocessing, zoneinfo
ssl.create_default_context()
import numpy, grpc, cryptography.hazmat.primitives.asymmetric.ed25519
os.environ["TMPDIR"] = str(here)
import tempfile
tempfile.TemporaryFile().close()
assert os.cpu_count() >= 1
code = "import fedward_common.errors, os; print(os.getpid())"
assert int(subprocess.check_output([sys.executable, "-c", code])) > 0
socket.getaddrinfo("localhost", 80)
""",
        tmp_path,
    )


def test_a_process_with_more_than_one_thread_is_refused(python: Python, folders: Path) -> None:
    python(
        START
        + """
import threading
threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()
try:
    confine(read=(), write=())
except PrivacyError as error:
    assert "threads" in str(error)
else:
    sys.exit("not refused")
assert (here / "secret" / "file").read_text() == "secret"
""",
        folders,
    )


def test_a_path_that_does_not_exist_is_refused_before_anything_is_given_up(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    monkeypatch.setattr(landlock, "only_one_thread", lambda what: None)
    with pytest.raises(InputError, match="absent"):
        confine(read=[folders / "absent"], write=())
    assert (folders / "secret" / "file").read_text() == "secret"


@pytest.mark.parametrize(("abi", "connects", "scoped"), [(1, False, False), (3, False, False), (4, True, False)])
def test_what_an_older_kernel_cannot_do_is_said(
    monkeypatch: pytest.MonkeyPatch, folders: Path, abi: int, connects: bool, scoped: bool
) -> None:
    asked = []
    monkeypatch.setattr(landlock, "only_one_thread", lambda what: None)
    monkeypatch.setattr(landlock, "landlock_abi", lambda: abi)
    monkeypatch.setattr(landlock, "no_new_privileges", lambda: None)
    real = kernel.syscall

    def record(number: int, *arguments: int) -> int:
        if number == landlock.RESTRICT_SELF:
            asked.append(number)
            return 0
        return real(number, *arguments)

    monkeypatch.setattr(landlock, "syscall", record)
    held = confine(read=[folders], write=[folders / "write", Path("/dev/zero")], connect_ports=[443])
    assert (held.abi, held.connects, held.binds, held.scoped) == (abi, connects, False, scoped)
    assert asked == [landlock.RESTRICT_SELF]
    assert [int(landlock._known(one)) for one in (1, 2, 3, 5, 99)] == [0x1FFF, 0x3FFF, 0x7FFF, 0xFFFF, 0xFFFF]


def test_a_kernel_without_landlock_is_a_privacy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(landlock, "only_one_thread", lambda what: None)
    monkeypatch.setattr(landlock, "syscall", none)
    assert landlock_abi() == 0
    with pytest.raises(PrivacyError, match="no Landlock"):
        confine(read=(), write=())
