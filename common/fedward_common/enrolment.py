"""What a site sends to its operator, once, to be enrolled: two public keys and a name, signed by the trainer's key.

One two-sided object: the site writes it, the operator reads it, both show the same two fingerprints, and two people
compare them on another channel. The node key (ECDSA P-384, transport only) is the courier's; the signing key (Ed25519)
is the trainer's and signs the statement, so that nobody can pair a node of his own with another site's signing key.

Example:
    >>> from cryptography.hazmat.primitives.asymmetric import ec
    >>> signing, node = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    >>> text = Enrolment.sign("st-elsewhere", node=node.public_key(), signing=signing).to_text()
    >>> Enrolment.from_text(text).name
    'st-elsewhere'
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_common.codec import key_fingerprint
from fedward_common.errors import BadSignature, InputError

__all__ = ["Enrolment", "node_fingerprint"]

SCHEMA = 1
PURPOSE = b"fedward/enrolment/1\x00"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Enrolment:
    """A site's public keys under the name that it gave itself."""

    name: str
    node_key: ec.EllipticCurvePublicKey
    signing_key: Ed25519PublicKey
    signature: bytes

    @classmethod
    def sign(cls, name: str, *, node: ec.EllipticCurvePublicKey, signing: Ed25519PrivateKey) -> Self:
        """The statement of a site that holds ``signing``."""
        signature = signing.sign(_message(name, node, signing.public_key()))
        return cls(name=name, node_key=node, signing_key=signing.public_key(), signature=signature)

    @property
    def node_public_key(self) -> str:
        """The courier's key in OpenSSH's form."""
        return _ssh(self.node_key)

    @property
    def node_fingerprint(self) -> str:
        """Of the courier's key, as ``ssh-keygen -l`` shows it."""
        return node_fingerprint(self.node_key)

    @property
    def signing_fingerprint(self) -> str:
        """SHA-256 (hex) of the trainer's key: the name under which plans address the site."""
        return key_fingerprint(self.signing_key)

    def to_text(self) -> str:
        """The file's content: one JSON object."""
        content = _content(self.name, self.node_key, self.signing_key)
        return json.dumps({**content, "signature": self.signature.hex()}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read and verify.

        Raises:
          InputError: this is no enrolment, or of an unknown schema.
          BadSignature: the signing key did not sign it.
        """
        try:
            row = json.loads(text[:LONGEST])
            name = str(row["name"])
            if row["schema"] != SCHEMA or not NAME.fullmatch(name):
                raise ValueError("schema or name")
            node = serialization.load_ssh_public_key(row["node_key"].encode())
            signing = Ed25519PublicKey.from_public_bytes(bytes.fromhex(row["signing_key"]))
            signature = bytes.fromhex(row["signature"])
            if not isinstance(node, ec.EllipticCurvePublicKey):
                raise ValueError("node key")
        except (ValueError, KeyError, TypeError, AttributeError, UnsupportedAlgorithm):
            raise InputError(
                "this is no enrolment of a site", hint="give the NAME.pub that `fedward-client init --server` wrote"
            ) from None
        try:
            signing.verify(signature, _message(name, node, signing))
        except InvalidSignature:
            raise BadSignature(
                "the enrolment is not signed by its own signing key", hint="ask the site to send its file again"
            ) from None
        return cls(name=name, node_key=node, signing_key=signing, signature=signature)


def node_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """``SHA256:...``, as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(_ssh(key).split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _ssh(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _content(name: str, node: ec.EllipticCurvePublicKey, signing: Ed25519PublicKey) -> dict[str, object]:
    raw = signing.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"name": name, "node_key": _ssh(node), "schema": SCHEMA, "signing_key": raw.hex()}


def _message(name: str, node: ec.EllipticCurvePublicKey, signing: Ed25519PublicKey) -> bytes:
    return PURPOSE + json.dumps(_content(name, node, signing), sort_keys=True, separators=(",", ":")).encode()
