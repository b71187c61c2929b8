"""What a person or a program sees of a command: plain lines, one JSON object, or nothing.

Errors go to stderr as two lines in every mode. Nothing here knows what a command does.

Example:
    >>> from fedward_client.commands.report import Report
    >>> show(Report(facts={"units": 2}, lines=("2 units",)), Output(json=True))
    {"units": 2}
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from fedward_client.commands.report import Report

__all__ = ["Output", "complain", "show"]


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
        sys.stdout.write("".join(f"{_printable(line)}\n" for line in lines))
    sys.stdout.flush()


def complain(what: str, hint: str) -> None:
    """Write an error to stderr."""
    sys.stderr.write(f"fedward: error: {_printable(what)}\nhint: {_printable(hint)}\n")


def _printable(text: str) -> str:
    """Without what a terminal would obey: some texts come from the other side."""
    return "".join(character if character.isprintable() else "?" for character in text)
