"""Messages written by hand, in the documented layout and without the codec, so that wrong ones can be signed rightly.

Example:
    kind, header, body = taken_apart(data)
    put_together(kind, header.replace(b"{", b"{ ", 1), body)
"""

from __future__ import annotations

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.nouns import KEY

PLAN, UPDATE, REFUSAL = 1, 2, 3


def taken_apart(data: bytes) -> tuple[int, bytes, bytes]:
    """Kind, header and body of a well-formed message."""
    magic, version, kind, length = struct.unpack_from("<4sHBI", data)
    assert (magic, version) == (b"FWRD", 2)
    start = 11 + length
    (body,) = struct.unpack_from("<Q", data, start)
    assert len(data) == start + 8 + body + 64
    return kind, data[11:start], data[start + 8 : start + 8 + body]


def put_together(
    kind: int,
    header: bytes,
    body: bytes,
    *,
    key: Ed25519PrivateKey = KEY,
    header_length: int | None = None,
    body_length: int | None = None,
) -> bytes:
    """A rightly signed message of these parts, with lengths that may lie."""
    lengths = (
        len(header) if header_length is None else header_length,
        len(body) if body_length is None else body_length,
    )
    prefix = struct.pack("<4sHBI", b"FWRD", 2, kind, lengths[0])
    return signed(kind, prefix + header + struct.pack("<Q", lengths[1]), body, key=key)


def signed(kind: int, head: bytes, body: bytes = b"", *, key: Ed25519PrivateKey = KEY) -> bytes:
    """Any bytes with the signature that a message of this kind would bear."""
    digests = hashlib.sha256(head).digest() + hashlib.sha256(body).digest()
    return head + body + key.sign(b"fedward/2/%d\x00" % kind + digests)
