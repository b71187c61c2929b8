"""One table of requests for both public doors: what is sent, byte by byte, and what may come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict

from support.fronting import FLEET, NAME, Front, Site, StandIn, answer_of, request_bytes

PULL, PUSH, OBJECT = "/v1/fleet/pull-messages", "/v1/fleet/push-messages", "/v1/fleet/push-object"
KIB = 1 << 10
REFUSED = frozenset({0, 400, 404, 405, 501, 505})


@dataclass(frozen=True)
class Case:
    """``send`` is one request, or several in one go; none may reach the SuperLink unless it stands in ``reaches``."""

    name: str
    send: Callable[[Site], bytes]
    statuses: frozenset[int]
    reaches: tuple[str, ...] = ()
    body: bytes = b"body"


def reply(size: int = 0) -> bytes:
    """What a courier pushes first; of at least this size."""
    told = Metadata(run_id=5, message_id="1" * 64, src_node_id=7, dst_node_id=1, reply_to_message_id="2" * 64)
    told.group_id = "x" * size
    tree = ObjectTree(object_id="1" * 64, children=[ObjectTree(object_id="3" * 64)])
    message = Message(metadata=told, content=RecordDict())
    push = PushMessagesRequest(
        node=Node(node_id=7), messages_list=[message], message_object_trees=[tree], clientapp_runtime_list=[0.0]
    )
    return bytes(push.SerializeToString())


def body_for(path: str) -> bytes:
    return reply() if path == PUSH else b"body"


def sized(path: str, body: bytes, *statuses: int) -> Case:
    reaches = (f"POST {path}",) if 200 in statuses else ()
    size = f"{len(body) >> 10} KiB and {len(body) % KIB}" if len(body) >= KIB else len(body)
    return Case(
        f"{size} bytes to {path}",
        lambda site: request_bytes(path, site.headers(), body),
        frozenset(statuses),
        reaches,
        body,
    )


def case(name: str, send: Callable[[Site], bytes], *statuses: int, reaches: tuple[str, ...] = ()) -> Case:
    return Case(name, send, frozenset(statuses), reaches)


def line(path: str, *, method: str = "POST", version: str = "1.1", **headers: str) -> Callable[[Site], bytes]:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda site: request_bytes(path, site.headers() | extra, b"body", method=method, version=version)


def plus(path: str, *lines: str, body: bytes = b"body") -> Callable[[Site], bytes]:
    """A request with lines of the head as they are, and without a length of its own."""

    def send(site: Site) -> bytes:
        head, _, _ = request_bytes(path, site.headers() | {"content-length": ""}).partition(b"\r\n\r\n")
        return b"\r\n".join([head, *(text.encode() for text in lines), b"", body])

    return send


SPELLINGS = {
    "encoded letter": "/v1/fleet/%70ull-messages",
    "encoded slash": "/v1/fleet%2fpull-messages",
    "double slash": "/v1//fleet/pull-messages",
    "leading double slash": "//v1/fleet/pull-messages",
    "dot segment": "/v1/./fleet/pull-messages",
    "dots to a neighbour": "/v1/fleet/../control/list-runs",
    "dots into a route": "/v1/control/../fleet/pull-messages",
    "encoded dots": "/v1/fleet/pull-messages/%2e%2e/get-run",
    "trailing slash": "/v1/fleet/pull-messages/",
    "trailing dot": "/v1/fleet/pull-messages/.",
    "upper case": "/V1/FLEET/PULL-MESSAGES",
    "one upper case letter": "/v1/fleet/Pull-messages",
    "query": "/v1/fleet/pull-messages?x=1",
    "empty query": "/v1/fleet/pull-messages?",
    "fragment": "/v1/fleet/pull-messages#x",
    "semicolon": "/v1/fleet/pull-messages;x",
    "backslash": "/v1/fleet\\pull-messages",
    "no slash": "v1/fleet/pull-messages",
    "asterisk": "*",
    "absolute form": f"https://{NAME}/v1/fleet/pull-messages",
    "absolute form of another": "http://127.0.0.1/v1/control/list-runs",
    "authority form": f"{NAME}:443",
    "null": "/v1/fleet/pull-messages%00",
    "new line": "/v1/fleet/pull-messages%0d%0a",
}
OTHERS = (
    *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-run", "/v1/fleet/get-fab"),
    *("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/", "/docs", "/openapi.json"),
)
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "PROPFIND")
CHUNKED = b"4\r\nbody\r\n0\r\n\r\n"
SMUGGLED = b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
REACHES = (f"POST {PULL}",)

CASES: tuple[Case, ...] = (
    *(sized(path, body_for(path), 200) for path in FLEET),
    *(sized(path, bytes(64 * KIB), 200) for path in FLEET if path != PUSH),
    *(sized(path, bytes(64 * KIB + 1), 413) for path in FLEET if path != OBJECT),
    sized(OBJECT, bytes(5000 * KIB), 200),
    sized(PUSH, reply(7 * KIB), 200),
    sized(PUSH, reply(8 * KIB), 413),
    *(Case(f"spelling: {name}", line(path), REFUSED) for name, path in SPELLINGS.items()),
    *(case(f"other: {path}", line(path), 404) for path in OTHERS),
    *(Case(f"method {method}", line(PULL, method=method), REFUSED) for method in METHODS),
    Case("connect", line(f"{NAME}:443", method="CONNECT"), REFUSED),
    Case("connect to a route", line(PULL, method="CONNECT"), REFUSED),
    Case("HTTP/1.0", line(PULL, version="1.0"), REFUSED),
    Case("HTTP/2 preface", lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    Case("no HTTP", lambda _: b"\x16\x03\x01\x00\xa5 hello\r\n\r\n", REFUSED),
    Case("websocket", line(PULL, connection="upgrade", upgrade="websocket"), REFUSED),
    Case("websocket by GET", line(PULL, method="GET", connection="upgrade", upgrade="websocket"), REFUSED),
    Case("h2c", line(PULL, connection="upgrade, http2-settings", upgrade="h2c"), REFUSED),
    case("another host", line(PULL, host="127.0.0.1:8000"), 200, reaches=REACHES),
    case("a host with a path", line("/v1/control/list-runs", host=f"{NAME}/v1/fleet"), 404, 400),
    Case("no host", line(PULL, host=""), REFUSED),
    Case("two hosts", plus(PULL, "Host: other", "Content-Length: 4"), REFUSED),
    case("forwarded headers", line(PULL, x_original_url="/docs", x_http_method_override="GET"), 200, reaches=REACHES),
    case("chunked", plus(PULL, "Transfer-Encoding: chunked", body=CHUNKED), 200, reaches=REACHES),
    Case("length and chunked", plus(PULL, "Content-Length: 4", "Transfer-Encoding: chunked", body=CHUNKED), REFUSED),
    Case("chunked and length", plus(PULL, "Transfer-Encoding: chunked", "Content-Length: 4", body=CHUNKED), REFUSED),
    Case("two lengths", plus(PULL, "Content-Length: 4", "Content-Length: 5"), REFUSED),
    # the same length said twice means one thing (RFC 9110, 8.6); it may pass, written once
    Case("a list of one length", plus(PULL, "Content-Length: 4, 4"), REFUSED | {200}, REACHES),
    Case("one length twice", plus(PULL, "Content-Length: 4", "Content-Length: 4"), REFUSED | {200}, REACHES),
    Case("a list of two lengths", plus(PULL, "Content-Length: 4, 5"), REFUSED),
    Case("a signed length", plus(PULL, "Content-Length: +4"), REFUSED),
    Case("a negative length", plus(PULL, "Content-Length: -1"), REFUSED),
    Case("a huge length", plus(PULL, f"Content-Length: {'9' * 30}"), REFUSED | {413}),
    Case("chunked twice", plus(PULL, "Transfer-Encoding: chunked, chunked", body=CHUNKED), REFUSED | {503}),
    Case("chunked and identity", plus(PULL, "Transfer-Encoding: identity, chunked", body=CHUNKED), REFUSED | {503}),
    Case("another coding", plus(PULL, "Transfer-Encoding: gzip", body=CHUNKED), REFUSED | {503}),
    Case("space before a colon", plus(PULL, "Transfer-Encoding : chunked", "Content-Length: 4"), REFUSED),
    Case("a broken chunk", plus(PULL, "Transfer-Encoding: chunked", body=b"zz\r\nbody\r\n0\r\n\r\n"), REFUSED, REACHES),
    Case("a head too large", line(PULL, x_padding="x" * 40_000), frozenset({0, 400, 431, 494})),
    Case("a head somewhat too large", line(PULL, x_padding="x" * 17_000), frozenset({0, 400, 431, 494})),
    case("GET health with a path", line("/health/", method="GET"), 404),
    case("POST health", line("/health"), 405),
    case("HEAD health", line("/health", method="HEAD"), 405),
    case("a body declared too large", plus(PULL, f"Content-Length: {400 << 20}", body=b"x" * 1000), 413),
    case("nobody", lambda _: request_bytes(PULL, {}, b"body"), 403),
    case("a stranger", lambda _: request_bytes(PULL, Site.stranger().headers(), b"body"), 403),
    case("a key alone", lambda site: request_bytes(PULL, _without(site.headers(), "flwr-public-key"), b"body"), 403),
    case("a stranger asks for control", lambda _: request_bytes("/v1/control/list-runs", {}, b""), 404),
)


def _without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


def check(case: Case, front: Front, upstream: StandIn, site: Site) -> None:
    """Send it, followed by a request that must never be understood as one of its own if it was refused."""
    upstream.reset()
    method = "HEAD" if "HEAD" in case.name else "POST"
    status, body, headers = front.ask(case.send(site), method=method)
    assert status in case.statuses, (status, body)
    assert set(upstream.paths) <= set(case.reaches), upstream.paths
    if status == 200:
        assert upstream.paths == list(case.reaches)
        assert upstream.heard[-1].body == case.body
    assert "x-powered-by" not in headers


def check_smuggling(front: Front, upstream: StandIn, site: Site) -> None:
    """What is hidden in a body stays a body, and what follows a request is judged for itself."""
    upstream.reset()
    hidden = request_bytes(PULL, site.headers(), SMUGGLED) + SMUGGLED
    with front.connect() as connection:
        assert answer_of(connection, hidden)[0] == 200
    assert upstream.paths == list(REACHES)
    assert upstream.heard[0].body == SMUGGLED
