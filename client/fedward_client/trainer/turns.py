"""One plan at a time, in one thread: who waits, who is sent away, and what becomes of a call that is given up.

A turn ends when its reply is due, not when the work is done. Otherwise a courier could ask again and again, and learn
from the moment in which it is no longer sent away when the work ended.

Example:
    >>> from fedward_client.installation.site_file import ReleaseAt
    >>> turns = Turns(lambda data: data, Slots(release_at=ReleaseAt.READY, slot_s=1))
    >>> turn = turns.take()
    >>> turn.submit(b"plan")
    >>> turn.wait(5), turn.reply
    (True, b'plan')
    >>> turns.close(grace_s=5)
    True
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

from fedward_client.trainer.slots import Slots

__all__ = ["Turn", "Turns"]

WAITING = 2
LOG = logging.getLogger(__name__)


class _State(Enum):
    RECEIVING = auto()
    WAITING = auto()
    RUNNING = auto()
    OVER = auto()


class Turn:
    """One plan's place in the queue. It ends with ``leave``, or when its reply is due."""

    def __init__(self, turns: Turns) -> None:
        """Made by ``Turns.take``."""
        self._turns, self._state = turns, _State.RECEIVING
        self._settled = threading.Event()
        self.arrived = 0.0
        self.data, self.reply = b"", b""

    def submit(self, data: bytes) -> None:
        """Hand over the whole plan. From now on the slots are counted."""
        self.data, self.arrived = data, time.monotonic()
        self._turns._enqueue(self)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether the turn is over. ``reply`` is then the reply, or empty where there is none."""
        return self._settled.wait(max(0.0, seconds))

    def leave(self) -> None:
        """Give the call up. A plan whose turn has not come never reaches the site; one that is worked on, goes on."""
        self._turns._leave(self)


class Turns:
    """The thread that works, and the queue before it.

    Guarantees:
      - The site answers one plan at a time, always in the same thread.
      - At most ``WAITING`` plans wait; the next one is sent away.
      - A plan that was given up before its turn never reaches the site.
      - Work that has begun goes on to its end, whoever waits for it: it is paid for.
      - No place becomes free before a reply is due.
    """

    def __init__(
        self, answer: Callable[[bytes], bytes], slots: Slots, *, after: Callable[[], None] = lambda: None
    ) -> None:
        """Start the thread.

        Args:
          answer: the site's.
          slots: when replies are due.
          after: called after each turn: no earlier than its reply was due.
        """
        self._answer, self._slots, self._after = answer, slots, after
        self._lock, self._taken = threading.Lock(), 0
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
        self._thread.start()

    def take(self) -> Turn | None:
        """A place, before anything of a plan is received; None where there is no room."""
        with self._lock:
            if self._closing.is_set() or self._taken > WAITING:
                return None
            self._taken += 1
        return Turn(self)

    def close(self, *, grace_s: float) -> bool:
        """Take no more plans, send away those that wait, and let the running one end.

        Returns:
          Whether the thread has ended; after False the process must end without tidying up behind it.
        """
        with self._lock:
            self._closing.set()
            self._queue.put(None)
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def _enqueue(self, turn: Turn) -> None:
        with self._lock:
            if turn._state is _State.RECEIVING and not self._closing.is_set():
                turn._state = _State.WAITING
                self._queue.put(turn)
            elif turn._state is _State.RECEIVING:
                self._end(turn)

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            if turn._state in (_State.RECEIVING, _State.WAITING):
                self._end(turn)

    def _run(self) -> None:
        while (turn := self._queue.get()) is not None:
            if self._begin(turn):
                turn.reply = self._work(turn)
                with self._lock:
                    self._end(turn)
                self._after()

    def _begin(self, turn: Turn) -> bool:
        with self._lock:
            if turn._state is not _State.WAITING:
                return False
            if self._closing.is_set():
                self._end(turn)
                return False
            turn._state = _State.RUNNING
            return True

    def _end(self, turn: Turn) -> None:
        turn._state, turn.data = _State.OVER, b""
        turn._settled.set()
        self._taken -= 1

    def _work(self, turn: Turn) -> bytes:
        reply = b""
        try:
            reply = self._answer(turn.data)
        except BaseException as error:  # the site answers everything; of what it cannot, only the type is told, here
            LOG.error("a plan got no answer: %s", type(error).__name__)
        due = self._slots.due(turn.arrived, time.monotonic())
        ended = self._closing.wait(max(0.0, due - time.monotonic()))
        return b"" if ended else reply  # a reply before it is due stays in the outbox
