"""The operator's only public port: passes the Fleet routes of enrolled sites to the SuperLink, and nothing else.

``python -m fedward_server.gateway DIR --fd N --upstream HOST:PORT``: the socket is inherited and bound, and may listen
already; the SuperLink listens on loopback. Reads DIR/server.toml, or what ``--server`` names in its place, DIR/keys
(server.pem, server.key, ca.pem) and DIR/sites/*.pub; touches the file that ``--ready`` names once it takes connections.
This module is the process: socket, certificates, connections. What happens to a request is in `passing`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import h11

from fedward_common.errors import ConfigError, FedwardError
from fedward_common.machine.logs import json_logging
from fedward_server.gateway.limits import Limits, neighbourhood
from fedward_server.gateway.passing import Passing
from fedward_server.gateway.peer import Peer
from fedward_server.gateway.roll import Roll
from fedward_server.gateway.upstream import Pool
from fedward_server.gateway.versions import Versions
from fedward_server.gateway.visits import Visit, Visits

__all__ = ["Gateway", "Place", "main"]

LOG = logging.getLogger(__name__)
BACKLOG = 256
BUFFER = 1 << 17
LOOK_S = 1.0  # between two looks at the certificate
GRACE_S = 5.0  # for requests under way, when the gateway is told to end
AT_A_TURN = 16  # connections
WRITE_S = 2.0  # between two looks whether sites' versions are to be written
FULL_S = 0.1  # before another try to accept, when files run out


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the gateway's files lie, and where the SuperLink listens."""

    folder: Path
    host: str
    port: int

    @property
    def certificate(self) -> Path:
        """Its own, which the SuperLink shows as well."""
        return self.folder / "keys" / "server.pem"

    def stamp(self) -> tuple[int, ...]:
        """Changes when the certificate or its key does."""
        paths = (self.certificate, self.folder / "keys" / "server.key", self.folder / "keys" / "ca.pem")
        return tuple(path.stat().st_mtime_ns for path in paths)

    def inward(self) -> ssl.SSLContext:
        """TLS 1.3 for sites."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self.certificate, self.folder / "keys" / "server.key")
        return context

    def outward(self) -> Pool:
        """The SuperLink, trusted by our CA alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.folder / "keys" / "ca.pem")
        context.check_hostname = False  # right after a renewal its names may differ
        return Pool(self.host, self.port, context=context)


class Gateway:
    """Serves one socket.

    Guarantees:
      - An address holds at most ``connections_per_address`` connections, those before their handshake included.
      - Strangers, however many, leave room for enrolled sites (`visits`).
      - No request waits for a disk because a site says another version of itself.
      - A renewed certificate is served without a restart; a broken one leaves the one before in use.
    """

    def __init__(self, place: Place, limits: Limits, *, log: TextIO) -> None:
        """Reads the keys; listens to nothing yet."""
        self._place, self._limits = place, limits
        self._looked, self._stamp = time.monotonic(), place.stamp()
        self._inward, self._pool = place.inward(), place.outward()
        self._versions = Versions(place.folder / "state")
        self._passing = Passing(limits, Roll(place.folder / "sites"), lambda: self._pool, log, self._met)
        self._visits = Visits(
            total=limits.connections,
            per_address=limits.connections_per_address,
            per_node=limits.connections_per_node,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket, ending: asyncio.Event) -> None:
        """Accept connections until told to end, then let requests under way finish."""
        own = [asyncio.create_task(self._accept(listener)), asyncio.create_task(self._keep_versions())]
        await ending.wait()
        for task in own:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_S)
        for task in self._tasks:
            task.cancel()
        self._versions.write()
        self._pool.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop, taken = asyncio.get_running_loop(), 0
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                LOG.warning("cannot accept: %s", error)
                await asyncio.sleep(FULL_S)
                continue
            visit = self._visits.enter(neighbourhood(str(address[0])))
            if visit is None:
                connection.close()
                continue
            task = asyncio.create_task(self._connection(connection, visit))
            visit.drop = task.cancel
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(partial(_close, connection))  # which it does itself, if it ever began
            taken += 1
            if taken % AT_A_TURN == 0:
                await asyncio.sleep(0)  # the others' turn: accepting alone never waits while somebody knocks

    def _met(self, visit: Visit, node: str, version: str) -> None:
        self._visits.greet(visit, node)
        self._versions.note(node, version)

    async def _keep_versions(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            await asyncio.to_thread(self._versions.write)

    async def _connection(self, connection: socket.socket, visit: Visit) -> None:
        """From the TLS handshake to the last request."""
        try:
            async with _served(connection, self._certificate(), self._limits) as peer:
                await self._passing.talk(peer, visit)
        except (OSError, ssl.SSLError, TimeoutError):
            pass  # no TLS 1.3, or gone
        except Exception as error:
            LOG.error("a connection failed: %s", error)
        finally:
            self._visits.leave(visit)

    def _certificate(self) -> ssl.SSLContext:
        if time.monotonic() - self._looked < LOOK_S:
            return self._inward
        self._looked = time.monotonic()
        try:
            stamp = self._place.stamp()
            if stamp != self._stamp:
                self._inward, pool = self._place.inward(), self._place.outward()
                self._pool.close()
                self._pool, self._stamp = pool, stamp
                LOG.info("certificate read again")
        except (OSError, ssl.SSLError, ValueError) as error:
            LOG.warning("the new certificate cannot be used yet: %s", error)
        return self._inward


def _close(connection: socket.socket, _: asyncio.Task[None]) -> None:
    connection.close()


@contextlib.asynccontextmanager
async def _served(connection: socket.socket, tls: ssl.SSLContext, limits: Limits) -> AsyncIterator[Peer]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=BUFFER)
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=tls,
            ssl_handshake_timeout=limits.head_s,
            ssl_shutdown_timeout=limits.head_s,
        )
    except BaseException:
        connection.close()
        raise
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        yield Peer(h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes), reader, writer)
        writer.close()
        await writer.wait_closed()  # until then it counts
    finally:
        transport.abort()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_server.gateway", description="The public port.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--fd", type=int, required=True, help="an inherited, bound TCP socket")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="where the SuperLink listens")
    parser.add_argument("--server", type=Path, metavar="FILE", help="the server file; without it DIR/server.toml")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="touched once connections are taken")
    chosen = parser.parse_args(arguments)
    json_logging(sys.stdout, "gateway")
    _raise_files()
    try:
        host, port = _address(chosen.upstream)
        limits = _limits(chosen.server or chosen.folder / "server.toml")
        gateway = Gateway(Place(folder=chosen.folder, host=host, port=port), limits, log=sys.stdout)
        asyncio.run(_until_told(gateway, chosen.fd, ready=chosen.ready))
    except FedwardError as error:
        sys.stderr.write(f"fedward-server: error: {error}\nhint: {error.hint}\n")
        return 2
    return 0


async def _until_told(gateway: Gateway, fd: int, *, ready: Path | None) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    with socket.socket(fileno=fd) as listener:
        listener.setblocking(False)
        listener.listen(BACKLOG)
        _say_ready(ready)
        await gateway.serve(listener, ending)


def _say_ready(file: Path | None) -> None:
    try:
        if file is not None:
            file.touch(mode=0o600)
    except OSError as error:
        LOG.warning("cannot write %s: %s", file, error.strerror)


def _raise_files() -> None:
    """Every connection may need one to the SuperLink."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--upstream is {text!r}", hint="give HOST:PORT, for example 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def _limits(path: Path) -> Limits:
    from fedward_server.deployment.server_file import ServerFile

    table = ServerFile.load(path).gateway
    return Limits(max_body_bytes=table.max_body_bytes, requests_per_s=table.requests_per_s, burst=table.burst)
