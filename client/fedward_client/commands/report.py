"""What a command has to say: facts for programs, lines for people, and the reason why it is not content.

Example:
    >>> Report(facts={"units": 2}, lines=("2 units",)).problem is None
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedward_common.errors import FedwardError

__all__ = ["Report", "counted", "rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The outcome of a command.

    Attributes:
      facts: what ``--json`` prints, as one object.
      lines: what a person reads.
      details: further lines, shown with ``-v``.
      problem: why the command ends with exit code 2 although it has something to show.
    """

    facts: Mapping[str, Any]
    lines: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    problem: FedwardError | None = None


def counted(number: int, one: str, several: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else several}"


def rows(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """A label and a text a line, the texts below each other."""
    held = list(pairs)
    width = max((len(label) for label, _ in held), default=0)
    return tuple(f"{label:<{width}}  {text}" for label, text in held)
