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
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

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
    "PlanParts",
    "PlanWriter",
    "decode_plan",
    "decode_reply",
    "encode_plan",
    "encode_reply",
    "is_plan",
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
_RECEIVED: WeakValueDictionary[bytes, Adapter] = WeakValueDictionary()  # by the SHA-256 of their bytes


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
        if self.ledger_head:
            hex_digest("ledger_head", self.ledger_head)


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


class PlanParts(NamedTuple):
    """The bytes of a signed plan, cut where the layout cuts them; one after the other they are the message.

    Heads and signatures differ from site to site. The body is the adapter, the same object for all sites of a round.
    """

    head: bytes
    body: bytes
    signature: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole message."""
        return sum(len(part) for part in self)

    def joined(self) -> bytes:
        """The message in one piece.

        Raises:
          MalformedMessage: the parts are no plan's, or cut elsewhere: a message has one spelling in parts, too.
        """
        whole = b"".join(self)
        if not is_plan(whole) or _split(whole, {Kind.PLAN})[2] != len(self.head):
            raise MalformedMessage("the parts of a plan are cut in other places", hint="both sides need one version")
        if len(self.signature) != _SIGNATURE_BYTES:
            raise MalformedMessage("the parts of a plan are cut in other places", hint="both sides need one version")
        return whole


class PlanWriter:
    """Signs the plans of one round, which differ in their addressees alone.

    Guarantees:
      - The adapter's bytes exist once, whatever the number of plans.
      - The parts joined are what ``encode_plan`` gives.
    """

    def __init__(self, adapter: Adapter, *, key: Ed25519PrivateKey) -> None:
        """Lay out what all plans share: the body, and the spec in the header."""
        self._adapter, self._key = adapter, key
        self._body = adapter.to_bytes()
        self._spec = _canonical(TypeAdapter(AdapterSpec).dump_python(adapter.spec, mode="json"))

    def parts(self, plan: RoundPlan) -> PlanParts:
        """Sign one plan.

        Raises:
          SpecMismatch: the plan announces another adapter.
        """
        _check_announced(plan, self._adapter)
        # canonical JSON of a table is made of its values' canonical JSON, so the spec is written once a round
        text = b'{"plan":' + _canonical(_plan_writer().dump_python(plan, mode="json")) + b',"spec":' + self._spec + b"}"
        head = _head(Kind.PLAN, text, len(self._body))
        signature = self._key.sign(_signed_over(Kind.PLAN, head, self._adapter.body_digest))
        return PlanParts(head=head, body=self._body, signature=signature)


def is_plan(data: bytes) -> bool:
    """Whether bytes begin as a plan of this version does; nothing is believed of the rest."""
    return data[: _PREFIX.size - 4] == _PREFIX.pack(MAGIC, VERSION, Kind.PLAN, 0)[:-4]


def encode_plan(plan: RoundPlan, adapter: Adapter, *, key: Ed25519PrivateKey) -> bytes:
    """Sign a plan together with the adapter that it starts from.

    Raises:
      SpecMismatch: the plan announces another adapter.
    """
    return b"".join(PlanWriter(adapter, key=key).parts(plan))


def decode_plan(data: bytes, *, public_key: Ed25519PublicKey) -> tuple[RoundPlan, Adapter]:
    """Verify, then read a plan and its adapter.

    Guarantees:
      - Nothing is parsed before the signature holds.
      - The adapter has the digests that the plan announces, and only finite numbers.
      - Plans that bring the same adapter give one object, while anybody holds it.

    Raises:
      BadSignature: not signed by the operator.
      MalformedMessage: not canonical bytes of this version.
      SpecMismatch: spec or adapter differ from what the plan announces.
      NonFiniteUpdate: the adapter holds NaN or infinity.
    """
    _, header, body, body_digest = _decode(data, public_key, {Kind.PLAN})
    adapter = _received(header.spec, body, body_digest)
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

    Guarantees:
      - An update's numbers stay where they lie, in ``data``: reading one takes no memory that grows with it.

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
        # no copy: the coordinator folds the numbers out of the message that they came in
        delta=Adapter.view(spec, body, body_digest=body_digest),
        guarantee=header.guarantee,
        nominal_units=header.nominal_units,
        metrics=header.metrics,
        ledger_head=header.ledger_head,
    )


def _received(spec: AdapterSpec, body: memoryview, body_digest: bytes) -> Adapter:
    found = _RECEIVED.get(body_digest)
    if found is None or found.spec != spec:
        found = _RECEIVED[body_digest] = Adapter.from_bytes(spec, body, body_digest=body_digest)
    return found


def _check_announced(plan: RoundPlan, adapter: Adapter) -> None:
    if plan.spec_digest != adapter.spec.digest or plan.adapter_digest != adapter.digest:
        raise SpecMismatch("the adapter is not the one that the plan announces", hint="prepare the run again")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


@cache
def _plan_writer() -> TypeAdapter[RoundPlan]:
    return TypeAdapter(RoundPlan)


@cache
def _reader(kind: Kind) -> TypeAdapter[Any]:
    return TypeAdapter(_HEADERS[kind])


def _encode(kind: Kind, header: Any, adapter: Adapter | None, key: Ed25519PrivateKey) -> bytes:
    text = _canonical(_reader(kind).dump_python(header, mode="json"))
    body, body_digest = (adapter.to_bytes(), adapter.body_digest) if adapter else (b"", _EMPTY)
    head = _head(kind, text, len(body))
    return b"".join([head, body, key.sign(_signed_over(kind, head, body_digest))])


def _head(kind: Kind, text: bytes, body_bytes: int) -> bytes:
    return b"".join([_PREFIX.pack(MAGIC, VERSION, kind, len(text)), text, _LENGTH.pack(body_bytes)])


def _signed_over(kind: int, head: bytes | memoryview, body_digest: bytes) -> bytes:
    return b"fedward/%d/%d\x00" % (VERSION, kind) + hashlib.sha256(head).digest() + body_digest


def _decode(data: bytes, public_key: Ed25519PublicKey, expected: set[Kind]) -> tuple[Kind, Any, memoryview, bytes]:
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
