"""Long messages in parts, both directions: the size first, then at most 1 MiB at a time. And what both ends agree on.

Example:
    >>> size, parts = announced(b"x" * 3_000_000)
    >>> size, len(joined(size, parts))
    (3000000, 3000000)
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from enum import StrEnum

from fedward_common.errors import MalformedMessage

__all__ = ["BEAT_S", "CHANNEL_OPTIONS", "HEADER_ROOM", "PART_BYTES", "SILENCE_S", "Status", "announced", "joined"]

PART_BYTES = 2**20
HEADER_ROOM = 2**23  # beside the tensors: header, JSON and signature of a message
BEAT_S = 5.0
SILENCE_S = 60.0
NEVER_MS = 2**31 - 1

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", PART_BYTES + 1024),
    ("grpc.max_send_message_length", PART_BYTES + 1024),
    ("grpc.max_metadata_size", 8192),
    ("grpc.keepalive_time_ms", NEVER_MS),  # a Unix socket needs none, and heartbeats say more
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel tries anew, whatever an earlier one met
)


class Status(StrEnum):
    """Every text that the trainer puts beside a gRPC status code."""

    AWAY = "away"
    """Starting or ending."""

    BUSY = "busy"
    """One plan is worked on and as many wait as may."""

    FAILED = "failed"
    """The site gave no reply at all."""

    MALFORMED = "malformed"
    """Parts that do not make up what was announced."""

    TOO_LARGE = "too large"
    """More was announced than the site's policy takes."""


def announced(data: bytes) -> tuple[int, Iterator[bytes]]:
    """A message's size, and its parts."""
    return len(data), (data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES))


def joined(size: int, parts: Iterable[bytes]) -> bytes:
    """Put a message together whose announced size the caller has found small enough.

    Guarantees:
      - Never more than the announced size is kept, and once.

    Raises:
      MalformedMessage: the parts are not of the announced size.
    """
    whole = io.BytesIO()
    for part in parts:
        if not part or len(part) > PART_BYTES or whole.tell() + len(part) > size:
            raise _malformed()
        whole.write(part)
    if whole.tell() != size:
        raise _malformed()
    return whole.getvalue()  # its own buffer, and no copy of it


def _malformed() -> MalformedMessage:
    return MalformedMessage("the parts are not what was announced", hint="both processes need the same version")
