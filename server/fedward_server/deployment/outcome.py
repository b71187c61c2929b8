"""What desk and conductor say to each other: the order on the way in, the exit code on the way out.

One two-sided module, so that the halves cannot drift. It imports nothing but the standard library and our errors.

Example:
    >>> Order.from_bytes(Order(port=8000, token="t").to_bytes()).port
    8000
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Self

from fedward_common.errors import InputError

__all__ = ["LONGEST_ORDER", "Ending", "Order"]

LONGEST_ORDER = 1 << 16


class Ending(IntEnum):
    """How a conductor ended; any other exit code is a crash."""

    FINISHED = 0  # every round is done
    UNUSABLE = 3  # the run cannot go on as it is: a damaged bundle or checkpoint, no disk space
    STOPPED = 10  # it was told to end: by a person, or by a desk that ends
    ABANDONED = 11  # a round found too few answers, also after retries
    LOST = 12  # the SuperLink gave the task up: the run goes on in a new Flower run


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the desk hands to a conductor."""

    port: int
    token: str

    def __repr__(self) -> str:
        """Without the token."""
        return f"Order(port={self.port})"

    def to_bytes(self) -> bytes:
        """For ``from_bytes``."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read ``to_bytes`` back.

        Raises:
          InputError: this is no order.
        """
        try:
            row = json.loads(content)
            return cls(port=int(row["port"]), token=str(row["token"]))
        except (ValueError, KeyError, TypeError):
            raise InputError("this is no order of the desk", hint="`fedward-server start` starts conductors") from None
