"""A small HTTPS server that plays Flower's Fleet API, with faults on demand. For tests of the courier alone."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedward_client.courier.folder import CourierFile, CourierFolder

NODE = 7777777
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA and what it signs."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])
        built = _builder(name, name, key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(key=key, certificate=built.sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def serve(
        self, folder: Path, *, names: tuple[str, ...] = ("127.0.0.1",), age: datetime.timedelta = DAY * 0
    ) -> Path:
        """A file with certificate and key of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
        alternative = x509.SubjectAlternativeName([_general(name) for name in names])
        built = _builder(subject, self.certificate.subject, key.public_key(), age).add_extension(
            alternative, critical=False
        )
        pem = built.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = folder / f"server-{uuid.uuid4().hex}.pem"
        path.write_bytes(pem + key.private_bytes(*form))
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, age: datetime.timedelta = DAY * 0
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY - age)
        .not_valid_after(now + DAY * 30 - age)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


Answer = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]
Trouble = Callable[["Handler"], Answer | None]
"""Instead of an answer. None: it has spoiled the connection itself."""


@dataclass(kw_only=True)
class FleetApi:
    """What the server knows and has seen."""

    address: str = ""
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    troubles: dict[str, deque[Trouble]] = field(default_factory=dict)
    always: dict[str, Trouble] = field(default_factory=dict)
    waiting: deque[tuple[Any, Any]] = field(default_factory=deque)
    objects: dict[str, bytes] = field(default_factory=dict)
    pushed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    runtimes: list[float] = field(default_factory=list)
    node_known: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def trouble(self, route: str, *troubles: Trouble) -> None:
        """Spoil the next requests to a route."""
        self.troubles.setdefault(route, deque()).extend(troubles)

    def send(self, content: RecordDict, *, ttl: float = 60.0, run_id: int = 11, kind: str = "train") -> str:
        """Put a message into the node's queue; returns its id."""
        metadata = Metadata(
            run_id=run_id,
            message_id="",
            src_node_id=1,
            dst_node_id=NODE,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=ttl,
            message_type=kind,
            src_task_id=5,
            dst_task_id=None,
        )
        message = make_message(metadata=metadata, content=content)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.objects |= {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
            tree = get_object_tree(message)
        head = make_message(metadata=metadata, content=RecordDict())
        self.waiting.append((message_to_proto(head), tree))
        return message.metadata.message_id

    def replies(self) -> dict[str, Message]:
        """Whole replies, by the id of what they answer."""
        found = {}
        with self.lock:
            for proto, tree in self.pushed.values():
                names = [each.object_id for each in iterate_object_tree(tree)]
                if all(name in self.objects for name in names):
                    contents = {name: self.objects[name] for name in names}
                    inflated = inflate_object_from_contents(tree.object_id, contents)
                    assert isinstance(inflated, Message)
                    found[message_from_proto(proto).metadata.reply_to_message_id] = inflated
        return found

    def answer(self, route: str, body: bytes) -> Any:
        return getattr(self, "_" + route.replace("-", "_"))(body)

    def _activate_node(self, body: bytes) -> Any:
        fleet_pb2.ActivateNodeRequest.FromString(body)
        return fleet_pb2.ActivateNodeResponse(node_id=NODE)

    def _deactivate_node(self, body: bytes) -> Any:
        return fleet_pb2.DeactivateNodeResponse()

    def _send_node_heartbeat(self, body: bytes) -> Any:
        request = heartbeat_pb2.SendNodeHeartbeatRequest.FromString(body)
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=self.node_known and request.node.node_id == NODE)

    def _pull_messages(self, body: bytes) -> Any:
        if not self.waiting:
            return fleet_pb2.PullMessagesResponse()
        head, tree = self.waiting.popleft()
        return fleet_pb2.PullMessagesResponse(messages_list=[head], message_object_trees=[tree])

    def _pull_object(self, body: bytes) -> Any:
        request = message_pb2.PullObjectRequest.FromString(body)
        content = self.objects.get(request.object_id)
        return message_pb2.PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def _confirm_message_received(self, body: bytes) -> Any:
        request = message_pb2.ConfirmMessageReceivedRequest.FromString(body)
        self.confirmed.append(request.message_object_id)
        return message_pb2.ConfirmMessageReceivedResponse()

    def _push_messages(self, body: bytes) -> Any:
        request = fleet_pb2.PushMessagesRequest.FromString(body)
        head, tree = request.messages_list[0], request.message_object_trees[0]
        self.runtimes.extend(request.clientapp_runtime_list)
        self.pushed[head.metadata.reply_to_message_id] = (head, tree)
        missing = [each.object_id for each in iterate_object_tree(tree) if each.object_id not in self.objects]
        return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="s")

    def _push_object(self, body: bytes) -> Any:
        request = message_pb2.PushObjectRequest.FromString(body)
        self.objects[request.object_id] = request.object_content
        return message_pb2.PushObjectResponse(stored=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: else each answer waits 40 ms for Nagle
    api: FleetApi

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        route = self.path.removeprefix("/v1/fleet/")
        with self.api.lock:
            self.api.asked.append(route)
            self.api.headers.append({name.lower(): value for name, value in self.headers.items()})
            queue = self.api.troubles.get(route)
            trouble = queue.popleft() if queue else self.api.always.get(route)
        if trouble is not None:
            answer = trouble(self)
            if answer is None:
                self.close_connection = True
                return
            self.reply(*answer)
            return
        with self.api.lock:
            content = self.api.answer(route, body).SerializeToString()
        self.reply(200, content)

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = headers or {}
        self.send_response_only(status)
        if "date" not in headers:
            self.send_header("date", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    context: ssl.SSLContext


def status(code: int, body: bytes = b"no", headers: dict[str, str] | None = None) -> Trouble:
    """An answer with this status."""
    return lambda handler: (code, body, headers or {})


def cut(handler: Handler) -> None:
    """The connection is cut."""
    handler.connection.close()


def cut_in_the_answer(handler: Handler) -> None:
    """Half an answer, then the connection is cut."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    handler.wfile.flush()
    handler.connection.close()


@contextmanager
def serving(certificate: Path, *, oldest: ssl.TLSVersion | None = None, port: int = 0) -> Iterator[FleetApi]:
    """Run the server on a free port of the loopback."""
    api = FleetApi()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if oldest is not None:
        context.maximum_version = oldest
    server = _Quiet(("127.0.0.1", port), type("Bound", (Handler,), {"api": api}))
    server.context = context
    api.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def courier_folder(path: Path, server: str, ca_pem: bytes, **more: Any) -> CourierFolder:
    """A folder for a server."""
    keys = {"schema": 1, "name": "north", "server": server, "door": str(path / "d.sock"), **more}
    return CourierFolder.create(path / "courier", CourierFile.model_validate(keys), ca_pem=ca_pem)
