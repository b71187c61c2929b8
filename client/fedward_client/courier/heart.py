"""The heartbeats: they tell the operator that this site is there, also while the loop waits for training to end.

They have a connection of their own, so that a long upload does not hold them up.
"""

from __future__ import annotations

import threading
from typing import Protocol

from fedward_client.courier.faults import Fault, Pauses
from fedward_client.courier.status import Board

__all__ = ["Beating", "Heart"]

EACH_S = 15.0  # Flower takes a node for offline after 60 s without one
LATEST_S = 5.0


class Beating(Protocol):
    """What a heart needs of a ``Fleet``."""

    node_id: int | None

    def heartbeat(self) -> None:
        """Say that this node is there."""
        ...


class Heart:
    """A thread that sends heartbeats for the node that it is told to follow."""

    def __init__(self, fleet: Beating, board: Board, *, each_s: float = EACH_S) -> None:
        """Start nothing yet."""
        self._fleet, self._board, self._each_s = fleet, board, each_s
        self._pauses = Pauses()
        self._stopped, self._changed = threading.Event(), threading.Event()
        self._node_id: int | None = None
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def follow(self, node_id: int | None) -> None:
        """Beat for this node from now on; None: for none."""
        if node_id != self._node_id:
            self._node_id = node_id
            self._changed.set()

    def stop(self) -> None:
        """Beat no more. Returns at once."""
        self._stopped.set()
        self._changed.set()

    def join(self, seconds: float) -> None:
        """Wait for the last beat."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = self._each_s if self._node_id is None else self._beat()
            self._changed.wait(pause)
            self._changed.clear()

    def _beat(self) -> float:
        self._fleet.node_id = self._node_id
        try:
            self._fleet.heartbeat()
        except Fault as fault:
            self._board.missed(fault)
            return min(self._pauses.after(fault), LATEST_S)
        self._board.beat()
        self._pauses.clear()
        return self._each_s
