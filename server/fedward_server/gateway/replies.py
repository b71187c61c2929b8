"""Whether the body of a ``push-messages`` is one reply of its own sender, of few parts. Pure: bytes in, a verdict out.

Flower takes what a node pushes as it stands: a message that answers nothing counts as the SuperLink's own word to
another node, and each part of its tree costs milliseconds under one lock. So the few fields on which that hangs are
read here, as protobuf writes them. Whatever two readers could read differently (a field twice, an unknown one, another
wire type, a number written longer than need be) is no reply.

Example:
    >>> is_reply(b""), is_reply(b"hello")
    (False, False)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import TypeAlias

__all__ = ["MOST_PARTS", "is_reply"]

MOST_PARTS = 8  # of fedward's replies: a message, its content, a record
LONGEST_NUMBER = 10  # bytes


class _Wire(IntEnum):
    """How a field is written."""

    NUMBER = 0
    EIGHT = 1
    BYTES = 2


Value: TypeAlias = int | bytes
Fields: TypeAlias = dict[int, list[Value]]
Shape: TypeAlias = Mapping[int, _Wire]

# flwr.proto of 1.41: PushMessagesRequest, Node, Message, Metadata, ObjectTree; a test compares them
PUSH: Shape = MappingProxyType({1: _Wire.BYTES, 2: _Wire.BYTES, 3: _Wire.BYTES, 4: _Wire.BYTES})
NODE: Shape = MappingProxyType({1: _Wire.NUMBER})
MESSAGE: Shape = MappingProxyType({1: _Wire.BYTES, 2: _Wire.BYTES, 3: _Wire.BYTES})
METADATA: Shape = MappingProxyType(
    dict.fromkeys((1, 3, 4, 10, 11), _Wire.NUMBER)
    | dict.fromkeys((2, 5, 6, 8), _Wire.BYTES)
    | dict.fromkeys((7, 9), _Wire.EIGHT)
)
TREE: Shape = MappingProxyType({1: _Wire.BYTES, 2: _Wire.BYTES})
CHILDREN = 2


class _Otherwise(Exception):
    """The bytes are not what a reply is."""


def is_reply(body: bytes) -> bool:
    """Whether these bytes are one reply.

    Guarantees:
      - It is one message, which answers another, under its sender's own node number; Flower reads it the same way.
      - Its tree has at most ``MOST_PARTS`` parts, and the message is its root.
      - Its content is not inside, but comes in parts.
    """
    try:
        push = _once(_fields(body, PUSH))
        node = _once(_fields(_bytes(push, 1), NODE))
        message = _once(_fields(_bytes(push, 2), MESSAGE))
        metadata = _once(_fields(_bytes(message, 1), METADATA))
        root = _root(_bytes(push, 3))
    except _Otherwise:
        return False
    return (
        bool(metadata.get(5))  # reply_to_message_id
        and bool(node.get(1))
        and metadata.get(3) == node.get(1)  # src_node_id
        and bool(root)
        and metadata.get(2) == root  # message_id
        and not message.get(2)  # content
    )


def _root(tree: bytes) -> Value | None:
    """The name of a tree's root; its parts are counted."""
    waiting, parts, names = [tree], 0, list[Value | None]()
    while waiting:
        parts += 1
        if parts > MOST_PARTS:
            raise _Otherwise
        found = _fields(waiting.pop(), TREE)
        waiting += [child for child in found.pop(CHILDREN, []) if isinstance(child, bytes)]
        names.append(_once(found).get(1))
    return names[0]


def _once(fields: Fields) -> dict[int, Value]:
    if any(len(values) > 1 for values in fields.values()):
        raise _Otherwise
    return {number: values[0] for number, values in fields.items()}


def _bytes(fields: Mapping[int, Value], number: int) -> bytes:
    value = fields.get(number)
    if not isinstance(value, bytes):
        raise _Otherwise
    return value


def _fields(data: bytes, shape: Shape) -> Fields:
    found: Fields = {}
    for number, wire, value in _walk(data):
        if shape.get(number) is not wire:
            raise _Otherwise
        found.setdefault(number, []).append(value)
    return found


def _walk(data: bytes) -> Iterator[tuple[int, _Wire, Value]]:
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _Wire.NUMBER:
            value, at = _number(data, at)
            yield number, _Wire.NUMBER, value
        elif kind == _Wire.EIGHT:
            yield number, _Wire.EIGHT, _slice(data, at, 8)
            at += 8
        elif kind == _Wire.BYTES:
            size, at = _number(data, at)
            yield number, _Wire.BYTES, _slice(data, at, size)
            at += size
        else:
            raise _Otherwise


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(LONGEST_NUMBER):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            if (place and not byte) or value >> 64:
                break
            return value, at + place + 1
    raise _Otherwise


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise _Otherwise
    return data[at : at + size]
