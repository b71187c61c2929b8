"""A journal: an append-only list of JSON bodies, each entry chained by hash to the one before.

``Journal`` is the interface; ``MemoryJournal`` keeps it in memory, for simulation and tests. A site's journals lie on
disk, signed. This module knows neither what a body means nor any file.

Example:
    >>> journal = MemoryJournal()
    >>> first, second = journal.append({"entry": "open"}), journal.append({"entry": "grant"})
    >>> (first.sequence, second.previous == first.digest, journal.head == second.digest)
    (1, True, True)
    >>> journal.knows(first.digest), journal.knows("0" * 64)
    (True, False)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from fedward_common.canonical import canonical
from fedward_common.errors import BudgetError, FedwardError
from fedward_common.privacy import checks

__all__ = ["Entry", "Journal", "MemoryJournal", "linked"]

KEYS = ("at", "body", "digest", "nonce", "previous", "sequence")
NONCE = re.compile(r"([0-9a-f]{32})?")
RESTORE = "restore a true copy from a backup, then reconcile it with the coordinators' records"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a journal.

    Args:
      sequence: counts from 1.
      at: seconds since the epoch; never less than the entry before, whatever the clock does.
      body: a JSON object; not to be changed.
      nonce: 16 random bytes (hex), so that a digest that leaves the site tells nothing of the entry: without them the
        few times at which it can have been written could be tried. "" where nothing is to be hidden: in a simulation.
      previous: the digest of the entry before; "" for the first.
      digest: SHA-256 (hex) of the canonical JSON of the other five.
    """

    sequence: int
    at: float
    body: Mapping[str, Any]
    nonce: str
    previous: str
    digest: str

    @classmethod
    def after(cls, last: Entry | None, body: Mapping[str, Any], *, now: float, nonce: str = "") -> Self:
        """The entry that follows ``last``.

        Args:
          last: the entry before; None for the first.
          body: a JSON object.
          now: seconds since the epoch, by whatever clock.
          nonce: fresh, where the digest may leave the site.

        Guarantees:
          - A clock that was moved back does not move ``at`` back.
          - What is kept is a copy, as JSON would give it back.

        Raises:
          BudgetError: the body is no JSON.
        """
        try:
            kept = json.loads(canonical(body))
        except (TypeError, ValueError):
            raise BudgetError("a journal entry is no JSON", hint="this is a fault of the program") from None
        return cls._chained(last, kept, float(now) if last is None else max(last.at, float(now)), nonce)

    @classmethod
    def _chained(cls, last: Entry | None, body: dict[str, Any], at: float, nonce: str) -> Self:
        sequence, previous = (1, "") if last is None else (last.sequence + 1, last.digest)
        entry = cls(sequence=sequence, at=at, body=body, nonce=nonce, previous=previous, digest="")
        return replace(entry, digest=entry.content_digest)

    @property
    def content_digest(self) -> str:
        """What ``digest`` must be: that of everything else in the entry."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "body": self.body,
            "nonce": self.nonce,
            "previous": self.previous,
            "sequence": self.sequence,
        }

    def to_json(self) -> dict[str, Any]:
        """As a JSON object of its own."""
        return {**self._content(), "body": json.loads(canonical(self.body)), "digest": self.digest}

    @classmethod
    def from_json(cls, value: object, *, last: Entry | None) -> Self:
        """The entry of a JSON object that must follow ``last``.

        Raises:
          BudgetError: it does not, its digest is not that of its content, or it goes back in time.
        """
        try:
            row = checks.table(value, KEYS, where="a journal entry")
            at = checks.number(row["at"], where="at")
            checks.integer(row["sequence"], where="sequence")
        except FedwardError as error:
            raise BudgetError(f"a journal entry is malformed: {error}", hint=error.hint) from None
        if not isinstance(row["body"], dict) or (last is not None and at < last.at) or not _is_nonce(row["nonce"]):
            raise _broken(last)
        entry = cls._chained(last, row["body"], at, row["nonce"])
        if (entry.sequence, entry.previous, entry.digest) != (row["sequence"], row["previous"], row["digest"]):
            raise _broken(last)
        return entry


class Journal(Protocol):
    """An append-only chain of entries. A durable one has an entry on disk before ``append`` returns it."""

    @property
    def head(self) -> str:
        """The digest of the last entry; "" while there is none."""
        ...

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add an entry, or raise and count as not added."""
        ...

    def check_usable(self) -> None:
        """Raise where nothing more can be added."""
        ...

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        ...

    def knows(self, head: str) -> bool:
        """Say whether this was the head at some time; "" was, before the first entry."""
        ...


class MemoryJournal:
    """A journal in memory, safe for threads. Its clock stands still unless one is given, so that runs repeat."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        """Open an empty journal."""
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._heads = {""}

    @property
    def head(self) -> str:
        """The digest of the last entry; "" while there is none."""
        return self._entries[-1].digest if self._entries else ""

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add an entry."""
        with self._lock:
            entry = Entry.after(self._entries[-1] if self._entries else None, body, now=self._clock())
            self._entries.append(entry)
            self._heads.add(entry.digest)
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)

    def knows(self, head: str) -> bool:
        """Say whether this was the head at some time."""
        return head in self._heads

    def check_usable(self) -> None:
        """Memory can always be added to."""

    def export(self) -> list[dict[str, Any]]:
        """All entries as JSON objects; changing them does not change the journal."""
        return [entry.to_json() for entry in self.entries()]

    @classmethod
    def restore(cls, rows: Iterable[object], clock: Callable[[], float] = lambda: 0.0) -> Self:
        """The journal that ``export`` came from.

        Raises:
          BudgetError: a row was changed, left out, or moved.
        """
        journal = cls(clock)
        journal._entries = list(linked(rows))
        journal._heads.update(entry.digest for entry in journal._entries)
        return journal


def linked(rows: Iterable[object]) -> tuple[Entry, ...]:
    """The entries of these JSON objects, or ``BudgetError`` where the chain breaks."""
    entries: list[Entry] = []
    for row in rows:
        entries.append(Entry.from_json(row, last=entries[-1] if entries else None))
    return tuple(entries)


def _is_nonce(value: object) -> bool:
    return isinstance(value, str) and NONCE.fullmatch(value) is not None


def _broken(last: Entry | None) -> BudgetError:
    number = 1 if last is None else last.sequence + 1
    return BudgetError(f"entry {number} does not continue the chain: it was edited, moved or copied", hint=RESTORE)
