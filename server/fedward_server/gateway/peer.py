"""One HTTP/1.1 connection, either side: h11 does the grammar, asyncio the bytes, and every wait has an end.

Bodies pass in pieces; a peer that is slow to take them slows down the one that sends them, so memory does not grow with
their size. Knows nothing of routes, nodes or limits' values.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator

import h11

from fedward_server.gateway.limits import Pace

__all__ = ["Lost", "Peer"]

PIECE = 1 << 18  # bytes read at once
AHEAD = 1 << 18  # bytes that may wait to be sent, while more are read from the other side


class Lost(Exception):
    """The peer went away, was too slow, or spoke no HTTP; ``status`` is what it may be told."""

    def __init__(self, peer: Peer, status: int) -> None:
        """Remember who."""
        super().__init__(status)
        self.peer, self.status = peer, status


class Peer:
    """A connection and its HTTP state.

    Guarantees:
      - No call waits longer than the time it was given.
      - Every failure of the network or of the grammar is `Lost`.
    """

    def __init__(self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """``http`` is fresh, and says which side is ours."""
        self.http = http
        self._reader, self._writer = reader, writer
        writer.transport.set_write_buffer_limits(high=AHEAD)
        self.bodyless = False  # whether the request in hand is a HEAD
        self.idle_since = time.monotonic()

    async def head(self, *, first_s: float, rest_s: float) -> h11.Request | h11.Response | None:
        """The next request or final response; None where the peer said nothing more.

        Args:
          first_s: may pass before its first byte.
          rest_s: may pass from then to the end of its head.
        """
        event = self._event()
        if event is h11.NEED_DATA:
            if not await self._feed(first_s):
                return None
            event = self._event()
        async with _within(rest_s, self):
            while event is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
                if event is h11.NEED_DATA:
                    await self._feed(None)
                event = self._event()
        self.bodyless = isinstance(event, h11.Request) and event.method == b"HEAD"
        return event if isinstance(event, h11.Request | h11.Response) else None

    async def body(self, pace: Pace) -> AsyncIterator[bytes]:
        """The pieces of the message whose head was read."""
        while True:
            event = self._event()
            if event is h11.NEED_DATA:
                began, left = time.monotonic(), pace.left()
                await self._feed(left)
                pace.note(waited_s=time.monotonic() - began, received=0)
            elif isinstance(event, h11.Data):
                pace.note(waited_s=0.0, received=len(event.data))
                yield event.data
            else:
                return

    async def send(self, *events: h11.Event, within_s: float) -> None:
        """Write, and wait until the peer takes it."""
        try:
            pieces = [piece for event in events for piece in self.http.send_with_data_passthrough(event) or ()]
        except h11.LocalProtocolError:
            raise Lost(self, 503) from None
        async with _within(within_s, self):
            self._writer.write(b"".join(pieces))  # each write is a TLS record of its own
            await self._writer.drain()

    def reuse(self) -> bool:
        """Whether the connection can carry another exchange; then it is made ready for it."""
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        self.idle_since = time.monotonic()
        return True

    @property
    def fresh(self) -> bool:
        """Whether the other side has not hung up meanwhile."""
        return not self._reader.at_eof() and not self._writer.is_closing() and not self.http.trailing_data[0]

    @property
    def answered(self) -> bool:
        """As a server: whether a response has been begun."""
        return self.http.our_state in (h11.SEND_BODY, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    async def linger(self, *, seconds: float) -> None:
        """Take what a peer still sends, so that it comes to read our answer; then close."""
        try:
            async with asyncio.timeout(seconds):
                while await self._reader.read(PIECE):
                    pass
        except (OSError, ssl.SSLError, TimeoutError):
            pass
        self.abort()

    def close(self) -> None:
        """End the connection in order."""
        self._writer.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()

    def _event(self) -> object:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as error:
            raise Lost(self, error.error_status_hint) from None

    async def _feed(self, seconds: float | None) -> bytes:
        async with _within(seconds, self):
            data = await self._reader.read(PIECE)
        try:
            self.http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise Lost(self, error.error_status_hint) from None
        return data


class _within:
    """``asyncio.timeout`` whose end, and every failure of the network inside, is `Lost`."""

    def __init__(self, seconds: float | None, peer: Peer) -> None:
        self._timeout, self._peer = asyncio.timeout(seconds), peer

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            await self._timeout.__aexit__(type(error) if error else None, error, None)
        except TimeoutError:
            raise Lost(self._peer, 408) from None
        if isinstance(error, OSError | ssl.SSLError | EOFError):
            raise Lost(self._peer, 400) from None
