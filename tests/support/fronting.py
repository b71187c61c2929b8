"""An operator's folder with enrolled sites, a stand-in for the SuperLink, and the two public doors in front of it."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.enrolment import Enrolment
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.gateway.roll import key_header, nodes_map

NAME = "fed.example.org"
REPOSITORY = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx")
FLEET = tuple(
    f"/v1/fleet/{name}"
    for name in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"),
        *("pull-object", "push-object", "confirm-message-received"),
    )
)


@dataclass(frozen=True)
class Site:
    """A courier's key."""

    name: str
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def enrolled(cls, folder: OperatorFolder, name: str) -> Site:
        site = cls.stranger(name)
        text = Enrolment.sign(name, node=site.key.public_key(), signing=Ed25519PrivateKey.generate()).to_text()
        draft = folder.sites_folder / f".{name}"
        draft.write_text(text)
        draft.rename(folder.sites_folder / f"{name}.pub")
        return site

    @classmethod
    def stranger(cls, name: str = "stranger") -> Site:
        return cls(name, ec.generate_private_key(ec.SECP384R1()))

    def headers(self, *, late_s: float = 0.0) -> dict[str, str]:
        """What Flower's client sends."""
        stamp = (datetime.now(UTC) - timedelta(seconds=late_s)).isoformat()
        signature = self.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "content-type": "application/protobuf",
            "flwr-public-key": key_header(self.key.public_key()).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


def operator(root: Path) -> OperatorFolder:
    return OperatorFolder.create(root, name="test", names=(NAME, "127.0.0.1"))


# ---- the stand-in for the SuperLink -------------------------------------------------
@dataclass
class Heard:
    """A request as the SuperLink got it."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class StandIn:
    """Answers whatever it is told to, and remembers what it was asked."""

    status: int = 200
    answer: bytes = b"answer"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    breaks: bool = False
    heard: list[Heard] = field(default_factory=list)
    port: int = 0

    def reset(self) -> None:
        self.status, self.answer, self.headers, self.delay_s, self.breaks = 200, b"answer", {}, 0.0, False
        self.heard.clear()

    @property
    def paths(self) -> list[str]:
        return [heard.line for heard in self.heard if "/health" not in heard.line]


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            self._reply(_body(self))

        do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_GET

        def _reply(self, body: bytes) -> None:
            line = f"{self.command} {self.path}"
            stand_in.heard.append(Heard(line, {name.lower(): value for name, value in self.headers.items()}, body))
            time.sleep(stand_in.delay_s)
            if stand_in.breaks:
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                self.close_connection = True
                return
            self.send_response(stand_in.status)
            for name, value in {"content-length": str(len(stand_in.answer)), **stand_in.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(stand_in.answer)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("transfer-encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", 0)))
    body = bytearray()
    while size := int(handler.rfile.readline().strip(), 16):  # a ValueError where the front hung up
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return bytes(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        pass  # the front hung up

    def server_close(self) -> None:
        super().server_close()
        for connection in self._open:  # as those of a process that ended
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


@contextmanager
def stand_in(folder: OperatorFolder, *, port: int = 0) -> Iterator[StandIn]:
    told = StandIn()
    server = _Server(("127.0.0.1", port), _handler(told))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.keys / "server.pem", folder.keys / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    told.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ---- the public doors ----------------------------------------------------------------
@dataclass(frozen=True)
class Front:
    """A door: where it listens, and where it writes its log."""

    name: str
    port: int
    folder: OperatorFolder
    log: Path
    process: subprocess.Popen[bytes]

    def connect(
        self, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, host: str = "127.0.0.1", source: str = ""
    ) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder.keys / "ca.pem")
        context.minimum_version = context.maximum_version = version
        plain = socket.create_connection((host, self.port), timeout=60, source_address=(source, 0) if source else None)
        return context.wrap_socket(plain, server_hostname=NAME)

    def ask(self, request: bytes, *, method: str = "POST", source: str = "") -> tuple[int, bytes, dict[str, str]]:
        """Send bytes as they are; status (0: hung up without a word), body and headers of the answer."""
        with self.connect(source=source) as connection:
            return answer_of(connection, request, method=method)


def answer_of(connection: ssl.SSLSocket, request: bytes, *, method: str = "POST") -> tuple[int, bytes, dict[str, str]]:
    with suppress(OSError):  # it answered already
        connection.sendall(request)
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, OSError):
        return 0, b"", {}
    finally:
        response.close()
    return response.status, body, {name.lower(): value for name, value in response.getheaders()}


def request_bytes(
    path: str, headers: dict[str, str], body: bytes = b"", *, method: str = "POST", version: str = "1.1"
) -> bytes:
    """A request; a header whose value is empty is left out."""
    lines = {"host": NAME, "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + body


def statuses_at_once(front: Front, requests: Sequence[bytes]) -> list[int]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return sorted(status for status, _, _ in pool.map(front.ask, requests))


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, 0))
    return bound


@contextmanager
def gateway(folder: OperatorFolder, upstream: int, log: Path, *, host: str = "127.0.0.1") -> Iterator[Front]:
    with listening_socket(host) as bound, log.open("wb") as out:
        command = (sys.executable, "-m", "fedward_server.gateway", str(folder.root), "--fd")
        process = subprocess.Popen(
            (*command, str(bound.fileno()), "--upstream", f"127.0.0.1:{upstream}"),
            pass_fds=(bound.fileno(),),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        port = bound.getsockname()[1]
    front = Front("gateway", port, folder, log, process)
    with _ended(process):
        _until(lambda: _listens(host, port), process)
        yield front


@contextmanager
def nginx(folder: OperatorFolder, upstream: int, home: Path) -> Iterator[Front]:
    """docs/nginx/fedward.conf, with the values of this test where it says "yours"."""
    with listening_socket() as bound:
        port = bound.getsockname()[1]
    (home / "logs").mkdir(parents=True)
    write_nodes_map(folder, home)
    (home / "fedward.conf").write_text(nginx_values(folder, port, upstream, home))
    (home / "nginx.conf").write_text(_main(home))
    command = (str(NGINX), "-p", str(home), "-c", str(home / "nginx.conf"), "-e", str(home / "logs" / "error.log"))
    process = subprocess.Popen(command)
    front = Front("nginx", port, folder, home / "logs" / "fedward.log", process)
    with _ended(process):
        _until(lambda: _listens("127.0.0.1", port), process)
        yield front


def nginx_values(folder: OperatorFolder, port: int, upstream: int, home: Path) -> str:
    text = (REPOSITORY / "docs" / "nginx" / "fedward.conf").read_text()
    for ours, theirs in {
        "include fedward-nodes.map; # yours": f"include {home}/nodes.map;",
        "server 127.0.0.1:8000; # yours": f"server 127.0.0.1:{upstream};",
        "listen 8443 ssl; # yours": f"listen 127.0.0.1:{port} ssl;",
        "ssl_certificate keys/server.pem; # yours": f"ssl_certificate {folder.keys}/server.pem;",
        "ssl_certificate_key keys/server.key; # yours": f"ssl_certificate_key {folder.keys}/server.key;",
        "access_log logs/fedward.log fedward; # yours": f"access_log {home}/logs/fedward.log fedward;",
        "proxy_ssl_trusted_certificate keys/ca.pem; # yours": f"proxy_ssl_trusted_certificate {folder.keys}/ca.pem;",
        "proxy_ssl_name fed.example.org; # yours": f"proxy_ssl_name {NAME};",
    }.items():
        assert ours in text, ours
        text = text.replace(ours, theirs)
    rest = [line for line in text.splitlines() if line.endswith("# yours")]
    assert not rest, rest
    return text


def write_nodes_map(folder: OperatorFolder, home: Path) -> None:
    (home / "nodes.map").write_text(nodes_map(folder.sites_folder))


def _main(home: Path) -> str:
    user = "user root;\n" if os.geteuid() == 0 else ""
    paths = "".join(
        f"{name}_temp_path {home}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"{user}daemon off;\nworker_processes 1;\npid {home}/pid;\n"
        f"events {{}}\nhttp {{\n{paths}include {home}/fedward.conf;\n}}\n"
    )


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(true: Callable[[], bool], process: subprocess.Popen[bytes], *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "it does not start"
        time.sleep(0.05)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
