"""Our own canonical, versioned, signed bytes of a plan and of a reply. No Flower, no pickles.

    magic "FWRD" | version u16 | kind u8 | header length u32 | header | body length u64 | body | signature 64

Header: canonical JSON (sorted keys, no spaces, no NaN). Body: float32 tensors, little-endian, in the spec's order.
The Ed25519 signature covers the SHA-256 of everything before the body and that of the body, behind a prefix that names
the kind, so that a plan can never pass as an update and a body is hashed once, however many sites it goes to. Decoding
accepts only bytes that encoding the result would give again: one meaning, one spelling.

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
VERSION = 2
_PREFIX = struct.Struct("<4sHBI")
_LENGTH = struct.Struct("<Q")
_SIGNATURE_BYTES = 64
_MAX_HEADER_BYTES = 4 * 2**20
_EMPTY = hashlib.sha256(b"").digest()


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
    return _encode(Kind.PLAN, _PlanHeader(plan=plan, spec=adapter.spec), adapter, key)


def decode_plan(data: bytes, *, public_key: Ed25519PublicKey) -> tuple[RoundPlan, Adapter]:
    """Verify, then read a plan and its adapter.

    Guarantees:
      - Nothing is parsed before the signature holds.
      - The adapter has the digests that the plan announces, and only finite numbers.

    Raises:
      BadSignature: not signed by the operator.
      MalformedMessage: not canonical bytes of this version.
      SpecMismatch: spec or adapter differ from what the plan announces.
      NonFiniteUpdate: the adapter holds NaN or infinity.
    """
    _, header, body, body_digest = _decode(data, public_key, {Kind.PLAN})
    adapter = Adapter.from_bytes(header.spec, body, body_digest=body_digest)
    adapter.check_finite()
    _check_announced(header.plan, adapter)
    return header.plan, adapter


def encode_reply(reply: Reply, *, key: Ed25519PrivateKey) -> bytes:
    """Sign an update or a refusal."""
    if isinstance(reply, Refusal):
        return _encode(Kind.REFUSAL, _RefusalHeader(plan_id=reply.plan_id, code=reply.code), None, key)
    header = _UpdateHeader(
        plan_id=reply.plan_id,
        spec_digest=reply.delta.spec.digest,
        guarantee=reply.guarantee,
        nominal_units=reply.nominal_units,
        metrics=reply.metrics,
        ledger_head=reply.ledger_head,
    )
    return _encode(Kind.UPDATE, header, reply.delta, key)


def decode_reply(data: bytes, *, public_key: Ed25519PublicKey, spec: AdapterSpec | None = None) -> Reply:
    """Verify, then read a site's reply.

    Args:
      data: the bytes received.
      public_key: the key that the site enrolled with.
      spec: the spec that an update must have; without it only a refusal can be read.

    Raises:
      BadSignature: not signed by that site.
      MalformedMessage: not canonical bytes of this version.
      SpecMismatch: an update over other tensors.
    """
    kind, header, body, body_digest = _decode(data, public_key, {Kind.UPDATE, Kind.REFUSAL})
    if kind is Kind.REFUSAL:
        if len(body):
            raise MalformedMessage("a refusal has a body", hint="both sides need the same version")
        return Refusal(plan_id=header.plan_id, code=header.code)
    if spec is None or header.spec_digest != spec.digest:
        raise SpecMismatch("the update is over other tensors than the plan asked for", hint="the site runs another run")
    return Update(
        plan_id=header.plan_id,
        delta=Adapter.from_bytes(spec, body, body_digest=body_digest),
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


def _encode(kind: Kind, header: Any, adapter: Adapter | None, key: Ed25519PrivateKey) -> bytes:
    text = _canonical(_reader(kind).dump_python(header, mode="json"))
    body, body_digest = (adapter.to_bytes(), adapter.body_digest) if adapter else (b"", _EMPTY)
    head = b"".join([_PREFIX.pack(MAGIC, VERSION, kind, len(text)), text, _LENGTH.pack(len(body))])
    return b"".join([head, body, key.sign(_signed_over(kind, head, body_digest))])


def _signed_over(kind: int, head: bytes | memoryview, body_digest: bytes) -> bytes:
    return b"fedward/%d/%d\x00" % (VERSION, kind) + hashlib.sha256(head).digest() + body_digest


def _decode(
    data: bytes, public_key: Ed25519PublicKey, expected: set[Kind]
) -> tuple[Kind, Any, bytes | memoryview, bytes]:
    kind, start, body_start = _split(data, expected)
    body = memoryview(data)[body_start:-_SIGNATURE_BYTES]
    body_digest = hashlib.sha256(body).digest()
    try:
        signed = _signed_over(kind, memoryview(data)[:body_start], body_digest)
        public_key.verify(data[-_SIGNATURE_BYTES:], signed)
    except InvalidSignature:
        raise BadSignature("a signature does not hold", hint="compare key fingerprints with the other side") from None
    return kind, _header(kind, data[_PREFIX.size : start]), body, body_digest


def _header(kind: Kind, text: bytes) -> Any:
    try:
        header = _reader(kind).validate_json(text, strict=True)  # unknown keys die in the comparison below
        same = _canonical(_reader(kind).dump_python(header, mode="json")) == text
    except (ValidationError, ValueError, FedwardError) as error:
        if isinstance(error, SpecMismatch):
            raise
        raise MalformedMessage("a message header is not valid", hint="both sides need the same version") from None
    if not same:
        raise MalformedMessage("a message header is not in canonical form", hint="both sides need the same version")
    return header


def _split(data: bytes, expected: set[Kind]) -> tuple[Kind, int, int]:
    # arithmetic alone: where header and body end, from the fixed-size fields; nothing in them is read or believed yet
    if len(data) < _PREFIX.size + _LENGTH.size + _SIGNATURE_BYTES:
        raise MalformedMessage("a message is too short", hint="it was cut off, or comes from another program")
    magic, version, kind, header_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC or version != VERSION or kind not in {int(k) for k in expected}:
        raise MalformedMessage(
            "a message is of another kind or version", hint=f"this side reads version {VERSION}; update the other side"
        )
    start = _PREFIX.size + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or start + _LENGTH.size + _SIGNATURE_BYTES > len(data):
        raise MalformedMessage("a message header has the wrong length", hint="it was cut off on the way")
    (body_bytes,) = _LENGTH.unpack_from(data, start)
    body_start = start + _LENGTH.size
    if body_start + body_bytes + _SIGNATURE_BYTES != len(data):
        raise MalformedMessage("a message body has the wrong length", hint="it was cut off on the way")
    return Kind(kind), start, body_start
