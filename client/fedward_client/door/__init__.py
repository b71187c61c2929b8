"""The Door between the side with a network and the side with data: bytes in, bytes out, nothing else.

In a simulation the Door is a :class:`~fedward_client.round.Site` in the same process. In a deployment it is a
:class:`~fedward_client.door.stub.RemoteDoor`: a stub to the trainer's process, over a Unix socket.

    place        -> where the socket lies, and who may open it
    credentials  -> keys that both processes get anew at each start
    parts        -> long messages in parts, both directions, with limits
    stub         -> the courier's end
    door.proto   -> what passes; the trainer's end is ``trainer.service``

Nothing here imports the site: the side with a network must not reach torch, data or ledger.

Example:
    >>> class Echo:
    ...     def answer(self, data: bytes) -> bytes:
    ...         return data
    >>> door: Door = Echo()
    >>> door.answer(b"signed plan")
    b'signed plan'
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Door"]


class Door(Protocol):
    """Whoever answers a plan."""

    def answer(self, data: bytes) -> bytes:
        """Serve one message: a signed plan in, a signed update or refusal out."""
        ...
