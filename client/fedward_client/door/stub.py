"""The courier's end of the Door: bytes to the trainer's process and its reply back, or a typed error.

It reads nothing of what passes. A call lasts as long as the trainer says at fixed times that it is still there.

Example:
    >>> from fedward_client.door.credentials import Pair
    >>> door = RemoteDoor(Path("/nowhere/door.sock"), Pair.make().courier)
    >>> door.ready()
    False
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedward_client.door import door_pb2, door_pb2_grpc
from fedward_client.door.credentials import TRAINER, Half, Source
from fedward_client.door.parts import CHANNEL_OPTIONS, SILENCE_S, announced, joined
from fedward_client.door.place import listening
from fedward_common.errors import DoorClosed, DoorError, DoorRefused, MalformedMessage

__all__ = ["RemoteDoor"]

MOST_BYTES = 2**31 + 2**24  # above every limit that a site file can set
HEALTH_S = 5.0
FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
)


class RemoteDoor:
    """A Door whose other side is the trainer's process. Several threads may use one.

    Guarantees:
      - ``answer`` returns a whole reply or raises a ``DoorError``; its texts carry nothing of the message.
      - A trainer that is silent for ``silence_s`` ends the call, a busy one that says so does not.
      - A reply larger than ``max_bytes`` is refused before any of it is kept.
      - ``close`` ends every call that is under way.
    """

    def __init__(
        self, socket: Path, credentials: Source, *, max_bytes: int = MOST_BYTES, silence_s: float = SILENCE_S
    ) -> None:
        """Connect to nobody yet: every call does so anew, and so survives a trainer that starts again.

        Args:
          socket: the trainer's Unix socket.
          credentials: the courier's half; a ``Published`` one is read at each call.
          max_bytes: of a reply.
          silence_s: after so long without a sign of life the trainer counts as gone.
        """
        self._socket, self._credentials = socket.absolute(), credentials
        self._max_bytes, self._silence_s = max_bytes, silence_s
        self._lock, self._closed = threading.Lock(), False
        self._calls: set[Any] = set()

    def answer(self, data: bytes) -> bytes:
        """Send a plan and wait for the reply.

        Raises:
          DoorClosed: the trainer is away, restarting, busy or silent, or this door was closed. Nothing is lost: the
            same plan may be sent again, and one that was served meanwhile is answered with the stored reply.
          DoorRefused: the plan or the reply is too large, or the trainer does not know this courier.
        """
        half = self._half()
        size, parts = announced(data)
        with _channel(self._socket, half) as channel:
            call = door_pb2_grpc.DoorStub(channel).Answer(_plan(size, parts))
            try:
                with self._tracked(call), _Watch(self._silence_s, call.cancel) as watch:
                    return self._read(call, watch)
            except grpc.RpcError as error:
                raise self._meaning(error, half) from None

    def ready(self) -> bool:
        """Whether the trainer serves plans now, by the standard health service. Never raises."""
        try:
            with _channel(self._socket, self._half()) as channel:
                asked = health_pb2.HealthCheckRequest()
                found = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=HEALTH_S)
                return bool(found.status == health_pb2.HealthCheckResponse.SERVING)
        except (DoorError, grpc.RpcError):
            return False

    def close(self) -> None:
        """End all calls that are under way, and take no more."""
        with self._lock:
            self._closed = True
            calls = tuple(self._calls)
        for call in calls:
            call.cancel()

    def __enter__(self) -> Self:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _half(self) -> Half:
        """Find out by a plain connection whether anybody is there: gRPC would not tell why a connection failed."""
        half = self._credentials.load()
        try:
            if listening(self._socket):
                return half
        except PermissionError:
            raise DoorRefused(
                f"this account may not open {self._socket}", hint="put it into the group of the door's folder"
            ) from None
        raise _away()

    def _read(self, call: Any, watch: _Watch) -> bytes:
        replies = iter(call)
        size = self._size(replies, watch)
        try:
            whole = joined(size, (_part(reply, watch) for reply in replies))
        except MalformedMessage as error:
            raise DoorRefused(str(error), hint=error.hint) from None
        return whole

    def _size(self, replies: Iterator[Any], watch: _Watch) -> int:
        for reply in replies:
            watch.heard()
            if reply.WhichOneof("is") == "heartbeat":
                continue
            if reply.WhichOneof("is") != "size":
                raise DoorRefused("the trainer speaks another language", hint="both processes need the same version")
            if reply.size > self._max_bytes:
                raise DoorRefused(
                    f"the reply has {reply.size} bytes, {self._max_bytes} are taken",
                    hint="lower policy.max_update_bytes",
                )
            return int(reply.size)
        raise _away()

    def _meaning(self, error: grpc.RpcError, half: Half) -> DoorError:
        code, text = error.code(), str(error.details())
        if code in FINAL:
            return DoorRefused(f"the trainer refuses this call: {text}", hint="its log says more")
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in text and self._still_there(half):
            return DoorRefused("the trainer does not know this courier", hint="start both together again")
        return _away()

    def _still_there(self, half: Half) -> bool:
        """Not a start that came between: then the next attempt finds other keys, or nobody."""
        try:
            return self._half() == half
        except DoorError:
            return False

    @contextmanager
    def _tracked(self, call: Any) -> Iterator[None]:
        with self._lock:
            self._calls.add(call)
            closed = self._closed
        try:
            if closed:
                raise _away()
            yield
        finally:
            with self._lock:
                self._calls.discard(call)
            call.cancel()


class _Watch:
    """Ends a call that has not been heard of for too long, from a thread of its own."""

    def __init__(self, seconds: float, cancel: Callable[[], Any]) -> None:
        self._seconds, self._cancel = seconds, cancel
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door-watch", daemon=True)

    def heard(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(max(0.0, self._last + self._seconds - time.monotonic())):
            if time.monotonic() >= self._last + self._seconds:
                self._cancel()
                return


def _channel(socket: Path, half: Half) -> Any:
    return grpc.secure_channel(
        f"unix:{socket}",
        grpc.ssl_channel_credentials(half.peer, half.key, half.certificate),
        options=(*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", TRAINER)),
    )


def _plan(size: int, parts: Iterator[bytes]) -> Iterator[Any]:
    yield door_pb2.PlanPart(size=size)
    for part in parts:
        yield door_pb2.PlanPart(part=part)


def _part(reply: Any, watch: _Watch) -> bytes:
    watch.heard()
    return bytes(reply.part)


def _away() -> DoorClosed:
    return DoorClosed("the trainer is away, busy or silent", hint="it may be starting; the same plan can be sent again")
