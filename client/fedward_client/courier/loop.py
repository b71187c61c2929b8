"""The courier's loop: pull a message, hand it to the Door, push the reply; one at a time, for ever.

Nothing ends it but a request to stop. Where the network is gone it waits, where the trainer is gone it waits, and a
reply is carried until nobody wants it any more. What an error says stays here: the operator is told its type alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedward_client.app import SITE
from fedward_client.courier.faults import Away, Dropped, Fault, Pauses
from fedward_client.courier.fleet import NotYet, Parcel, Unreadable, expires_at, pack_up
from fedward_client.courier.folder import Session
from fedward_client.courier.heart import Heart
from fedward_client.courier.status import Board
from fedward_common.errors import DoorClosed

__all__ = ["Cadence", "Carrier", "Courier"]

log = logging.getLogger(__name__)

MARK_EACH_S = 5.0
NOBODY_AT_DOOR = "the trainer does not answer; it may be starting, see its log"


class Carrier(Protocol):
    """What the loop needs of a ``Fleet``."""

    node_id: int | None

    def activate(self) -> int:
        """Come online."""
        ...

    def resume(self, node_id: int) -> bool:
        """Go on after a crash."""
        ...

    def pull(self) -> Message | None:
        """The next message."""
        ...

    def push(self, parcel: Parcel) -> None:
        """Deliver a reply."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often the loop asks for a message."""

    busy_s: float = 0.5
    idle_s: float = 2.0
    busy_for_s: float = 120.0
    """A run counts as active for so long after its last message."""

    door_soonest_s: float = 0.5
    door_latest_s: float = 5.0


class Courier:
    """Carries messages between the operator and the Door.

    Guarantees:
      - Whatever a fault, it goes on as soon as that is mended; it ends on ``stop`` alone.
      - A reply is pushed until it has arrived or its message has expired.
      - A Door with nobody behind it is tried again until the message expires, and not answered for.
      - Of an error of the Door or the app, its type alone is told.
    """

    def __init__(
        self,
        fleet: Carrier,
        app: Callable[[Message, Context], Message],
        *,
        name: str,
        board: Board,
        heart: Heart,
        session: Session,
        cadence: Cadence | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
          fleet: the connection.
          app: Flower's ClientApp, which knows the Door. It raises ``DoorClosed`` where nobody is behind it.
          name: the site's, for the app.
          board: where the loop says how it is.
          heart: told which node to beat for.
          session: the node number on disk.
          cadence: how often the loop asks for a message.
        """
        self._fleet, self._app, self._name = fleet, app, name
        self._board, self._heart, self._session = board, heart, session
        self._cadence = cadence or Cadence()
        self._pauses = Pauses()
        self._stopped = threading.Event()
        self._last_message = float("-inf")

    def stop(self) -> None:
        """End the loop soon; may be called from any thread."""
        self._stopped.set()

    def run(self) -> None:
        """Carry messages until ``stop``."""
        while not self._stopped.is_set():
            try:
                self._turn()
            except Fault as fault:
                self._wait_out(fault)
            except Exception as error:  # ours; a courier that gives up would be worse
                log.exception("the loop failed")
                kind = type(error).__name__
                self._wait_out(Away(f"the courier failed with {kind}", hint="report it; the courier goes on trying"))

    def _turn(self) -> None:
        try:
            self._connect()
            message = self._fleet.pull()
        except Unreadable as error:
            log.error("a message was refused: %s", error)
            self._deliver(_error_reply(error.head, error))
            return
        except Dropped as error:
            log.info("a message was dropped: %s", error)
            message = None
        self._went_well()
        if message is None:
            self._rest()
        else:
            self._serve(message)

    def _connect(self) -> None:
        if self._fleet.node_id is None:
            self._heart.follow(None)
            before = self._session.recall()
            if before is None or not self._fleet.resume(before):
                self._session.forget()
                self._session.remember(self._fleet.activate())
            log.info("connected")
        self._heart.follow(self._fleet.node_id)

    def _serve(self, message: Message) -> None:
        self._last_message = time.monotonic()
        log.info("message %s of run %d", message.metadata.message_id[:12], message.metadata.run_id)
        reply = self._answer(message)
        message.content = RecordDict()  # a plan is as large as a reply: not two at a time
        if reply is not None:
            self._deliver(reply)
        self._last_message = time.monotonic()

    def _answer(self, message: Message) -> Message | None:
        wait = self._cadence.door_soonest_s
        context = _context(message, self._fleet.node_id or message.metadata.dst_node_id, self._name)
        while self._wanted(expires_at(message)):
            try:
                with self._board.door():
                    return self._app(message, context)
            except DoorClosed:
                log.error("nobody at the Door")
                self._board.connected(hint=NOBODY_AT_DOOR)
            except Exception as error:
                log.error("the Door failed: %s", error)
                return _error_reply(message, error)
            self._stopped.wait(wait)
            wait = min(2 * wait, self._cadence.door_latest_s)
        log.error("a message expired before the trainer answered")
        return None

    def _deliver(self, reply: Message) -> None:
        parcel, until = pack_up(reply), expires_at(reply)
        if reply.has_content():
            reply.content = RecordDict()  # the parcel holds its bytes
        while self._wanted(until):
            try:
                self._connect()
                self._fleet.push(parcel)
            except Dropped as error:
                log.error("a reply was dropped: %s", error)
                return
            except Fault as fault:
                self._wait_out(fault)
                continue
            self._went_well()
            log.info("reply delivered")
            return
        log.error("a reply expired before it was delivered")

    def _wanted(self, until: float) -> bool:
        return time.time() < until and not self._stopped.is_set()

    def _went_well(self) -> None:
        self._pauses.clear()
        self._board.connected()

    def _wait_out(self, fault: Fault) -> None:
        if isinstance(fault, NotYet):
            self._board.connected()
        else:
            if self._board.status.reason != str(fault):
                log.error("%s; hint: %s", fault, fault.hint)
            self._board.fault(fault)
        self._sleep(self._pauses.after(fault))

    def _rest(self) -> None:
        busy = time.monotonic() - self._last_message < self._cadence.busy_for_s
        self._sleep(self._cadence.busy_s if busy else self._cadence.idle_s)

    def _sleep(self, seconds: float) -> None:
        """Wait, with marks: a pause of a minute is no deafness."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped.wait(min(left, MARK_EACH_S)):
            self._board.alive()


def _context(message: Message, node_id: int, name: str) -> Context:
    run_id = message.metadata.run_id
    return Context(run_id=run_id, node_id=node_id, node_config={SITE: name}, state=RecordDict(), run_config={})


def _error_reply(message: Message, error: Exception) -> Message:
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=type(error).__name__), reply_to=message)
