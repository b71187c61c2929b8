"""Flower's records of bytes in their form on the wire, without the copies that Flower's own writing and reading makes.

Bytes of a record lie on the wire as they are, behind a few that frame them. So a record can be written around its
bytes, and the bytes found in an answer, by the frame alone. It must not know what the bytes mean.

Example:
    >>> content = RecordDict({"r": ConfigRecord({"message": b"bytes"})})
    >>> flowers = content["r"].deflate()
    >>> seal(content, "r")
    >>> content["r"].deflate() == flowers
    True
"""

from __future__ import annotations

from typing import Any, cast

from flwr.app import ConfigRecord, RecordDict
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.proto.recorddict_pb2 import ConfigRecordValue as ProtoConfigRecordValue
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_id

__all__ = ["FRAME_BYTES", "PULLED", "field_head", "seal", "value_start"]

FRAME_BYTES = 256
"""More than stands before the only value of a record in an answer, for any short key."""
PULLED: bytes = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
"""An answer whose object is there; its content follows."""


class _Sealed(ConfigRecord):
    """A record of which only its bytes on the wire are left."""

    def __init__(self, wire: bytes) -> None:
        super().__init__()
        self.__dict__.update(_wire=wire, _digest=get_object_id(wire))

    @property
    def object_id(self) -> str:
        return str(self.__dict__["_digest"])

    def deflate(self) -> bytes:
        return bytes(self.__dict__["_wire"])


def seal(content: RecordDict, name: str) -> None:
    """Put a record of bytes into its form on the wire, as Flower's ``deflate`` does with six copies; leave others.

    Guarantees:
      - The bytes on the wire, and so the record's name, are Flower's own.
    """
    record = content[name]
    if not isinstance(record, ConfigRecord) or not all(isinstance(each, bytes) for each in record.values()):
        return
    parts: list[bytes] = []
    for key, value in record.items():
        parts += (_item_head(key, len(cast(bytes, value))), cast(bytes, value))
    content[name] = _Sealed(b"".join((_object_head(sum(map(len, parts))), *parts)))


def value_start(answer: bytes, key: str, *, size: int) -> int | None:
    """Where the bytes of a record begin in the answer that brings it, and reach to its end.

    Args:
      answer: its beginning, ``FRAME_BYTES`` or all of it.
      key: of the record's only value.
      size: of the whole answer.

    Returns:
      The position, or None where the answer is anything else.
    """
    # a longer value never has a shorter frame, so at most one start fits
    for start in range(min(FRAME_BYTES, size + 1)):
        frame = _answer_head(key, size - start)
        if len(frame) == start:
            return start if answer.startswith(frame) else None
    return None


def field_head(message: Any, name: str, size: int) -> bytes:
    """What protobuf writes before a field of so many bytes; its own writer would copy those three times."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


def _item_head(key: str, size: int) -> bytes:
    value = field_head(ProtoConfigRecordValue, "bytes", size)
    name = field_head(ProtoConfigRecord.Item, "key", len(key.encode())) + key.encode()
    item = name + field_head(ProtoConfigRecord.Item, "value", len(value) + size) + value
    return field_head(ProtoConfigRecord, "items", len(item) + size) + item


def _object_head(size: int) -> bytes:
    head = HEAD_VALUE_DIVIDER.join((ConfigRecord.__qualname__, "", str(size)))
    return b"".join((head.encode(), HEAD_BODY_DIVIDER))


def _answer_head(key: str, size: int) -> bytes:
    item = _item_head(key, size)
    head = _object_head(len(item) + size) + item
    return PULLED + field_head(PullObjectResponse, "object_content", len(head) + size) + head
