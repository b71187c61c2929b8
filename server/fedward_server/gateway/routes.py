"""What the gateway passes, and what it says about everything else. Pure: a request's head in, a verdict out.

The table is exact: a method and a path as they stand in the request line, byte by byte. Nothing is decoded, merged or
completed, so there is no second spelling of a path that the SuperLink might understand.

Example:
    >>> verdict("GET", b"/v1/control/list-runs"), verdict("POST", b"/v1/fleet/pull-messages")
    (404, 'pull-messages')
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import h11

from fedward_server.gateway.roll import KEY, SIGNATURE, TIME

__all__ = [
    "HEALTH",
    "OBJECT",
    "REPLY",
    "ROUTES",
    "Headers",
    "allowed",
    "down",
    "head_size",
    "kept",
    "malformed",
    "up",
    "verdict",
]

Headers = list[tuple[bytes, bytes]]

HEALTH = "health"
REPLY, OBJECT = "push-messages", "push-object"
NAMES = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    REPLY,
    "pull-object",
    OBJECT,
    "confirm-message-received",
)
ROUTES = MappingProxyType({b"/v1/fleet/" + name.encode(): name for name in NAMES})
HEALTH_PATH = b"/health"

ASKED = frozenset({KEY, SIGNATURE, TIME, b"content-type", b"accept", b"flwr-package-name", b"flwr-package-version"}) | {
    b"flwr-component-name"
}
ANSWERED = frozenset({b"content-type", b"date", b"retry-after", b"flwr-version-incompatibility-message"})
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
LONGEST_LENGTH = 15  # digits


def verdict(method: str, target: bytes) -> int | str:
    """The name of a route, or the status that refuses the request."""
    if target == HEALTH_PATH:
        return HEALTH if method == "GET" else 405
    if target not in ROUTES:
        return 404
    return ROUTES[target] if method == "POST" else 405


def allowed(target: bytes) -> tuple[bytes, bytes]:
    """The header of a 405."""
    return b"allow", b"GET" if target == HEALTH_PATH else b"POST"


def head_size(request: h11.Request) -> int:
    """Bytes of a head; h11 limits only one that came in pieces."""
    return len(request.target) + sum(len(name) + len(value) for name, value in request.headers)


def malformed(request: h11.Request) -> bool:
    """Whether a request could mean two things to two readers."""
    names = [name for name, _ in request.headers]
    framing = [(name, value) for name, value in request.headers if name in FRAMING]
    single = all(names.count(name) <= 1 for name in ASKED | {b"host"})
    return (
        request.http_version != b"1.1"
        or b"upgrade" in names
        or not single
        or len([name for name in names if name in FRAMING]) > 1
        or any(not _plain(name, value) for name, value in framing)
    )


def _plain(name: bytes, value: bytes) -> bool:
    if name == b"transfer-encoding":
        return value.lower() == b"chunked"
    return value.isdigit() and len(value) <= LONGEST_LENGTH


def kept(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> Headers:
    """Those of these names."""
    return [(name, value) for name, value in headers if name in names]


def up(request: h11.Request, authority: bytes) -> h11.Request:
    """The request as the SuperLink gets it: written anew, from the few headers that nodes need."""
    headers = [(b"host", authority), *kept(request.headers, ASKED | FRAMING)]
    return h11.Request(method=b"POST", target=request.target, headers=headers)


def down(answer: h11.Response) -> h11.Response:
    """The SuperLink's answer as the node gets it."""
    length = kept(answer.headers, frozenset({b"content-length"}))  # without one h11 sends chunks
    return h11.Response(status_code=answer.status_code, headers=[*kept(answer.headers, ANSWERED), *length])
