"""Our own canonical, versioned, signed bytes of a plan and of a reply. No Flower, no pickles.

    magic "FWRD" | version u16 | kind u8 | header length u32 | header | body length u64 | body | signature 64

Header: canonical JSON (sorted keys, no spaces, no NaN). Body: float32 tensors, little-endian, in the spec's order.
The Ed25519 signature covers the SHA-256 of everything before it, behind a prefix that names the kind, so that a plan
can never pass as an update and a large message is hashed once. Decoding accepts only bytes that encoding the result
would give again: one meaning, one spelling.

Example:
    >>> key = new_key()
    >>> reply = encode_reply(Refusal(plan_id="0" * 64, code=Code.EXPIRED), key=key)
    >>> decode_reply(reply, public_key=key.public_key()).code.value
    'expired'
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.checks import at_least, hex_digest
from fedward_common.errors import BadSignature, FedwardError, MalformedMessage, SpecMismatch
from fedward_common.privacy.guarantee import Guarantee
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import Code, Refusal, Reply, RoundPlan, Update

__all__ = [
    "VERSION",
    "decode_plan",
    "decode_reply",
    "encode_plan",
    "encode_reply",
    "key_fingerprint",
    "new_key",
]

MAGIC = b"FWRD"
VERSION = 1
_PREFIX = struct.Struct("<4sHBI")
_LENGTH = struct.Struct("<Q")
_SIGNATURE_BYTES = 64
_MAX_HEADER_BYTES = 4 * 2**20


class Kind(IntEnum):
    """What a message is."""

    PLAN = 1
    UPDATE = 2
    REFUSAL = 3


@dataclass(frozen=True, kw_only=True)
class _PlanHeader:
    plan: RoundPlan
    spec: AdapterSpec


@dataclass(frozen=True, kw_only=True)
class _UpdateHeader:
    plan_id: str
    spec_digest: str
    guarantee: Guarantee
    nominal_units: int
    metrics: MetricSums | None
    ledger_head: str

    def __post_init__(self) -> None:
        # what Update checks, but while decoding: a signed header out of range is malformed, never an InputError
        hex_digest("plan_id", self.plan_id)
        at_least("nominal_units", self.nominal_units, 1)


@dataclass(frozen=True, kw_only=True)
class _RefusalHeader:
    plan_id: str
    code: Code

    def __post_init__(self) -> None:
        hex_digest("plan_id", self.plan_id)


_HEADERS = {Kind.PLAN: _PlanHeader, Kind.UPDATE: _UpdateHeader, Kind.REFUSAL: _RefusalHeader}


def new_key() -> Ed25519PrivateKey:
    """A fresh Ed25519 signing key from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the raw public key, for people to compare."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def encode_plan(plan: RoundPlan, adapter: Adapter, *, key: Ed25519PrivateKey) -> bytes:
    """Sign a plan together with the adapter that it starts from.

    Raises:
      SpecMismatch: the plan announces another adapter.
    """
    _check_announced(plan, adapter)
    return _encode(Kind.PLAN, _PlanHeader(plan=plan, spec=adapter.spec), adapter.to_bytes(), key)


def decode_plan(data: bytes, *, public_key: Ed25519PublicKey) -> tuple[RoundPlan, Adapter]:
    """Verify, then read a plan and its adapter.

    Guarantees:
      - Nothing is parsed before the signature holds.
      - The adapter has the digests that the plan announces, and only finite numbers.

    Raises:
      BadSignature: not signed by the operator.
      MalformedMessage: not canonical bytes of version 1.
      SpecMismatch: spec or adapter differ from what the plan announces.
      NonFiniteUpdate: the adapter holds NaN or infinity.
    """
    _, header, body = _decode(data, public_key, {Kind.PLAN})
    adapter = Adapter.from_bytes(header.spec, body)
    adapter.check_finite()
    _check_announced(header.plan, adapter)
    return header.plan, adapter


def encode_reply(reply: Reply, *, key: Ed25519PrivateKey) -> bytes:
    """Sign an update or a refusal."""
    if isinstance(reply, Refusal):
        return _encode(Kind.REFUSAL, _RefusalHeader(plan_id=reply.plan_id, code=reply.code), b"", key)
    header = _UpdateHeader(
        plan_id=reply.plan_id,
        spec_digest=reply.delta.spec.digest,
        guarantee=reply.guarantee,
        nominal_units=reply.nominal_units,
        metrics=reply.metrics,
        ledger_head=reply.ledger_head,
    )
    return _encode(Kind.UPDATE, header, reply.delta.to_bytes(), key)


def decode_reply(data: bytes, *, public_key: Ed25519PublicKey, spec: AdapterSpec | None = None) -> Reply:
    """Verify, then read a site's reply.

    Args:
      data: the bytes received.
      public_key: the key that the site enrolled with.
      spec: the spec that an update must have; without it only a refusal can be read.

    Raises:
      BadSignature: not signed by that site.
      MalformedMessage: not canonical bytes of version 1.
      SpecMismatch: an update over other tensors.
    """
    kind, header, body = _decode(data, public_key, {Kind.UPDATE, Kind.REFUSAL})
    if kind is Kind.REFUSAL:
        if body:
            raise MalformedMessage("a refusal has a body", hint="both sides need the same version")
        return Refusal(plan_id=header.plan_id, code=header.code)
    if spec is None or header.spec_digest != spec.digest:
        raise SpecMismatch("the update is over other tensors than the plan asked for", hint="the site runs another run")
    return Update(
        plan_id=header.plan_id,
        delta=Adapter.from_bytes(spec, body),
        guarantee=header.guarantee,
        nominal_units=header.nominal_units,
        metrics=header.metrics,
        ledger_head=header.ledger_head,
    )


def _check_announced(plan: RoundPlan, adapter: Adapter) -> None:
    if plan.spec_digest != adapter.spec.digest or plan.adapter_digest != adapter.digest:
        raise SpecMismatch("the adapter is not the one that the plan announces", hint="prepare the run again")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


@cache
def _reader(kind: Kind) -> TypeAdapter[Any]:
    return TypeAdapter(_HEADERS[kind])


def _encode(kind: Kind, header: Any, body: bytes, key: Ed25519PrivateKey) -> bytes:
    text = _canonical(_reader(kind).dump_python(header, mode="json"))
    message = b"".join([_PREFIX.pack(MAGIC, VERSION, kind, len(text)), text, _LENGTH.pack(len(body)), body])
    return message + key.sign(_signed_over(kind, message))


def _signed_over(kind: int, message: bytes | memoryview) -> bytes:
    return b"fedward/%d/%d\x00" % (VERSION, kind) + hashlib.sha256(message).digest()


def _decode(data: bytes, public_key: Ed25519PublicKey, expected: set[Kind]) -> tuple[Kind, Any, bytes]:
    kind = _verify(data, public_key, expected)
    text, body = _split(data)
    try:
        header = _reader(kind).validate_json(text, strict=True)  # unknown keys die in the comparison below
        same = _canonical(_reader(kind).dump_python(header, mode="json")) == text
    except (ValidationError, ValueError, FedwardError) as error:
        if isinstance(error, SpecMismatch):
            raise
        raise MalformedMessage("a message header is not valid", hint="both sides need the same version") from None
    if not same:
        raise MalformedMessage("a message header is not in canonical form", hint="both sides need the same version")
    return kind, header, body


def _verify(data: bytes, public_key: Ed25519PublicKey, expected: set[Kind]) -> Kind:
    if len(data) < _PREFIX.size + _LENGTH.size + _SIGNATURE_BYTES:
        raise MalformedMessage("a message is too short", hint="it was cut off, or comes from another program")
    magic, version, kind, _ = _PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION or kind not in {int(k) for k in expected}:
        raise MalformedMessage(
            "a message is of another kind or version", hint=f"this side reads version {VERSION}; update the other side"
        )
    try:
        public_key.verify(data[-_SIGNATURE_BYTES:], _signed_over(kind, memoryview(data)[:-_SIGNATURE_BYTES]))
    except InvalidSignature:
        raise BadSignature("a signature does not hold", hint="compare key fingerprints with the other side") from None
    return Kind(kind)


def _split(data: bytes) -> tuple[bytes, bytes]:
    header_bytes = _PREFIX.unpack_from(data)[3]
    start = _PREFIX.size + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or start + _LENGTH.size + _SIGNATURE_BYTES > len(data):
        raise MalformedMessage("a message header has the wrong length", hint="it was cut off on the way")
    (body_bytes,) = _LENGTH.unpack_from(data, start)
    body_start = start + _LENGTH.size
    if body_start + body_bytes + _SIGNATURE_BYTES != len(data):
        raise MalformedMessage("a message body has the wrong length", hint="it was cut off on the way")
    return data[_PREFIX.size : start], data[body_start : body_start + body_bytes]
