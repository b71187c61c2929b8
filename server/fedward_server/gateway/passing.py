"""One request through the gateway: who asks, for what, how often; then the body up and the answer down.

Whatever goes wrong here or behind is 503, because a stock Flower node repeats a request that was answered 503, sends
itself SIGINT on 401 and goes deaf on any other error. Of all bodies only that of a reply is looked at, in `replies`;
this module imports nothing of Flower.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TextIO

import h11

from fedward_server.gateway.limits import Buckets, Limits, Pace, Together
from fedward_server.gateway.peer import Lost, Peer
from fedward_server.gateway.replies import is_reply
from fedward_server.gateway.roll import Node, Roll, Stranger
from fedward_server.gateway.routes import HEALTH, OBJECT, REPLY, allowed, down, head_size, malformed, up, verdict
from fedward_server.gateway.upstream import Away, Pool
from fedward_server.gateway.versions import version_in
from fedward_server.gateway.visits import Visit

__all__ = ["Passing"]

LOG = logging.getLogger(__name__)
LINGER_S = 3.0
HEALTH_S = 3.0
LOOK_S = 1.0  # between two looks at the SuperLink's health
RETRY_AFTER = (b"retry-after", b"2")
METHOD = 405
NODE_FAULTS = (400, 408, 431)


@dataclass(kw_only=True, eq=False)
class Exchange:
    """One request and what became of it: a line of the log."""

    request: h11.Request
    node: str = ""
    route: str = "other"
    status: int = 0
    received: int = 0
    sent: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """As JSON: no body, no header's value, no path that is not ours."""
        return json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "process": "gateway",
                "node": self.node,
                "route": self.route,
                "status": self.status,
                "bytes_in": self.received,
                "bytes_out": self.sent,
                "ms": round((time.monotonic() - self.began) * 1000, 1),
            }
        )


class Refused(Exception):
    """The gateway itself answers."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        """``reason`` is one word of a closed list."""
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


def _away() -> Refused:
    return Refused(503, "away", RETRY_AFTER)


def _too_many(status: int) -> Refused:
    return Refused(status, "too_many_requests", RETRY_AFTER)


class Passing:
    """What happens to requests.

    Guarantees:
      - Only the routes of `routes.ROUTES` reach the SuperLink, and only from enrolled keys.
      - Only objects may be large, and a node sends ``objects_at_once`` at once, no faster than its budget of bytes.
      - What a node pushes as a message is one reply of its own (`replies`).
      - No answer has the status 500, whatever fails.
      - A disk that takes no log cuts no connection.
    """

    def __init__(
        self, limits: Limits, roll: Roll, pool: Callable[[], Pool], log: TextIO, met: Callable[[Visit, str, str], None]
    ) -> None:
        """Serve nobody yet.

        Args:
          limits: what a node may ask for.
          roll: who is enrolled.
          pool: gives the connections of the moment.
          log: takes a line for each request.
          met: hears on which connection a site was let in, its name, and the version that it says it runs.
        """
        self._limits, self._roll, self._pool, self._log, self._met = limits, roll, pool, log, met
        self._nodes = Buckets(per_s=limits.requests_per_s, burst=limits.burst)
        self._strangers = Buckets(per_s=limits.strangers_per_s, burst=limits.strangers_burst)
        self._replies = Buckets(per_s=limits.replies_per_s, burst=limits.replies_burst)
        self._bytes = Buckets(per_s=limits.bytes_per_s, burst=limits.burst_bytes)
        self._requests = Together(most=limits.requests_at_once, total=limits.connections)
        self._objects = Together(most=limits.objects_at_once, total=limits.connections)
        self._health = (-LOOK_S, False)

    async def talk(self, peer: Peer, visit: Visit) -> None:
        """All requests of a connection."""
        first_s = self._limits.head_s
        while True:
            try:
                request = await peer.head(first_s=first_s, rest_s=self._limits.head_s)
            except Lost as lost:
                await self._farewell(peer, visit.address, lost)
                return
            if not isinstance(request, h11.Request) or not await self._request(peer, request, visit):
                return
            first_s = self._limits.idle_s

    async def _farewell(self, peer: Peer, address: str, lost: Lost) -> None:
        """Answer a head that was no HTTP or never ended."""
        status = lost.status if lost.status in NODE_FAULTS else 400
        if self._strangers.take(address) and not peer.answered:
            await self._refuse(peer, Refused(status, "bad_request"))

    async def _request(self, peer: Peer, request: h11.Request, visit: Visit) -> bool:
        """One exchange; whether the connection can carry another."""
        exchange = Exchange(request=request)
        try:
            await self._judged(peer, exchange, visit)
        except Refused as refused:
            exchange.status = refused.status
            await self._refuse(peer, refused)
        except Lost as lost:
            exchange.status = 503 if lost.peer is not peer else lost.status
            await self._broken(peer, lost)
        except Exception as error:
            LOG.error("a request failed: %s", error)
            exchange.status = 503
            await self._broken(peer, Lost(peer, 503))
        with contextlib.suppress(OSError):  # a full disk
            self._log.write(exchange.line() + "\n")
            self._log.flush()
        return peer.reuse()

    async def _judged(self, peer: Peer, exchange: Exchange, visit: Visit) -> None:
        """Who asks, how often, for what; then pass it."""
        who = self._roll.find(dict(exchange.request.headers))
        exchange.node = who.name if isinstance(who, Node) else ""
        self._rate(who, visit.address)
        exchange.route = self._route(exchange.request)
        if exchange.route == HEALTH:
            await self._healthy(peer, exchange)
        elif isinstance(who, Node):
            self._met(visit, who.name, version_in(dict(exchange.request.headers)))
            await self._admitted(peer, exchange)
        else:
            raise Refused(403, who.value)

    def _rate(self, who: Node | Stranger, address: str) -> None:
        if isinstance(who, Node):
            if not self._nodes.take(who.name):
                raise _too_many(503)
        elif not self._strangers.take(address):
            raise _too_many(429)

    def _route(self, request: h11.Request) -> str:
        if head_size(request) > self._limits.head_bytes:
            raise Refused(431, "bad_request")
        if malformed(request):
            raise Refused(400, "bad_request")
        known = verdict(request.method.decode("ascii"), request.target)
        if isinstance(known, str):
            return known
        if known == METHOD:
            raise Refused(known, "wrong_method", allowed(request.target))
        raise Refused(known, "no_such_route")

    async def _healthy(self, peer: Peer, exchange: Exchange) -> None:
        asked, well = self._health
        if time.monotonic() - asked >= LOOK_S:
            self._health = (time.monotonic(), well)  # so that nobody else asks meanwhile
            well = await self._pool().healthy(seconds=HEALTH_S)
            self._health = (time.monotonic(), well)
        if not well:
            raise _away()
        exchange.status = 200
        await self._answer(peer, 200, b"ok", (b"content-type", b"text/plain"))

    async def _admitted(self, peer: Peer, exchange: Exchange) -> None:
        length = dict(exchange.request.headers).get(b"content-length", b"0")
        if int(length) > self._most(exchange.route):
            raise Refused(413, "too_large")
        with self._place(self._requests, exchange), self._place(self._objects, exchange, OBJECT):
            if exchange.route == REPLY:
                await self._through(peer, exchange, await self._reply(peer, exchange))
            else:
                await self._through(peer, exchange, self._pieces(peer, exchange))

    def _most(self, route: str) -> int:
        """Bytes of a body."""
        limits = self._limits
        return {OBJECT: limits.max_body_bytes, REPLY: limits.max_reply_bytes}.get(route, limits.max_small_bytes)

    @contextlib.contextmanager
    def _place(self, together: Together, exchange: Exchange, *routes: str) -> Iterator[None]:
        """One of the node's places, where its route needs one."""
        if routes and exchange.route not in routes:
            yield
            return
        if not together.enter(exchange.node):
            raise _too_many(503)
        try:
            yield
        finally:
            together.leave(exchange.node)

    async def _reply(self, peer: Peer, exchange: Exchange) -> AsyncIterator[bytes]:
        """The whole body of a reply, looked at before anything of it is passed."""
        if not self._replies.take(exchange.node):
            raise _too_many(503)
        body = b"".join([piece async for piece in self._pieces(peer, exchange)])
        if not is_reply(body):
            raise Refused(400, "no_reply")
        return _one(body)

    async def _through(self, peer: Peer, exchange: Exchange, body: AsyncIterator[bytes]) -> None:
        try:
            pool = self._pool()
            upstream = await pool.take()
            try:
                await self._passed(peer, upstream, exchange, body, pool.authority)
            finally:
                pool.give_back(upstream)
        except Away:
            raise _away() from None

    async def _passed(
        self, peer: Peer, upstream: Peer, exchange: Exchange, body: AsyncIterator[bytes], authority: bytes
    ) -> None:
        """The body up, the answer down, piece by piece."""
        wait = self._limits.upstream_s
        await upstream.send(up(exchange.request, authority), within_s=wait)
        async for piece in body:
            await upstream.send(h11.Data(data=piece), within_s=wait)
        await upstream.send(h11.EndOfMessage(), within_s=wait)
        answer = await upstream.head(first_s=wait, rest_s=wait)
        if not isinstance(answer, h11.Response) or not _passes(answer.status_code):
            raise _away()
        exchange.status = answer.status_code
        pace = Pace(grace_s=wait, slowest=self._limits.slowest_bytes_per_s)
        head: tuple[h11.Event, ...] = (down(answer),)
        async for piece in upstream.body(pace):
            exchange.sent += len(piece)
            await peer.send(*head, h11.Data(data=piece), within_s=self._limits.grace_s)
            head = ()
        await peer.send(*head, h11.EndOfMessage(), within_s=self._limits.grace_s)

    async def _pieces(self, peer: Peer, exchange: Exchange) -> AsyncIterator[bytes]:
        """The body as it comes, no larger and no faster than allowed."""
        if peer.http.they_are_waiting_for_100_continue:
            await peer.send(h11.InformationalResponse(status_code=100, headers=[]), within_s=self._limits.grace_s)
        pace = Pace(grace_s=self._limits.grace_s, slowest=self._limits.slowest_bytes_per_s)
        async for piece in peer.body(pace):
            exchange.received += len(piece)
            if exchange.received > self._most(exchange.route):
                raise Refused(413, "too_large")
            yield piece
            if wait_s := self._bytes.owe(exchange.node, len(piece)):
                await asyncio.sleep(wait_s)

    async def _broken(self, peer: Peer, lost: Lost) -> None:
        """The node or the SuperLink went away in the middle; half an answer must not look whole."""
        if peer.answered:
            peer.abort()
        elif lost.peer is peer and lost.status in NODE_FAULTS:
            await self._refuse(peer, Refused(lost.status, "bad_request"))
        else:
            await self._refuse(peer, _away())

    async def _refuse(self, peer: Peer, refused: Refused) -> None:
        body = json.dumps({"detail": refused.reason}).encode()
        unread = peer.http.their_state is not h11.DONE
        close = ((b"connection", b"close"),) if unread else ()
        with contextlib.suppress(Lost):
            await self._answer(
                peer, refused.status, body, (b"content-type", b"application/json"), *refused.headers, *close
            )
            if unread:
                await peer.linger(seconds=LINGER_S)

    async def _answer(self, peer: Peer, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Our own answer; it carries the time, by which a node whose clock is wrong can tell."""
        own = [(b"content-length", str(len(body)).encode()), (b"date", formatdate(usegmt=True).encode()), *headers]
        response = h11.Response(status_code=status, headers=own)
        content = () if peer.bodyless else (h11.Data(data=body),)
        await peer.send(response, *content, h11.EndOfMessage(), within_s=self._limits.grace_s)


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _passes(status: int) -> bool:
    """Success and the SuperLink's own refusals; its failures and redirects are not for nodes."""
    return 200 <= status < 300 or 400 <= status < 500
