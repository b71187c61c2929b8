"""An answer as it arrives from the SuperLink: nearly all of it is one update, which should be in memory once.

It must not know what an update is. Nothing here imports Flower.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain

import httpx

from fedward_common.sealed import FRAME_BYTES, PULLED
from fedward_common.wire import message_start

__all__ = ["Sieve", "Unfit"]

MOST_ODD_BYTES = 1 << 20  # of an object that is no reply's record: Flower reads it, in several copies


class Unfit(Exception):
    """An answer is too large, of too many parts, or will never be whole."""


class Sieve(httpx.SyncByteStream):
    """Passes the bytes of an answer on, but for the message of a reply's record: that is put aside.

    Guarantees:
      - The message is in memory once, from its first byte on.
      - Anything else is passed on as it is, or is ``Unfit`` where it is large.
    """

    def __init__(self, stream: httpx.SyncByteStream, size: int, taken: list[bytes]) -> None:
        """Nothing is read yet.

        Args:
          stream: the answer's bytes.
          size: how many those are.
          taken: holds the message, and nothing else, once the answer has been read.
        """
        self._stream, self._size, self._taken = stream, size, taken

    def __iter__(self) -> Iterator[bytes]:
        """What is to be read of the answer.

        Raises:
          Unfit: it is large, and no reply's record.
        """
        chunks, first = iter(self._stream), b""
        while len(first) < FRAME_BYTES and (chunk := next(chunks, b"")):
            first += chunk
        start = message_start(first, size=self._size)
        if start is None and self._size > MOST_ODD_BYTES:
            raise Unfit
        if start is None:
            yield from chain((first,), chunks)
            return
        kept = io.BytesIO(bytes(self._size - start))  # of its size from the beginning: it never has to move
        for chunk in chain((first[start:],), chunks):
            kept.write(chunk)
        self._taken[:] = [kept.getvalue()]
        yield PULLED

    def close(self) -> None:
        """Close the answer's own stream."""
        self._stream.close()
