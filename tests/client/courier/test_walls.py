"""A courier that was taken over, and a program of the same account that would run commands for it.

The attempts are those that Landlock alone lets through; tests/deployment/test_takeover.py has the others.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedward_client.courier import walls
from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.courier.status import Wall
from fedward_client.courier.walls import confine_courier
from fedward_common.errors import PrivacyError
from support.fleet_api import Authority
from support.kernels import walls_here
from support.trainer import short_folder

pytestmark = pytest.mark.slow
HERE = walls_here()
ALL = frozenset(Wall)


def needs(*wanted: Wall) -> pytest.MarkDecorator:
    lacking = ", ".join(wall.value for wall in wanted if wall not in HERE)
    return pytest.mark.skipif(bool(lacking), reason=f"this machine does not give: {lacking}")


TAKEN_OVER = """
import ctypes, json, os, socket, subprocess, sys, time
from pathlib import Path
from fedward_client.courier import walls
from fedward_client.courier.folder import CourierFolder
from fedward_common.errors import PrivacyError
from fedward_common.machine.kernel import LIBC, syscall, unshare

courier, site, other, without, pid = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(), sys.argv[5]
key, loot = site / "signing.key", courier / "state" / "loot"
libc = ctypes.CDLL(None, use_errno=True)

def missing(*_, **__):
    raise PrivacyError("left out", hint="")

for wall, name in (("view", "see_only"), ("landlock", "confine"), ("seccomp", "_filter")):
    if wall in without:
        setattr(walls, name, missing)

def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def ask(path):
    loot.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(path)
        asked.sendall(f"cat {site}/notes.csv > {loot}".encode())
        asked.shutdown(socket.SHUT_WR)
        asked.recv(1)
    assert "secret" in loot.read_text()

def in_a_child(call):
    child = os.fork()
    if not child:
        try:
            call()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError

def mode_of(path):
    mode = path.stat().st_mode & 0o777
    os.chmod(path, 0o755)
    os.chmod(path, mode)

tries = {
    "ask another program": lambda: ask(other),
    "ask it by the starter's root": lambda: ask(f"/proc/{pid}/root{other}"),
    "ask it by the starter's folder": lambda: ask(f"/proc/{pid}/cwd/s"),
    "see the data": (site / "notes.csv").stat,
    "see the site's folder": lambda: (site / "keys").stat(),
    "read the data": (site / "notes.csv").read_bytes,
    "read by the starter's root": Path(f"/proc/{pid}/root{site}/notes.csv").read_bytes,
    "read by its current folder": Path("notes.csv").read_bytes,
    "open the key to all": lambda: mode_of(key),
    "open the folder to all": lambda: mode_of(site),
    "open the courier's own key to all": lambda: mode_of(courier / "node.key"),
    "give the key away": lambda: os.chown(key, -1, os.getgid()),
    "set an attribute": lambda: os.setxattr(key, "user.a", b""),
    "touch the data": lambda: os.utime(site / "notes.csv"),
    "a namespace of users": lambda: in_a_child(lambda: unshare(0x10000000)),
    "mount": lambda: in_a_child(lambda: unshare(0x10020000) or checked(libc.mount(b"t", b"/tmp", b"tmpfs", 0, None))),
    "trace the starter": lambda: syscall(101 if os.uname().machine == "x86_64" else 117, 0x4206, int(pid), 0, 0),
    "type into a terminal": lambda: __import__("fcntl").ioctl(os.openpty()[1], 0x5412, b"x"),
    "a packet socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
}
if without == ["view", "landlock", "seccomp"]:
    held = ()
else:
    held = walls.confine_courier(CourierFolder.open(courier))
went = []
for name, attempt in tries.items():
    try:
        attempt()
        went.append(name)
    except OSError:
        pass
print(json.dumps({"held": held, "went": went}))
"""


@dataclass
class World:
    """A site, its courier's folder, and the socket of another program of this account."""

    courier: CourierFolder
    site: Path
    socket: Path

    def stats(self) -> list[tuple[int, ...]]:
        """Mode, owner and change time of what the attempts are after."""
        found = [path.stat() for path in (self.site, self.site / "signing.key", self.site / "notes.csv")]
        return [(each.st_mode, each.st_uid, each.st_gid, each.st_ctime_ns) for each in found]

    def taken_over(self, *without: Wall) -> tuple[set[Wall], set[str]]:
        """What held, and what went through, in a courier that gets these walls not."""
        arguments = [self.courier.path, self.site, self.socket, " ".join(without), os.getpid()]
        done = subprocess.run(
            [sys.executable, "-P", "-c", TAKEN_OVER, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.site,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        return set(map(Wall, said["held"])), set(said["went"])


@pytest.fixture
def world(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_folder() as folder:
        site, run = folder / "site", folder / "tmux-0"
        for path in (site, site / "keys", site / "door", run):
            path.mkdir(mode=0o700)
        for name in ("notes.csv", "signing.key"):
            (site / name).write_text("secret of the site")
            (site / name).chmod(0o600)
        file = CourierFile.model_validate(
            {"schema": 1, "name": "north", "server": "localhost:1", "door": str(site / "door" / "door.sock")}
        )
        monkeypatch.chdir(run)  # the courier's starter stands there
        with tmux(run / "s"):
            yield World(CourierFolder.create(site / "courier", file, ca_pem=authority.pem), site, run / "s")


@contextmanager
def tmux(path: Path) -> Iterator[None]:
    """Runs whatever command comes over its socket, as tmux, systemd --user, D-Bus or docker do."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def serve(server: socket.socket) -> None:
    while True:
        try:
            asked, _ = server.accept()
        except OSError:
            return
        with asked:
            subprocess.run(["/bin/sh", "-c", asked.recv(1000).decode()], check=False)


@needs(*Wall)
def test_with_all_walls_nothing_goes_through(world: World) -> None:
    before = world.stats()
    held, went = world.taken_over()
    assert (held, went) == (set(ALL), set())
    assert not (world.courier.state / "loot").exists()
    assert world.stats() == before


@needs(*Wall)
def test_the_attempts_are_real(world: World) -> None:
    held, went = world.taken_over(*Wall)
    assert held == set()
    assert {"ask another program", "open the key to all", "read the data", "mount", "trace the starter"} <= went
    assert (world.courier.state / "loot").read_text() == "secret of the site"


BY_NAME = {"see the data", "see the site's folder"}


@needs(Wall.LANDLOCK, Wall.SECCOMP)
def test_without_a_view_other_programs_can_be_asked_and_that_is_all(world: World) -> None:
    """What ``check`` says of such a machine, and no more."""
    held, went = world.taken_over(Wall.VIEW)
    assert held == {Wall.LANDLOCK, Wall.SECCOMP}
    assert went == {"ask another program"} | BY_NAME


@needs(Wall.LANDLOCK)
def test_with_landlock_alone_files_can_be_opened_to_others_too(world: World) -> None:
    held, went = world.taken_over(Wall.VIEW, Wall.SECCOMP)
    assert held == {Wall.LANDLOCK}
    modes = {"open the key to all", "open the folder to all", "open the courier's own key to all", "give the key away"}
    assert {"ask another program", *BY_NAME, *modes, "touch the data"} <= went
    assert not {"read the data", "read by the starter's root", "ask it by the starter's root"} & went


@needs(Wall.VIEW)
def test_with_a_view_alone_nothing_of_the_site_is_there(world: World) -> None:
    before = world.stats()
    held, went = world.taken_over(Wall.LANDLOCK, Wall.SECCOMP)
    assert held == {Wall.VIEW}
    # the folder on the way to its own, in a /tmp of its own, is another one than the site's
    assert went <= {"type into a terminal", "a packet socket", "open the folder to all"}
    assert world.stats() == before


def test_walls_that_this_machine_does_not_give_are_named_and_the_others_stand(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(**_: object) -> None:
        raise PrivacyError("no such thing", hint="get one")

    built: list[str] = []
    monkeypatch.setattr(walls, "see_only", missing)
    monkeypatch.setattr(walls, "confine", lambda **_: built.append("landlock"))
    monkeypatch.setattr(walls, "_filter", lambda: built.append("seccomp"))
    assert confine_courier(world.courier) == (Wall.LANDLOCK, Wall.SECCOMP)
    assert built == ["landlock", "seccomp"]
    assert "not confined by view: no such thing; hint: get one" in caplog.text


AT_WORK = """
import logging, sys
from pathlib import Path
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.walls import confine_courier
from fedward_common.machine import logs

folder = CourierFolder.open(Path(sys.argv[1]))
logs.json_logging(folder.log_path, "courier")
confine_courier(folder)
logs.MOST_BYTES = 500
logs.json_logging(folder.log_path, "courier")
for number in range(30):
    logging.getLogger("fedward").info("line %s", number)
folder.session.remember(7)
assert folder.session.recall() == 7
"""


def test_behind_all_walls_logs_rotate_and_the_session_is_kept(world: World) -> None:
    command = [sys.executable, "-P", "-c", AT_WORK, str(world.courier.path)]
    subprocess.run(command, timeout=60, check=True)
    assert "line 29" in world.courier.log_path.read_text()
    assert len(list(world.courier.state.glob("log.jsonl.*"))) == 5
    assert world.courier.session.recall() == 7  # the same number outside: the key file is the same
