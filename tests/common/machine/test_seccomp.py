from __future__ import annotations

import errno
import platform
import socket
from pathlib import Path

import pytest

from fedward_common.errors import PrivacyError
from fedward_common.machine import seccomp
from fedward_common.machine.seccomp import (
    MACHINES,
    forbid_chmod,
    forbid_sockets,
    internet_sockets,
    may_open_internet_socket,
    ownership_program,
    program,
)

from .conftest import Python

pytestmark = pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no filter for this processor")
START = """
import errno, os, socket, sys, threading
from fedward_common.machine.kernel import syscall
from fedward_common.machine import seccomp
from fedward_common.machine.seccomp import forbid_chmod, forbid_sockets, internet_sockets, may_open_internet_socket

def refused(call, *numbers):
    try:
        call()
    except OSError as error:
        assert error.errno in numbers, error
    else:
        sys.exit(f"{call} went through")

assert may_open_internet_socket()
"""


def test_no_socket_of_another_family_and_children_too(python: Python) -> None:
    python(
        START
        + """
forbid_sockets()
families = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40, 38, 31)  # vsock, alg, bluetooth
for family in families:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        refused(lambda: socket.socket(family, kind), errno.EAFNOSUPPORT)
refused(lambda: socket.socketpair(socket.AF_INET), errno.EAFNOSUPPORT)
refused(lambda: syscall(41 if os.uname().machine == "x86_64" else 198, 2 | 1 << 32, 1, 0), errno.EAFNOSUPPORT)
assert not may_open_internet_socket()
import subprocess
code = "import socket\\ntry: socket.socket()\\nexcept OSError as error: print(error.errno)"
assert int(subprocess.check_output([sys.executable, "-c", code])) == errno.EAFNOSUPPORT
"""
    )


def test_threads_that_run_already_are_covered(python: Python) -> None:
    python(
        START
        + """
go, seen = threading.Event(), []
other = threading.Thread(target=lambda: (go.wait(20), seen.append(may_open_internet_socket())))
other.start()
forbid_sockets()
go.set()
other.join()
assert seen == [False]
"""
    )


def test_unix_sockets_work_as_before(python: Python, tmp_path: Path) -> None:
    python(
        START
        + """
forbid_sockets()
a, b = socket.socketpair()
a.send(b"x")
assert b.recv(1) == b"x"
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
import asyncio
asyncio.run(asyncio.sleep(0))
""",
        tmp_path / "s",
    )


def test_families_that_are_allowed_stay(python: Python) -> None:
    python(
        START
        + """
forbid_sockets(allowed=(socket.AF_UNIX, socket.AF_INET))
socket.socket(socket.AF_INET).close()
refused(lambda: socket.socket(socket.AF_INET6), errno.EAFNOSUPPORT)
"""
    )


def test_of_internet_sockets_tcp_and_udp_remain_without_what_landlock_does_not_see(python: Python) -> None:
    python(
        START
        + """
server = socket.create_server(("127.0.0.1", 0))
def past(protocol): return socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol).connect(server.getsockname())
sends = (
    lambda: socket.socket().sendto(b"x", 0x20000000, server.getsockname()),
    lambda: socket.socket().sendmsg([b"x"], [], 0x20000000, server.getsockname()),
)
for send in sends: send()
forbid_sockets(allowed=(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6))
for protocol in (262, 132, 256, 33):  # MPTCP, SCTP, SMC, DCCP
    refused(lambda: past(protocol), errno.EPROTONOSUPPORT)
for send in sends: refused(send, errno.EOPNOTSUPP)
past(0)
past(socket.IPPROTO_TCP)
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP).close()
socket.socket().close()
a, b = socket.socketpair()
a.sendmsg([b"x"])
assert b.recv(1) == b"x"
"""
    )


def test_the_ways_around_are_closed(python: Python) -> None:
    python(
        START
        + """
x86 = os.uname().machine == "x86_64"
netns = os.open("/proc/self/ns/net", os.O_RDONLY)
held = os.pidfd_open(os.getpid())
setns, ptrace, writev = (308, 101, 311) if x86 else (268, 117, 271)
forbid_sockets()
for number in (425, 426, 427):  # io_uring
    refused(lambda: syscall(number, 1, 0, 0, 0, 0, 0), errno.ENOSYS)
refused(lambda: syscall(setns, netns, 0), errno.EPERM)
refused(lambda: syscall(438, held, 0, 0), errno.EPERM)  # pidfd_getfd, of itself: permitted without the filter
refused(lambda: syscall(ptrace, 0, 0, 0, 0), errno.EPERM)  # PTRACE_TRACEME, which is free to all
refused(lambda: syscall(writev, os.getpid(), 0, 0, 0, 0, 0), errno.EPERM)
if x86:
    refused(lambda: syscall(0x40000000 | 41, 2, 1, 0), errno.EPERM)  # x32
"""
    )


def test_no_namespace_can_be_made_nothing_mounted_no_process_traced_and_no_key_ring_used(python: Python) -> None:
    python(
        START
        + """
calls = seccomp.MACHINES[os.uname().machine].calls
def answer(name, first=-1):
    try:
        syscall(calls[name], first, -1, -1, -1, -1, -1)
    except OSError as error:
        return error.errno
def answers():
    return {name: answer(name) for name in seccomp.ESCAPES}
before = answers()
if os.geteuid() == 0:
    assert errno.EPERM not in before.values(), before
forbid_sockets()
assert set(answers().values()) == {errno.EPERM}
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    refused(lambda: syscall(calls["clone"], flag | 17, 0, 0, 0, 0), errno.EPERM)
refused(lambda: syscall(calls["clone3"], 0, 0), errno.ENOSYS)
"""
    )


NEVER = (
    "unshare setns mount umount2 pivot_root chroot move_mount open_tree mount_setattr fsmount open_by_handle_at ptrace "
    "process_vm_readv process_vm_writev pidfd_getfd add_key request_key keyctl bpf perf_event_open userfaultfd"
)


def test_no_call_falls_off_the_lists() -> None:
    assert set(NEVER.split()) <= set(seccomp.ESCAPES)
    assert {"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"} == set(seccomp.ABSENT)
    assert {"chmod", "fchmodat2", "lchown", "fchownat", "lsetxattr", "fremovexattr", "utimensat"} <= set(
        seccomp.OWNERSHIP
    )


def test_threads_children_and_terminals_work_but_nothing_is_typed_into_one(python: Python) -> None:
    python(
        START
        + """
import fcntl, pty, subprocess, termios
forbid_sockets()
ran = []
thread = threading.Thread(target=lambda: ran.append(1))
thread.start()
thread.join()
assert ran and subprocess.check_output(["echo", "x"]) == b"x\\n"
child = os.fork()
if not child:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
ours, theirs = pty.openpty()
termios.tcgetattr(theirs)
refused(lambda: fcntl.ioctl(theirs, termios.TIOCSTI, b"x"), errno.EPERM)
refused(lambda: syscall(16 if os.uname().machine == "x86_64" else 29, theirs, 0x5412 | 1 << 32, 0), errno.EPERM)
refused(lambda: fcntl.ioctl(theirs, 0x541C, b"x"), errno.EPERM)
"""
    )


def test_no_mode_owner_attribute_or_time_of_a_file_changes(python: Python, tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    python(
        START
        + """
file = sys.argv[1]
opened = os.open(file, os.O_RDWR)
me = os.getuid(), os.getgid()
changes = (
    lambda: os.chmod(file, 0o644), lambda: os.fchmod(opened, 0o644), lambda: os.chmod(opened, 0o644),
    lambda: os.chmod(os.path.basename(file), 0o644, dir_fd=os.open(os.path.dirname(file), os.O_RDONLY)),
    lambda: os.chown(file, *me), lambda: os.lchown(file, *me), lambda: os.fchown(opened, *me),
    lambda: os.setxattr(file, "user.a", b""), lambda: os.setxattr(opened, "user.a", b""),
    lambda: os.setxattr(file, "user.a", b"", follow_symlinks=False), lambda: os.utime(file), lambda: os.utime(opened),
)
changes += (lambda: syscall(452, -100, file.encode(), 0o644, 0),)  # fchmodat2
for change in changes[:-1]:
    change()
try:
    changes[-1]()
except OSError as error:
    assert error.errno == errno.ENOSYS, error  # before Linux 6.6
os.chmod(file, 0o600)
forbid_chmod()
for change in changes:
    refused(change, errno.EPERM)
calls = seccomp.MACHINES[os.uname().machine].calls
for name in seccomp.OWNERSHIP:
    if name in calls:
        refused(lambda: syscall(calls[name], -1, -1, -1, -1, -1, -1), errno.EPERM)
import subprocess
assert subprocess.run(["chmod", "644", file], stderr=subprocess.DEVNULL).returncode == 1
os.write(opened, b"x")
""",
        tmp_path / "file",
    )
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_it_says_when_chmod_cannot_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "no_new_privileges", lambda: None)
    monkeypatch.setattr(seccomp, "syscall", lambda *_: 0)
    with pytest.raises(PrivacyError, match="no effect"):
        forbid_chmod()


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", sorted(HEADERS))
def test_the_numbers_are_the_kernels(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header}: install linux-libc-dev")
    rows = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
    known = {row[1].partition("_")[2].partition("_")[2].partition("_")[2]: row[2] for row in rows if len(row) > 2}
    found = {name: (number, int(known[name])) for name, number in MACHINES[machine].calls.items() if name in known}
    assert len(found) > 40
    assert {name: pair for name, pair in found.items() if pair[0] != pair[1]} == {}
    named = {*seccomp.ABSENT, *seccomp.ESCAPES, *seccomp.OWNERSHIP}
    assert named & known.keys() <= MACHINES[machine].calls.keys()  # a call that the machine has is in its table


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls of an x86_64 processor")
def test_a_32_bit_call_ends_the_process(python: Python) -> None:
    said = python("""
        import ctypes, mmap, os, signal
        from fedward_common.machine.seccomp import forbid_sockets
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("53 b814000000 cd80 5b c3"))  # i386 getpid by int 0x80
        getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        def in_child(prepare):
            child = os.fork()
            if not child:
                prepare()
                os._exit(0 if getpid() > 0 else 1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(in_child(lambda: None), in_child(forbid_sockets))
    """)
    free, filtered = map(int, said.split())
    if free != 0:
        pytest.skip("this kernel has no 32-bit calls")
    assert filtered == -31  # SIGSYS


def test_it_says_when_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "no_new_privileges", lambda: None)

    def no_kernel(*_: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(seccomp, "syscall", no_kernel)
    with pytest.raises(PrivacyError, match="Function not implemented"):
        forbid_sockets()
    monkeypatch.setattr(seccomp, "syscall", lambda *_: 4711)  # the thread that could not be brought along
    with pytest.raises(PrivacyError, match="thread"):
        forbid_sockets()
    monkeypatch.setattr(seccomp, "syscall", lambda *_: 0)
    with pytest.raises(PrivacyError, match="no effect"):
        forbid_sockets()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(PrivacyError, match="riscv64"):
        forbid_sockets()


def test_both_processors_have_a_filter() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(program(machine, allowed=(1,))) % 8 == len(ownership_program(machine)) % 8 == 0
    with pytest.raises(PrivacyError):
        program("ppc64le", allowed=(1,))


def test_doubt_counts_as_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int) -> None:
        def refuse(*_: int) -> socket.socket:
            raise OSError(number, "")

        monkeypatch.setattr(socket, "socket", refuse)

    for number, may in ((errno.EMFILE, True), (errno.ENOBUFS, True), (errno.EAFNOSUPPORT, False), (errno.EPERM, False)):
        answer(number)
        assert may_open_internet_socket() is may


def test_sockets_that_are_open_already_are_found() -> None:
    left, right = socket.socketpair()
    with socket.socket() as one, left, right, Path("/dev/null").open():
        found = internet_sockets()
        assert one.fileno() in found
        assert left.fileno() not in found
        assert one.fileno() >= 0  # looking closed nothing


GRPC = """
import grpc
from concurrent.futures import ThreadPoolExecutor

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)

server = grpc.server(ThreadPoolExecutor(1), handlers=(Echo(),))
assert server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
    assert channel.unary_unary("/a/b")(b"hello", timeout=10) == b"hello"
server.stop(0).wait(5)
try:
    grpc.server(ThreadPoolExecutor(1)).add_insecure_port("127.0.0.1:0")
except RuntimeError:
    pass
else:
    sys.exit("grpc got an internet socket")
"""


def test_grpc_serves_on_a_unix_socket(python: Python, tmp_path: Path) -> None:
    python(START + "forbid_sockets()" + GRPC, tmp_path / "s")


@pytest.mark.slow
def test_torch_computes(python: Python) -> None:
    python(
        START
        + """
forbid_sockets()
import torch
a = torch.ones(200, 200)
assert float((a @ a)[0, 0]) == 200
"""
    )
