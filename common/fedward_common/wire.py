"""Packs our bytes into Flower's records and back. Besides this module only ``sealed`` imports Flower in common.

Flower sees opaque byte strings. What they mean, and whether they are to be believed, is the codec's business.

A reply is one byte string. A plan comes in the codec's three parts, and its body has a record of its own: the plans of
a round share it, so the coordinator holds it once, and a SuperLink, which stores records by their content, too. Whoever
knows a record's content knows its name there and could take the name first; where sites are strangers to each other the
body is therefore sent ``salted``. The salt means nothing to anybody.

Example:
    >>> unpack(pack(b"signed bytes"))
    b'signed bytes'
"""

from __future__ import annotations

import secrets

from flwr.app import ConfigRecord, RecordDict

from fedward_common.codec import PlanParts, is_plan
from fedward_common.errors import MalformedMessage
from fedward_common.sealed import value_start

__all__ = ["body_of", "message_start", "pack", "reply_record", "salted", "unpack", "with_body"]

_RECORD, _BODY, _KEY, _SALT = "fedward", "fedward.body", "message", "salt"
_SALT_BYTES = 16


def pack(message: bytes | PlanParts) -> RecordDict:
    """A reply's bytes, or a plan's parts, as the content of a Flower message."""
    if isinstance(message, PlanParts):
        edges = ConfigRecord({_KEY: [message.head, message.signature]})
        return RecordDict({_RECORD: edges, _BODY: ConfigRecord({_KEY: message.body})})
    return RecordDict({_RECORD: reply_record(message)})


def reply_record(message: bytes) -> ConfigRecord:
    """The record of a reply, around its very bytes."""
    return ConfigRecord({_KEY: message})


def message_start(answer: bytes, *, size: int) -> int | None:
    """Where a reply's bytes begin in the answer that brings its record; None where that brings something else."""
    return value_start(answer, _KEY, size=size)


def unpack(content: RecordDict) -> bytes:
    """Read ``pack`` back, in one piece.

    Guarantees:
      - What it accepts, ``pack`` would spell in the same records, but for the salt of a body.

    Raises:
      MalformedMessage: the message has other content.
    """
    message = _held(content, _RECORD)
    if set(content) == {_RECORD} and isinstance(message, bytes) and not is_plan(message):
        return message
    body = body_of(content)
    if set(content) == {_RECORD, _BODY} and isinstance(message, list) and isinstance(body, bytes):
        match message:
            case [bytes() as head, bytes() as signature]:
                return PlanParts(head=head, body=body, signature=signature).joined()
    raise MalformedMessage("a Flower message does not hold fedward's bytes", hint="the other side runs another app")


def body_of(content: RecordDict) -> bytes | None:
    """The body of a plan in a Flower message, salted or not; None where there is none."""
    record = content.get(_BODY)
    if not isinstance(record, ConfigRecord) or set(record) - {_SALT} != {_KEY}:
        return None
    body, salt = record[_KEY], record.get(_SALT, bytes(_SALT_BYTES))
    if isinstance(salt, bytes) and len(salt) == _SALT_BYTES and isinstance(body, bytes):
        return body
    return None


def salted(body: bytes) -> RecordDict:
    """A body alone, in a record that nobody can name before it is there."""
    return RecordDict({_BODY: ConfigRecord({_KEY: body, _SALT: secrets.token_bytes(_SALT_BYTES)})})


def with_body(content: RecordDict, shared: RecordDict) -> RecordDict:
    """A plan with the very record of ``salted`` in place of its own body."""
    return RecordDict({**content, **shared})


def _held(content: RecordDict, name: str) -> object:
    record = content.get(name)
    return record[_KEY] if isinstance(record, ConfigRecord) and set(record) == {_KEY} else None
