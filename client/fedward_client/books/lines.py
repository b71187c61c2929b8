"""Reading a journal's two files and judging them: which entries there are, and whether all of it is as it was written.

The head is believed first, because it is signed; then the bytes that it covers must hash to what it says. One entry may
lie beyond it, whole or torn, because a crash can fall between the entry and its head. This module writes nothing.

Example:
    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> from fedward_client.books.seals import first_slots
    >>> seal = Seal.of("ledger", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    >>> judged(first_slots(seal), b"torn", seal).known
    ()
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fedward_client.books.seals import Seal, newest
from fedward_common.canonical import canonical
from fedward_common.errors import BudgetError
from fedward_common.privacy.journal import Entry

__all__ = ["Content", "Line", "edited", "judged", "parsed_lines"]

KEYS = {"at", "body", "digest", "nonce", "previous", "sequence", "signature"}
RESTORE = "restore a true copy from a backup, then reconcile it with the coordinators' records"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """An entry and the site's signature (hex) under its digest."""

    entry: Entry
    signature: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**self.entry.to_json(), "signature": self.signature}

    def to_bytes(self) -> bytes:
        """As it lies in the file: canonical JSON and a line end."""
        return canonical(self.to_json()) + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """The lines that the head knows, and the one that it may not know yet."""

    known: tuple[Line, ...]
    beyond: Line | None

    @property
    def lines(self) -> tuple[Line, ...]:
        """Both together."""
        return (*self.known, self.beyond) if self.beyond else self.known


def judged(heads: bytes, data: bytes, seal: Seal) -> Content:
    """The content of a journal.

    Args:
      heads: the bytes of its head file.
      data: the bytes of its lines.
      seal: whose signatures to accept.

    Raises:
      BudgetError: truncated, edited, reordered, or signed by another site.
    """
    found = newest(heads, seal)
    head, length = found.head, found.head.length
    if len(data) < length:
        raise BudgetError(f"the {seal.name} was cut off: its head knows more of it", hint=RESTORE)
    if hashlib.sha256(data[:length]).hexdigest() != head.content:
        raise edited(seal)
    known = parsed_lines(data[:length], seal)
    last = known[-1].entry if known else None
    if len(known) != head.sequence or (last.digest if last else "") != head.digest:
        raise edited(seal)
    beyond = _beyond(data[length:], last, seal)
    if found.torn and beyond is None:  # an entry is on disk before its head is written: where is it?
        raise BudgetError(f"the {seal.name} was cut off, or its head is damaged", hint=RESTORE)
    return Content(known=known, beyond=beyond)


def parsed_lines(data: bytes, seal: Seal) -> tuple[Line, ...]:
    """The lines of these bytes, each following the one before, or ``BudgetError``. Signatures are not checked."""
    lines: list[Line] = []
    for raw in data.splitlines(keepends=True):
        line = _line(raw, lines[-1].entry if lines else None)
        if line is None:
            raise edited(seal)
        lines.append(line)
    return tuple(lines)


def edited(seal: Seal) -> BudgetError:
    """The refusal of a journal that is not as it was written."""
    return BudgetError(f"the {seal.name} was edited, or copied from another site", hint=RESTORE)


def _beyond(tail: bytes, last: Entry | None, seal: Seal) -> Line | None:
    """The entry beyond the head; None where there is none, or where it is torn and was therefore never given back."""
    whole = [raw for raw in tail.splitlines(keepends=True) if _parsed(raw) is not None]
    if not whole:
        return None
    line = _line(whole[0], last) if len(whole) == 1 and tail.startswith(whole[0]) else None
    if line is None or not seal.entry_holds(line.entry.digest, line.signature):
        raise edited(seal)
    return line


def _line(raw: bytes, last: Entry | None) -> Line | None:
    row = _parsed(raw)
    if row is None:
        return None
    entry = Entry.from_json({key: row[key] for key in KEYS - {"signature"}}, last=last)
    return Line(entry=entry, signature=row["signature"]) if canonical(row) + b"\n" == raw else None


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(raw)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() == KEYS and raw.endswith(b"\n") else None
