"""The Door between the side with a network and the side with data: bytes in, bytes out, nothing else.

In a simulation the Door is a :class:`~fedward_client.round.Site` in the same process; in a deployment it will be a stub
to the trainer's process. This module imports neither: the side with a network must not reach torch, data or ledger.

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
