"""Packs our bytes into Flower's records and back: the only module in common that imports Flower.

Flower sees one opaque byte string a message. What it means, and whether it is to be believed, is the codec's business.

Example:
    >>> unpack(pack(b"signed bytes"))
    b'signed bytes'
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from fedward_common.errors import MalformedMessage

__all__ = ["pack", "unpack"]

_RECORD, _KEY = "fedward", "message"


def pack(data: bytes) -> RecordDict:
    """One byte string as the content of a Flower message."""
    return RecordDict({_RECORD: ConfigRecord({_KEY: data})})


def unpack(content: RecordDict) -> bytes:
    """Read ``pack`` back.

    Raises:
      MalformedMessage: the message has other content.
    """
    record = content.get(_RECORD)
    data = record.get(_KEY) if isinstance(record, ConfigRecord) and set(content) == {_RECORD} else None
    if not isinstance(data, bytes):
        raise MalformedMessage("a Flower message does not hold fedward's bytes", hint="the other side runs another app")
    return data
