"""Who may pass the gateway: the node keys of DIR/sites/*.pub, and proof that a request was made with one of them.

Flower's client sends its public key and its signature over a time stamp (not over the body) with each request; the
SuperLink checks both again. Here an unknown key costs one look into a table. Knows nothing of sockets or routes.
"""

from __future__ import annotations

import base64
import binascii
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_common.enrolment import Enrolment
from fedward_common.errors import FedwardError

__all__ = ["KEY", "SIGNATURE", "TIME", "Node", "Roll", "Stranger", "key_header", "nodes_map"]

KEY, SIGNATURE, TIME = b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"
OLDEST_S, NEWEST_S = 305.0, -5.0  # as the SuperLink's own window
SETTLED_S = 1.0  # a folder that changed more recently may change again within one tick of its time stamp

LOG = logging.getLogger(__name__)


class Stranger(StrEnum):
    """Why a request is nobody's."""

    NO_KEY = "no_key"  # no node headers
    UNKNOWN = "not_enrolled"  # a key that is not, or no longer, in DIR/sites
    UNSIGNED = "bad_signature"  # not made by the holder of the key
    CLOCK = "clock"  # signed too long ago, or in the future


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An enrolled site's courier."""

    name: str
    key: ec.EllipticCurvePublicKey


class Roll:
    """The enrolled keys, read again whenever the folder changes.

    Guarantees:
      - A key whose file has left the folder is a stranger at its next request.
      - A file that cannot be read admits nobody.
    """

    def __init__(self, folder: Path, *, wall: Callable[[], datetime] | None = None) -> None:
        """Nothing is read before the first request."""
        self._folder = folder
        self._wall = wall or (lambda: datetime.now(UTC))
        self._stamp: int | None = None
        self._nodes: dict[bytes, Node] = {}

    def find(self, headers: Mapping[bytes, bytes]) -> Node | Stranger:
        """Whose request this is; header names in lower case."""
        if not {KEY, SIGNATURE, TIME} <= headers.keys():
            return Stranger.NO_KEY
        node = self.nodes().get(headers[KEY])
        if node is None:
            return Stranger.UNKNOWN
        if not _signed(node.key, headers[SIGNATURE], headers[TIME]):
            return Stranger.UNSIGNED
        return node if self._fresh(headers[TIME]) else Stranger.CLOCK

    def nodes(self) -> Mapping[bytes, Node]:
        """By the value of their key's header."""
        try:
            stamp = self._folder.stat().st_mtime_ns
        except OSError:
            self._nodes, self._stamp = {}, None
            return self._nodes
        if stamp != self._stamp:
            self._nodes = _read(self._folder)
            settled = self._wall().timestamp() - stamp / 1e9 > SETTLED_S
            self._stamp = stamp if settled else None
        return self._nodes

    def _fresh(self, stamp: bytes) -> bool:
        try:
            age = (self._wall() - datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
        except (ValueError, TypeError):
            return False
        return NEWEST_S < age < OLDEST_S


def key_header(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as Flower's client sends it: base64 of its PEM."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem)


def _signed(key: ec.EllipticCurvePublicKey, signature: bytes, stamp: bytes) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), stamp, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _read(folder: Path) -> dict[bytes, Node]:
    nodes: dict[bytes, Node] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            enrolment = Enrolment.from_text(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, FedwardError):
            LOG.warning("%s cannot be read, so it admits nobody", path.name)
            continue
        nodes[key_header(enrolment.node_key)] = Node(name=path.stem, key=enrolment.node_key)
    return nodes


def nodes_map(folder: Path) -> str:
    """The enrolled keys as a map of nginx, for docs/nginx/fedward.conf."""
    return "".join(f'"{key.decode("ascii")}" "{node.name}";\n' for key, node in sorted(_read(folder).items()))


if __name__ == "__main__":
    sys.stdout.write(nodes_map(Path(sys.argv[1])))
