"""The courier as a process of its own, against a server that plays the Fleet API and a trainer that shouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedward_client.courier.faults import State
from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.courier.status import Status
from fedward_client.door.credentials import publish
from fedward_client.trainer.service import TrainerServer
from fedward_common.machine.landlock import landlock_abi
from fedward_common.wire import pack, unpack
from support.fleet_api import Authority, FleetApi, Handler, status
from support.kernels import walls_here
from support.trainer import Served, serving, short_folder

pytestmark = pytest.mark.slow
needs_landlock = pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
MODULE = "fedward_client.courier.main"
DAYLIGHT = dict(os.environ, OMP_NUM_THREADS="1")


class Site:
    """A courier folder, and the trainer behind its Door."""

    def __init__(self, folder: CourierFolder, served: Served) -> None:
        self.folder, self.served = folder, served

    @contextmanager
    def courier(self) -> Iterator[subprocess.Popen[bytes]]:
        keys = self.served.pair.courier.to_fd()
        command = [sys.executable, "-P", "-m", MODULE, str(self.folder.path), "--credentials-fd", str(keys)]
        process = subprocess.Popen(command, pass_fds=[keys], env=DAYLIGHT)
        os.close(keys)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def status(self) -> Status | None:
        return CourierFolder.status(self.folder.path)

    def state(self, state: State) -> Status:
        until(lambda: self.status is not None and self.status.state is state)
        assert self.status is not None
        return self.status

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.log_path.read_text().splitlines()]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(process: subprocess.Popen[bytes], within: float = 2.0) -> int:
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(10)
    assert time.monotonic() - before < within
    return code


@pytest.fixture
def site(api: FleetApi, authority: Authority) -> Iterator[Site]:
    with short_folder() as path, serving(path / "door", answer=lambda data: data.upper()) as served:
        keys = {"schema": 1, "name": "north", "server": api.address, "door": str(served.place.socket)}
        file = CourierFile.model_validate(keys)
        yield Site(CourierFolder.create(path / "courier", file, ca_pem=authority.pem), served)


def test_a_life(site: Site, api: FleetApi) -> None:
    asked = api.send(pack(b"signed plan"))
    with site.courier() as process:
        until(lambda: asked in api.replies())
        assert unpack(api.replies()[asked].content) == b"SIGNED PLAN"
        told = site.state(State.CONNECTED)
        assert (told.pid, told.server, told.confined) == (process.pid, api.address, walls_here())
        assert CourierFolder.deafness(site.folder.path) is None
        assert resident_mb(process.pid) < 150
        assert ended(process) == 0
    assert api.asked[-1] == "deactivate-node"  # the next start is welcome at once
    assert site.folder.session.recall() is None
    assert site.status is None
    written = Status.from_json(site.folder.status_path.read_text())
    assert written is not None
    assert written.state is State.STOPPED
    assert {line["process"] for line in site.log()} == {"courier"}


def test_a_trainer_that_starts_again_is_found_at_its_new_socket(site: Site, api: FleetApi) -> None:
    """In its own view of files the courier has the Door's folder, and not the socket that was there first."""
    served = site.served
    with site.courier():
        site.state(State.CONNECTED)
        served.server.close()
        served.place.socket.unlink(missing_ok=True)
        served.server = TrainerServer(served.place, served.pair.trainer, max_update_bytes=2**27, beat_s=0.1)
        served.server.open(served.turns)
        asked = api.send(pack(b"signed plan"))
        until(lambda: asked in api.replies())
        assert unpack(api.replies()[asked].content) == b"SIGNED PLAN"


def test_a_courier_whose_doors_folder_is_gone_ends_so_that_the_next_one_sees_the_new(site: Site) -> None:
    publish(site.served.pair.courier, site.served.place)
    process = subprocess.Popen([sys.executable, "-P", "-m", MODULE, str(site.folder.path)], env=DAYLIGHT)
    try:
        site.state(State.CONNECTED)
        shutil.rmtree(site.served.place.folder)
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
    assert "the Door's folder is another one now" in site.folder.log_path.read_text()


def test_one_folder_has_one_courier_and_after_kill_it_is_back_without_activation(site: Site, api: FleetApi) -> None:
    with site.courier():
        site.state(State.CONNECTED)
        with site.courier() as second:
            assert second.wait(30) == 2
    api.always["activate-node"] = status(412, b'{"code": 2004, "detail": "no"}')
    asked = api.send(pack(b"plan"))
    with site.courier():
        until(lambda: asked in api.replies())
    assert api.asked.count("activate-node") == 1


def test_sigterm_ends_it_within_two_seconds_whatever_hangs(site: Site, api: FleetApi) -> None:
    hang = threading.Event()

    def hangs(handler: Handler) -> None:
        hang.wait(60)

    api.always["activate-node"] = hangs
    with site.courier() as process:
        until(lambda: api.asked)
        assert ended(process) == 0
    hang.set()


def test_sigterm_ends_it_while_the_trainer_trains(site: Site, api: FleetApi) -> None:
    training, over = threading.Event(), threading.Event()

    def train(data: bytes) -> bytes:
        training.set()
        over.wait(20)
        return data

    with short_folder() as path, serving(path / "door", answer=train) as served:
        keys = site.folder.file.model_dump(by_alias=True) | {"door": str(served.place.socket)}
        (site.folder.path / "courier.toml").write_text(CourierFile.model_validate(keys).to_toml())
        site.served = served
        api.send(pack(b"plan"))
        with site.courier() as process:
            assert training.wait(30)
            assert site.state(State.CONNECTED).at_door
            assert ended(process) == 0
        over.set()


def test_a_folder_that_has_to_be_mended_ends_it_with_a_code_of_its_own(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    (site.folder.path / "ca.pem").write_text("no")
    with site.courier() as process:
        assert process.wait(30) == 2
    line = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert "the CA file holds no certificate" in line["message"]
    assert "hint: ask the operator" in line["message"]


TAKEN_OVER = """
import os, socket, sys
from pathlib import Path
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.walls import confine_courier

courier, secrets, pid, port = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
tries = {
    **{name: (secrets / name).read_bytes for name in ("notes.csv", "site.toml", "ledger.jsonl", "signing.key")},
    "a link": (courier / "link").read_bytes,
    "listing": lambda: list(secrets.iterdir()),
    "writing": lambda: (secrets / "notes.csv").write_text("x"),
    "making": lambda: (secrets / "new").write_text("x"),
    "tmp": lambda: Path("/tmp/fedward-courier-was-here").write_text("x"),
    "memory": lambda: os.pread(os.open(f"/proc/{pid}/mem", os.O_RDONLY), 1, 0),
    "open files": lambda: os.readlink(f"/proc/{pid}/fd/1"),
    "another port": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
    "a server": lambda: socket.create_server(("127.0.0.1", 0)).close(),
    "a child": lambda: os.system(f"cat {secrets}/notes.csv") == 0 or sys.exit("no"),
}
for name in ("notes.csv", "a link", "listing", "open files", "another port"):
    tries[name]()
assert confine_courier(CourierFolder.open(courier))
open(courier / "state" / "status.json", "w").close()
os.listdir(Path(CourierFolder.open(courier).file.door).parent)
went = []
for name, attempt in tries.items():
    try:
        attempt()
        went.append(name)
    except (OSError, SystemExit):
        pass
print(went)
"""


@needs_landlock
def test_data_ledger_key_and_memory_cannot_be_reached_from_a_courier_that_was_taken_over(site: Site) -> None:
    with short_folder() as secrets, socket.create_server(("127.0.0.1", 0)) as listener:
        for name in ("notes.csv", "site.toml", "ledger.jsonl", "signing.key"):
            (secrets / name).write_text("secret of the site")
        (site.folder.path / "link").symlink_to(secrets / "notes.csv")
        arguments = [site.folder.path, secrets, str(os.getpid()), str(listener.getsockname()[1])]
        command = [sys.executable, "-P", "-c", TAKEN_OVER, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=secrets, check=False)
    went = {"a server", "another port"} if landlock_abi() < 4 else set()
    assert (done.stdout.strip(), done.returncode) == (str(sorted(went)), 0), done.stderr
    assert "secret of the site" not in done.stdout


FROM_HERE = f"""
from pathlib import Path
from {MODULE} import _import_nothing_from_here
from fedward_common.machine.paths import covers, python_paths
secret = [Path.cwd() / "notes.csv"]
assert covers(python_paths(), secret)
_import_nothing_from_here()
assert not covers(python_paths(), secret)
"""


def test_started_from_the_site_s_folder_it_may_not_read_there() -> None:
    """Without -P, Python imports from the current folder, and what it imports from is allowed."""
    with short_folder() as here:
        (here / "code.py").write_text(FROM_HERE)
        subprocess.run([sys.executable, here / "code.py"], cwd=here, timeout=60, check=True)


def test_nothing_is_loaded_before_it_is_confined() -> None:
    code = f"import os, sys, {MODULE}; print(len(os.listdir('/proc/self/task')), *sys.modules)"
    printed = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    threads, *modules = printed.stdout.split()
    assert threads == "1"
    assert not {"numpy", "grpc", "flwr", "httpx", "torch"} & set(modules)


def resident_mb(pid: int) -> float:
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
