"""What a command has to say, and how it is shown: plain lines for people, one JSON object for programs, or nothing.

Errors go to stderr as two lines in every mode. Nothing here knows what a command does.

Example:
    >>> show(Report(facts={"units": 2}, lines=("2 units",)), Output(json=True))
    {"units": 2}
    >>> table(("name", "age"), [("st-elsewhere", "3 s"), ("b", "12 min")])
    ('name          age', 'st-elsewhere  3 s', 'b             12 min')
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fedward_common.errors import FedwardError

__all__ = [
    "Output",
    "Report",
    "brief",
    "complain",
    "counted",
    "printable",
    "rounded_up",
    "rows",
    "show",
    "stamp",
    "table",
]

GAP = "  "
SHOWN_DIGITS = 12


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


@dataclass(frozen=True, kw_only=True)
class Output:
    """How much is shown: ``json`` alone, everything with ``verbose``, with ``quiet`` nothing but problems."""

    json: bool = False
    verbose: bool = False
    quiet: bool = False


def show(report: Report, output: Output) -> None:
    """Write a report to stdout."""
    if output.json:
        sys.stdout.write(json.dumps(report.facts, allow_nan=False) + "\n")
    elif not output.quiet or report.problem is not None:
        lines = (*report.lines, *(report.details if output.verbose else ()))
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def complain(what: str, hint: str, *, word: str = "error") -> None:
    """Write an error, or a note, to stderr."""
    sys.stderr.write(f"fedward: {word}: {printable(what)}\nhint: {printable(hint)}\n")


def brief(digest: str) -> str:
    """As much of a run id or another digest as a person needs to tell it from others."""
    return digest[:SHOWN_DIGITS]


def stamp(at: float) -> str:
    """A moment (Unix time) for people: in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at))


def counted(number: int, one: str, several: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else several}"


def rounded_up(epsilon: float, *, digits: int) -> str:
    """A figure with so many digits after the point, never below the true one."""
    near = f"{epsilon:.{digits}f}"
    return f"{Decimal(near) + Decimal(1).scaleb(-digits):f}" if float(near) < epsilon else near


def rows(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """A label and a text a line, the texts below each other."""
    held = list(pairs)
    width = max((len(label) for label, _ in held), default=0)
    return tuple(f"{label:<{width}}{GAP}{text}" for label, text in held)


def table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Columns below their heads, as wide as their widest cell."""
    every = [list(head), *(list(row) for row in cells)]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return tuple(
        GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def printable(text: str) -> str:
    """One line without what a terminal would obey: some texts come from the other side."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)
