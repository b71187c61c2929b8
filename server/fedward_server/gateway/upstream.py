"""The SuperLink as the gateway reaches it: TLS verified against our CA, connections used again. Knows no routes."""

from __future__ import annotations

import asyncio
import ssl
import time

import h11

from fedward_server.gateway.peer import Lost, Peer

__all__ = ["Away", "Pool"]

IDLE_S = 4.0  # uvicorn hangs up after five
KEPT = 64
HANDSHAKE_S = 10.0
HEAD_BYTES = 64 << 10
BUFFER = 1 << 17


class Away(Exception):
    """The SuperLink does not answer."""


class Pool:
    """Connections to it.

    Guarantees:
      - Nothing is sent before the certificate was verified against our CA, which certifies this one server.
    """

    def __init__(self, host: str, port: int, *, context: ssl.SSLContext) -> None:
        """Nothing is opened yet."""
        self._host, self._port, self._context = host, port, context
        self._idle: list[Peer] = []
        self._closed = False

    @property
    def authority(self) -> bytes:
        """For the Host header."""
        return f"localhost:{self._port}".encode()

    async def take(self) -> Peer:
        """A connection, new or used before."""
        while self._idle:
            peer = self._idle.pop()
            if peer.fresh and time.monotonic() - peer.idle_since < IDLE_S:
                return peer
            peer.abort()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._context, server_hostname=self._host, limit=BUFFER
                )
        except (OSError, ssl.SSLError, TimeoutError):
            raise Away from None
        return Peer(h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES), reader, writer)

    def give_back(self, peer: Peer) -> None:
        """Keep a connection whose exchange is complete; end any other."""
        try:
            keep = not self._closed and len(self._idle) < KEPT and peer.fresh and peer.reuse()
        except h11.ProtocolError:
            keep = False
        if keep:
            self._idle.append(peer)
        else:
            peer.abort()

    def close(self) -> None:
        """End all that are idle, and keep none from now on."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    async def healthy(self, *, seconds: float) -> bool:
        """Whether ``GET /health`` answers 200."""
        try:
            peer = await self.take()
        except Away:
            return False
        try:
            request = h11.Request(method="GET", target="/health", headers=[(b"host", self.authority)])
            await peer.send(request, h11.EndOfMessage(), within_s=seconds)
            answer = await peer.head(first_s=seconds, rest_s=seconds)
        except Lost:
            return False
        finally:
            peer.abort()
        return isinstance(answer, h11.Response) and answer.status_code == 200
