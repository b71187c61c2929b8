"""The Door's other end: a gRPC server on a Unix socket that takes signed plans and gives back what the gate made.

It passes bytes between the socket and the queue, keeps to limits of size, number and time, and says nothing else than
the gate's replies, the gate's heartbeat at fixed times, and constant status texts. It reads no plan and no reply.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedward_client.door import door_pb2, door_pb2_grpc
from fedward_client.door.credentials import Half
from fedward_client.door.parts import BEAT_S, CHANNEL_OPTIONS, HEADER_ROOM, SILENCE_S, Status, announced, joined
from fedward_client.door.place import Place
from fedward_client.release import Gate
from fedward_client.trainer.turns import Turn, Turns
from fedward_common.errors import MalformedMessage, OutputError

__all__ = ["TrainerServer"]

CALLS = 8  # three plans at most, the rest are health checks and calls that are sent away at once
INTAKE_S = SILENCE_S / 2
CODES = {
    Status.AWAY: grpc.StatusCode.UNAVAILABLE,
    Status.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Status.FAILED: grpc.StatusCode.INTERNAL,
    Status.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Status.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
}
LOG = logging.getLogger(__name__)


class _Ended(Exception):
    """A call ends with a status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.value)
        self.status = status


class _Service:
    """``Door``: one call is one plan."""

    def __init__(self, *, limit: int, beat_s: float) -> None:
        self._limit, self._beat_s = limit, beat_s
        self.turns: Turns | None = None

    def Answer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        """Take a plan, wait for its turn and its slot, give the reply."""
        try:
            yield from self._answer(request_iterator, context)
        except _Ended as ended:
            status = ended.status
        except MalformedMessage:
            status = Status.MALFORMED
        except Exception as error:  # gRPC would send its text; a call that its caller gave up ends here too
            status = Status.FAILED
            LOG.debug("a call ended: %s", type(error).__name__)
        else:
            return
        context.abort(CODES[status], status.value)

    def _answer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        with _in_time(context):  # a call that says nothing would hold one of few threads
            size = self._size(requests)
        turn = self._take()
        try:
            if not context.add_callback(turn.leave):  # it is over already
                return
            with _in_time(context):
                plan = joined(size, (request.part for request in requests))
            turn.submit(plan)
            del plan
            yield from self._beats(turn)
            yield from _reply(turn.reply)
        finally:
            turn.leave()

    def _size(self, requests: Iterator[Any]) -> int:
        first = next(requests, None)
        if first is None or first.WhichOneof("is") != "size":
            raise _Ended(Status.MALFORMED)
        if first.size > self._limit:
            raise _Ended(Status.TOO_LARGE)
        return int(first.size)

    def _take(self) -> Turn:
        if self.turns is None:
            raise _Ended(Status.AWAY)
        turn = self.turns.take()
        if turn is None:
            raise _Ended(Status.BUSY)
        return turn

    def _beats(self, turn: Turn) -> Iterator[Any]:
        """Say at fixed times after the plan's arrival that somebody is here, and nothing else."""
        beat = turn.arrived
        while True:
            beat += self._beat_s
            if turn.wait(beat - time.monotonic()):
                return
            yield door_pb2.ReplyPart(heartbeat=Gate.HEARTBEAT)


class TrainerServer:
    """The server, from a bound socket to a closed one.

    Guarantees:
      - Nobody without the other half of these keys is heard.
      - Health says SERVING from ``open`` to ``close`` and NOT_SERVING otherwise; plans are sent away meanwhile.
      - No status carries the text of an error.
      - A message over the limit is refused before any of it is kept.
    """

    def __init__(self, place: Place, half: Half, *, max_update_bytes: int, beat_s: float = BEAT_S) -> None:
        """Bind the socket and answer health checks.

        Args:
          place: a prepared folder.
          half: the trainer's.
          max_update_bytes: the policy's; a plan may have as much, and its header.
          beat_s: between two heartbeats.

        Raises:
          OutputError: another trainer listens there, or the socket cannot be bound.
        """
        self._place = place
        self._service = _Service(limit=max_update_bytes + HEADER_ROOM, beat_s=beat_s)
        self._health = health.HealthServicer()
        self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        options = (*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", CALLS))
        self._server = grpc.server(
            futures.ThreadPoolExecutor(CALLS, thread_name_prefix="door"),
            options=options,
            maximum_concurrent_rpcs=CALLS,
        )
        door_pb2_grpc.add_DoorServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._bind(half)

    def open(self, turns: Turns) -> None:
        """Take plans from now on."""
        self._service.turns = turns
        self._say(health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Take no more plans, end all calls at once, and remove the socket."""
        self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._service.turns = None
        self._server.stop(grace=0).wait()
        self._place.socket.unlink(missing_ok=True)

    def _bind(self, half: Half) -> None:
        self._place.clear()
        keys = [(half.key, half.certificate)]
        secured = grpc.ssl_server_credentials(keys, root_certificates=half.peer, require_client_auth=True)
        try:
            with self._place.binding():
                bound = self._server.add_secure_port(f"unix:{os.fspath(self._place.socket)}", secured)
        except RuntimeError:
            bound = 0
        if not bound:
            raise OutputError(f"cannot bind {self._place.socket}", hint="check who owns its folder, and the disk")
        self._server.start()

    def _say(self, status: Any) -> None:
        for name in ("", "fedward.door.v1.Door"):
            self._health.set(name, status)


def _reply(reply: bytes) -> Iterator[Any]:
    if not reply:
        raise _Ended(Status.FAILED)
    size, parts = announced(reply)
    yield door_pb2.ReplyPart(size=size)
    for part in parts:
        yield door_pb2.ReplyPart(part=part)


@contextmanager
def _in_time(context: Any) -> Iterator[None]:
    """End a call whose plan does not come: it has a place, and others wait for one."""
    timer = threading.Timer(INTAKE_S, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
