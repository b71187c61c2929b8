"""What the gateway costs: the same message down to a site and its reply up, straight to the SuperLink and through it.

A real SuperLink, the real gateway, the courier's own client; both ways over TLS 1.3 on loopback, in turns. One site's
message is one request each way, however large, because Flower stores our bytes as one object.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedward_common.errors import OutputError
from fedward_simulations.bench.table import Table, middle

if TYPE_CHECKING:
    from fedward_client.courier.fleet import Fleet
    from fedward_client.courier.folder import CourierFolder
    from fedward_server.deployment.folder import OperatorFolder
    from fedward_server.deployment.superlink import Upstream
    from fedward_server.deployment.task import TaskGrid

__all__ = ["measure"]

MB = 1_000_000
BODY_LIMIT = 256 << 20
MOST = 1 << 31  # at the gateway, where it is a site's budget of bytes as well
START_S = 60.0
HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Seconds of each transfer: down to the site, up from it."""

    down: tuple[float, ...] = ()
    up: tuple[float, ...] = ()

    def plus(self, down: float, up: float) -> _Times:
        return _Times(down=(*self.down, down), up=(*self.up, up))


def measure(*, sizes_mb: Sequence[float] = (1, 10, 100), times: int = 7) -> Table:
    """Send messages of each size ``times`` times on both ways, after one of each that is not counted.

    Raises:
      OutputError: a process did not start.
    """
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        bench = stack.enter_context(_bench(Path(root)))
        rows = [row for size in sizes_mb for row in _rows(size, *bench.compare(int(size * MB), times))]
    return Table(
        title="Seconds of a transfer, straight to the SuperLink and through the gateway",
        head=("message", "straight", "gateway", "times straight"),
        rows=tuple(rows),
        note=f"Median (range) of {times}, in turns, on loopback with TLS 1.3; the last column is of each turn's pair. "
        "The aim is 1.30 at most.",
    )


def _rows(size: float, straight: _Times, gateway: _Times) -> Iterator[tuple[str, ...]]:
    for way, plain, through in (("down", straight.down, gateway.down), ("up", straight.up, gateway.up)):
        pairs = [two / one for one, two in zip(plain, through, strict=True)]
        yield f"{size:g} MB {way}", middle(plain, digits=3), middle(through, digits=3), middle(pairs)
    both = [sum(two) / sum(one) for one, two in zip(_both(straight), _both(gateway), strict=True)]
    whole = [[sum(pair) for pair in _both(times)] for times in (straight, gateway)]
    yield f"{size:g} MB both", middle(whole[0], digits=3), middle(whole[1], digits=3), middle(both)


def _both(times: _Times) -> list[tuple[float, float]]:
    return list(zip(times.down, times.up, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """One node that is reached on two ways, and a run that has messages for it."""

    straight: Fleet
    gateway: Fleet
    grid: TaskGrid

    def compare(self, size: int, times: int) -> tuple[_Times, _Times]:
        straight, gateway = _Times(), _Times()
        for turn in range(times + 1):
            first, second = (self.straight, self.gateway) if turn % 2 else (self.gateway, self.straight)
            spent = {id(fleet): self._exchange(fleet, size) for fleet in (first, second)}
            if turn:
                straight, gateway = straight.plus(*spent[id(self.straight)]), gateway.plus(*spent[id(self.gateway)])
        return straight, gateway

    def _exchange(self, fleet: Fleet, size: int) -> tuple[float, float]:
        from flwr.app import Message

        from fedward_client.courier.fleet import pack_up
        from fedward_common.wire import pack, unpack

        fleet.heartbeat()  # also opens the connection again, if it was idle for long
        node, sent = fleet.node_id or 0, secrets.token_bytes(size)
        (message_id,) = self.grid.push_messages([Message(content=pack(sent), dst_node_id=node, message_type="train")])
        began = time.perf_counter()
        message = fleet.pull()
        down = time.perf_counter() - began
        if message is None or unpack(message.content) != sent:
            raise RuntimeError("the message did not arrive")
        parcel = pack_up(Message(pack(secrets.token_bytes(size)), reply_to=message))
        began = time.perf_counter()
        fleet.push(parcel)
        up = time.perf_counter() - began
        if len(list(self.grid.pull_messages([message_id]))) != 1:
            raise RuntimeError("the reply did not arrive")
        return down, up


@contextmanager
def _bench(root: Path) -> Iterator[_Bench]:
    from fedward_client.courier.fleet import Fleet
    from fedward_client.courier.link import Watch
    from fedward_server.deployment.superlink import Upstream

    folder = _operator(root / "operator")
    with ExitStack() as stack:
        port = stack.enter_context(_superlink(folder))
        public = stack.enter_context(_gateway(folder, port))
        couriers = _couriers(root, folder, {"straight": port, "gateway": public})
        upstream = Upstream.of(folder, port=port)
        _enrol(folder, upstream, couriers["straight"])
        grid = stack.enter_context(_run(upstream))
        ways = {name: Fleet(courier, Watch(largest=BODY_LIMIT)) for name, courier in couriers.items()}
        node = ways["straight"].activate()
        ways["gateway"].resume(node)
        yield _Bench(straight=ways["straight"], gateway=ways["gateway"], grid=grid)
        for way in ways.values():
            way.close()


def _operator(root: Path) -> OperatorFolder:
    from fedward_server.deployment.folder import OperatorFolder

    folder = OperatorFolder.create(root, name="bench", names=(HOST, "127.0.0.1"))
    text = folder.server_file.read_text(encoding="utf-8")
    folder.server_file.write_text(re.sub(r"max_body_bytes = [\d_]+", f"max_body_bytes = {MOST}", text))
    return folder


def _couriers(root: Path, folder: OperatorFolder, ports: dict[str, int]) -> dict[str, CourierFolder]:
    """The same node key with two addresses of its operator."""
    from fedward_client.courier.folder import CourierFile, CourierFolder

    ca, found = (folder.keys / "ca.pem").read_bytes(), dict[str, CourierFolder]()
    for name, port in ports.items():
        path = root / name
        path.mkdir(mode=0o700)
        if found:
            shutil.copy2(root / next(iter(found)) / "node.key", path / "node.key")
        file = CourierFile.from_toml(f'schema = 1\nname = "bench"\nserver = "{HOST}:{port}"\ndoor = "{path}/door"\n')
        found[name] = CourierFolder.create(path, file, ca_pem=ca)
    return found


def _enrol(folder: OperatorFolder, upstream: Upstream, courier: CourierFolder) -> None:
    from fedward_common.codec import new_key
    from fedward_common.enrolment import Enrolment
    from fedward_server.deployment.flower import Control

    enrolment = Enrolment.sign("bench", node=courier.node_public_key, signing=new_key())
    (folder.sites_folder / "bench.pub").write_text(enrolment.to_text(), encoding="utf-8")
    control = Control(upstream)
    control.register_node(courier.node_public_key, name="bench")
    control.close()


@contextmanager
def _run(upstream: Upstream) -> Iterator[TaskGrid]:
    from fedward_server.deployment.flower import Control, Tasks, pointer_bundle
    from fedward_server.deployment.task import Outcome, TaskGrid

    control, tasks = Control(upstream), Tasks(upstream)
    control.start_run(pointer_bundle())
    acquired = tasks.acquire()
    if acquired is None:
        raise OutputError("the SuperLink has no task for this benchmark", hint="run it again on an idle machine")
    grid = TaskGrid(upstream, acquired.token, stopping=lambda: False, seen=lambda _: None)
    grid.begin()
    try:
        yield grid
    finally:
        grid.finish(Outcome.COMPLETED)
        tasks.close()
        control.close()


@contextmanager
def _superlink(folder: OperatorFolder) -> Iterator[int]:
    from fedward_server.deployment.superlink import (
        Upstream,
        flower_environment,
        healthy,
        superlink_arguments,
    )

    port = _free_port()
    environment = {**os.environ, **flower_environment(folder)}
    folder.superlink.mkdir(exist_ok=True)
    with _process(superlink_arguments(folder, port=port), folder, environment=environment) as process:
        upstream, end = Upstream.of(folder, port=port), time.monotonic() + START_S
        while not healthy(upstream):
            if process.poll() is not None or time.monotonic() > end:
                raise OutputError("the SuperLink does not start", hint="start it by hand: fedward-server start DIR")
            time.sleep(0.1)
        yield port


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@contextmanager
def _gateway(folder: OperatorFolder, upstream: int) -> Iterator[int]:
    module = "fedward_server.gateway"
    with socket.create_server(("127.0.0.1", 0)) as public:
        port = int(public.getsockname()[1])
        command = (sys.executable, "-m", module, str(folder.root), "--fd", str(public.fileno()))
        target = ("--upstream", f"127.0.0.1:{upstream}")
        with _process((*command, *target), folder, fd=public.fileno()):
            yield port


@contextmanager
def _process(
    command: Sequence[str], folder: OperatorFolder, *, environment: dict[str, str] | None = None, fd: int = -1
) -> Iterator[subprocess.Popen[bytes]]:
    log = folder.logs / "bench.log"
    with log.open("ab") as out:
        passed = (fd,) if fd >= 0 else ()
        process = subprocess.Popen(command, env=environment, pass_fds=passed, stdout=out, stderr=out)  # noqa: S603
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
