from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine import view
from fedward_common.machine.view import see_only
from support.kernels import no_mounts

from .conftest import Python

needs_view = pytest.mark.skipif(bool(no_mounts()), reason=f"no mount namespace for this account: {no_mounts()}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another account")
START = """
import ctypes, errno, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine import view
from fedward_common.machine.kernel import LIBC, prctl, syscall, unshare
from fedward_common.machine.paths import python_names
from fedward_common.machine.view import see_only

def refused(call, *numbers):
    try:
        call()
    except OSError as error:
        assert error.errno in (numbers or (errno.ENOENT,)), error
    else:
        sys.exit("it went through")

X86 = os.uname().machine == "x86_64"
here = Path(sys.argv[1])
read, write, secret = here / "read", here / "write", here / "secret"
def enter(): see_only(read=[*python_names(), read], write=[write])
"""


@needs_view
def test_what_is_not_named_does_not_exist_by_whatever_name_and_no_socket_either(python: Python, folders: Path) -> None:
    name = os.path.relpath(folders / "secret" / "s")  # 107 bytes are all that a socket's name may have
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        python(
            START
            + """
os.chdir(secret)
socket.socket(socket.AF_UNIX).connect("s")
enter()
assert os.getcwd() == "/"
assert (read / "file").read_text() == "read" and (write / "file").read_text() == "write"
for path in (secret, secret / "file", read / "link", read / ".." / "secret", Path("file"), Path("/proc/self/cwd/file")):
    refused(path.stat)
    refused(lambda: os.chmod(path, 0o777))
refused(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[2]))
assert sorted(os.listdir(here)) == ["read", "write"]
needed = {here.parts[2], *(Path(name).parts[2] for name in python_names() if str(name).startswith("/tmp/"))}
assert set(os.listdir("/tmp")) <= needed and "run" not in os.listdir("/")
assert set(os.listdir("/dev")) <= {"null", "zero", "full", "random", "urandom"}
Path("/dev/null").write_text("x")
assert len(Path("/dev/urandom").open("rb").read(3)) == 3
Path(f"/tmp/{sys.argv[3]}").write_text("x")
assert subprocess.run(["cat", read / "file"], capture_output=True).stdout == b"read"
assert subprocess.run(["cat", secret / "file"], capture_output=True).returncode == 1
""",
            folders,
            folders / "secret" / "s",
            f"fedward-{os.getpid()}",
        )
    assert not Path(f"/tmp/fedward-{os.getpid()}").exists()  # noqa: S108


@needs_view
def test_symbolic_links_on_the_way_are_there_and_lead_to_what_they_led_to(python: Python, folders: Path) -> None:
    (folders / "to").mkdir()
    (folders / "to" / "far").symlink_to("../read")  # relative, behind an absolute one
    (folders / "start").symlink_to(folders / "to" / "far")
    (folders / "other").symlink_to("secret")
    python(
        START
        + """
see_only(read=[*python_names(), here / "start" / "file"], write=[])
assert (here / "start" / "file").read_text() == "read" == (read / "file").read_text()
assert os.readlink(here / "start") == str(here / "to" / "far") and os.readlink(here / "to" / "far") == "../read"
assert sorted(os.listdir(here)) == ["read", "start", "to"] and os.listdir(read) == ["file"]
assert subprocess.run([sys.executable, "-c", "import ssl, sqlite3"]).returncode == 0
assert subprocess.run(["/bin/sh", "-c", "true"]).returncode == 0
""",
        folders,
    )


@needs_view
def test_what_is_read_cannot_be_changed_and_what_is_written_not_executed(python: Python, folders: Path) -> None:
    python(
        START
        + """
(write / "program").write_text("#!/bin/sh\\n")
(write / "program").chmod(0o700)
enter()
file = read / "file"
for change in (
    lambda: file.write_text("x"), lambda: (read / "new").mkdir(), file.unlink, lambda: file.chmod(0o777),
    lambda: os.chown(file, -1, os.getegid()), lambda: os.setxattr(file, "user.x", b"x"), lambda: os.utime(file),
    lambda: read.chmod(0o777), lambda: Path("/new").mkdir(), lambda: Path("/dev/new").write_text(""),
):
    refused(change, errno.EROFS)
refused(lambda: Path("/proc/self/oom_score_adj").write_text("1000"), errno.EROFS)
(write / "new").write_text("x")
(write / "new").rename(write / "newer")
(write / "newer").chmod(0o600)
refused(lambda: subprocess.run([write / "program"]), errno.EACCES)
""",
        folders,
    )
    assert sorted(os.listdir(folders / "write")) == ["file", "newer", "program"]


@needs_view
def test_a_part_of_a_folder_that_is_read_can_be_written(python: Python, folders: Path) -> None:
    (folders / "read" / "state").mkdir()
    python(
        START
        + """
see_only(read=[*python_names(), read, read / "state" / ".." / "file"], write=[read / "state"])
(read / "state" / "new").write_text("x")
refused(lambda: (read / "new").write_text("x"), errno.EROFS)
refused(lambda: (read / "state").rename(read / "other"), errno.EROFS, errno.EBUSY)
""",
        folders,
    )
    assert (folders / "read" / "state" / "new").exists()


@needs_view
def test_what_is_made_anew_in_a_folder_that_was_named_is_seen(python: Python, folders: Path) -> None:
    python(
        START
        + """
ours, theirs = socket.socketpair()
child = os.fork()
if not child:
    ours.close()
    enter()
    theirs.send(b"in")
    theirs.recv(2)
    os._exit(0 if (read / "file").read_text() == "new" and (read / "more" / "s").exists() else 1)
ours.recv(2)
(here / "draft").write_text("new")
(here / "draft").replace(read / "file")
(read / "more").mkdir()
os.chdir(read / "more")
socket.socket(socket.AF_UNIX).bind("s")
ours.send(b"go")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
        folders,
    )


@needs_view
def test_nothing_can_be_mounted_and_no_capability_is_left_to_children_neither(python: Python, folders: Path) -> None:
    python(
        START
        + """
before = os.getuid(), os.geteuid(), os.getgid(), os.getegid()
enter()
assert before == (os.getuid(), os.geteuid(), os.getgid(), os.getegid())

def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")

for call in (
    lambda: checked(LIBC.mount(b"tmpfs", os.fsencode(write), b"tmpfs", ctypes.c_ulong(0), None)),
    lambda: checked(LIBC.umount2(os.fsencode(write), 2)), lambda: checked(LIBC.umount2(b"/proc", 2)),
    lambda: syscall(442, -100, os.fsencode(read), 0, bytes(8) + b"\\1" + bytes(23), 32),  # mount_setattr: read-write
    lambda: checked(LIBC.chroot(os.fsencode(write))), lambda: unshare(0x20000), lambda: unshare(0x10000000 | 0x20000),
):
    refused(call, errno.EPERM, errno.ENOSPC)
said = subprocess.check_output(["cat", "/proc/self/status"], text=True).splitlines()
assert {line.split()[1].strip("0") for line in said if line.startswith("Cap")} == {""}
assert "NoNewPrivs:\\t1" in said
""",
        folders,
    )


@needs_view
def test_processes_outside_cannot_be_reached_and_no_way_leads_back_by_proc(python: Python, folders: Path) -> None:
    """Under the same account, often root here: the parent is this test. Without Landlock."""
    python(
        START
        + """
parent = Path(f"/proc/{os.getppid()}")
tries = (
    lambda: (parent / "root" / (secret / "file").relative_to("/")).read_text(), lambda: os.listdir(parent / "cwd/"),
    lambda: os.listdir(parent / "root/"), lambda: os.readlink(parent / "fd" / "1"), lambda: (parent / "mem").open("rb"),
    lambda: (parent / "environ").open("rb").read(), lambda: os.open(parent / "ns" / "mnt", os.O_RDONLY),
    lambda: os.listdir(parent / "task" / parent.name / "root/"),
)
for one in tries: one()
enter()
for one in tries:
    refused(one, errno.EACCES, errno.EPERM)
refused(lambda: syscall(101 if X86 else 117, 0x4206, os.getppid(), 0, 0), errno.EPERM)  # ptrace: seize
refused(lambda: syscall(438, os.pidfd_open(os.getppid()), 0, 0), errno.EPERM)  # pidfd_getfd
refused((Path("/proc/self/root") / (secret / "file").relative_to("/")).stat)
refused((Path("/proc/self/root/..") / (secret / "file").relative_to("/")).stat)
refused((Path("/") / ".." / (secret / "file").relative_to("/")).stat)
for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) not in (os.getpid(), os.getppid()):
        for name in ("root", "cwd"):
            refused(lambda: os.listdir(f"/proc/{entry}/{name}/"), errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESRCH)
""",
        folders,
    )


@needs_view
def test_a_kernel_that_forbids_it_changes_nothing(python: Python, folders: Path) -> None:
    python(
        START
        + """
from fedward_common.machine.namespaces import take_user_namespace
take_user_namespace(0)
Path("/proc/sys/user/max_user_namespaces").write_text("0")
view._give_up_capabilities()
spaces = os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt")
os.chdir(secret)
try:
    enter()
    sys.exit("it went through")
except PrivacyError as error:
    assert "Operation not permitted" in str(error) and "sysctl" in error.hint, error
assert spaces == (os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt"))
assert Path("file").read_text() == "secret"
(read / "new").write_text("x")
""",
        folders,
    )


@needs_view
def test_a_step_that_fails_is_found_out_in_a_child(python: Python, folders: Path) -> None:
    python(
        START
        + """
def wrong(plan): raise PrivacyError("not what it was", hint="")
for step in (wrong, lambda plan: 1 / 0):
    view._verify = step
    try:
        enter()
        sys.exit("it went through")
    except PrivacyError as error:
        assert str(error).rpartition(": ")[2] in ("not what it was", "ZeroDivisionError"), error
    assert (secret / "file").read_text() == "secret"
""",
        folders,
    )


@needs_view
def test_threads_and_open_folders_are_refused(python: Python, folders: Path) -> None:
    python(
        START
        + """
held = os.open(secret, os.O_RDONLY)
try:
    enter()
    sys.exit("it went through")
except PrivacyError as error:
    assert "a folder is open" in str(error)
os.close(held)
go = threading.Event()
other = threading.Thread(target=go.wait)
other.start()
try:
    enter()
    sys.exit("it went through")
except PrivacyError as error:
    assert "2 threads" in str(error)
go.set()
""",
        folders,
    )


def test_a_path_that_does_not_exist_or_is_everything_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "only_one_thread", lambda what: None)
    (tmp_path / "round").symlink_to("round")
    for path in (tmp_path / "none", Path("/"), Path("/usr/.."), tmp_path / "round"):
        with pytest.raises(InputError, match=r"cannot take|without end"):
            see_only(read=[path], write=[])
    monkeypatch.setattr(view, "_try_in_a_child", lambda plan: (_ for _ in ()).throw(PrivacyError("no", hint="")))
    monkeypatch.setattr(view, "_refuse_open_folders", lambda: None)
    with pytest.raises(PrivacyError):
        see_only(read=[tmp_path], write=[])


@needs_view
@needs_root
def test_an_ordinary_account_gets_it_too(python: Python, folders: Path) -> None:
    folders.chmod(0o755)
    os.chown(folders / "write", 12345, 12345)
    python(
        START
        + """
for path in here.parents: path.chmod(path.stat().st_mode | 0o111)
os.setgroups([]); os.setgid(12345); os.setuid(12345); prctl(4, 1, 0, 0, 0)
see_only(read=[Path("/usr"), Path("/proc"), read], write=[write])
assert (os.getuid(), os.getgid()) == (12345, 12345)
(write / "new").write_text("x")
refused((secret / "file").stat)
""",
        folders,
    )
    assert (folders / "write" / "new").stat().st_uid == 12345


@needs_view
@needs_root
def test_root_gets_it_also_where_nobody_gets_a_user_namespace(python: Python, folders: Path) -> None:
    python(
        START
        + """
def forbidden(flags): raise OSError(errno.ENOSPC, "")
view.take_user_namespace = forbidden
parent = Path(f"/proc/{os.getppid()}")
enter()
refused((secret / "file").stat)
refused(lambda: os.listdir(parent / "root/"), errno.EACCES, errno.EPERM)
refused(lambda: LIBC.umount2(b"/proc", 2) and unshare(0x20000), errno.EPERM)
""",
        folders,
    )


@needs_view
def test_it_still_dies_with_its_starter(python: Python, folders: Path) -> None:
    python(
        START
        + """
prctl(1, signal.SIGKILL, 0, 0, 0)
enter()
found = ctypes.c_int(0)
prctl(2, ctypes.addressof(found), 0, 0, 0)
assert found.value == signal.SIGKILL and prctl(3, 0, 0, 0, 0) == 1
""",
        folders,
    )


@needs_view
def test_a_host_is_found_by_name_where_the_resolver_is_a_link_into_run(python: Python, folders: Path) -> None:
    """As systemd-resolved does it: /etc/resolv.conf points to a folder in /run. In a small world of its own."""
    python(
        START
        + """
from fedward_common.machine.exec import die_with
from fedward_common.machine.namespaces import bring_up_loopback, take_user_namespace
take_user_namespace(0x20000 | 0x40000000)
bring_up_loopback()
def tmpfs(place):
    assert LIBC.mount(b"tmpfs", place, b"tmpfs", ctypes.c_ulong(0), None) == 0
kept = {name: Path("/etc", name).read_bytes() for name in ("ld.so.cache", "passwd") if Path("/etc", name).exists()}
tmpfs(b"/etc")
tmpfs(b"/run")
for name, content in kept.items(): Path("/etc", name).write_bytes(content)
Path("/etc/nsswitch.conf").write_text("hosts: files dns\\n")
Path("/etc/hosts").write_text("127.0.0.7 told.example\\n")
Path("/run/systemd/resolve").mkdir(parents=True)
Path("/run/systemd/resolve/stub-resolv.conf").write_text("nameserver 127.0.0.1\\noptions timeout:2 attempts:1\\n")
Path("/run/other").write_text("x")
Path("/etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
us = os.getpid()
if not os.fork():
    die_with(us)
    signal.alarm(60)  # one that has gone into a namespace of its own may not end those outside, not even by its death
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.dup2(1, 2)
    while True:
        asked, whence = server.recvfrom(512)
        kind = asked[-4:-2]
        answer = b"\\xc0\\x0c" + kind + b"\\0\\1\\0\\0\\0\\1\\0\\4" + bytes([127, 0, 0, 9])
        answers = [answer] if kind == b"\\0\\1" else []
        end = asked.index(b"\\0", 12) + 5
        head = asked[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([len(answers)]) + bytes(4)
        server.sendto(head + asked[12:end] + b"".join(answers), whence)
server.close()
enter()
from fedward_common.machine.landlock import confine, landlock_abi
from fedward_common.machine.paths import python_paths
from fedward_common.machine.seccomp import forbid_chmod, forbid_sockets
if landlock_abi():
    confine(read=[*python_paths(), read], write=[write])
forbid_sockets(allowed=(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6))
forbid_chmod()
found = lambda name: {each[4][0] for each in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)}
assert found("told.example") == {"127.0.0.7"}
assert found("asked.example") == {"127.0.0.9"}
assert {each[4][0] for each in socket.getaddrinfo("asked.example", 1, flags=socket.AI_ADDRCONFIG)} == {"127.0.0.9"}
refused(Path("/run/other").stat)
import ssl; ssl.create_default_context()
""",
        folders,
    )
