"""All books of a site together: made once, opened for writing, or read beside whoever writes.

    books/  ledger.jsonl  ledger.head  audit.jsonl  audit.head  units/  outbox/

This module knows no site file and no policy: which budget, which keys and whose lock is the folder's affair.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_client.books.audit import Audit, AuditLine, Kind, Written
from fedward_client.books.files import Files, disk_errors
from fedward_client.books.journal import DurableJournal
from fedward_client.books.outbox import Outbox
from fedward_client.books.units import UnitRegister
from fedward_client.installation.keys import SiteKeys
from fedward_common.errors import BudgetError
from fedward_common.privacy.facts import Bearer, Granted, fact_of
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.journal import Entry, MemoryJournal
from fedward_common.privacy.ledger import Ledger

__all__ = ["Books", "BooksRead", "lines_beyond", "make_books", "open_books", "read_books", "uncounted_runs"]

LEDGER, AUDIT, UNITS, OUTBOX = "ledger.jsonl", "audit.jsonl", "units", "outbox"
OF_COUNTED_RUNS = (Kind.RELEASE, Kind.RESEND, Kind.HOLD, Kind.CLEAR, Kind.RECONCILE)  # a refused run may have no grant
READS = 20  # while a trainer replaces the register between the reading of two books


@dataclass(frozen=True, kw_only=True, eq=False)
class Books:
    """Open for writing, in one process at a time. ``first`` is the digest of the ledger's opening entry."""

    ledger: Ledger
    audit: Audit
    outbox: Outbox
    first: str
    register: UnitRegister

    def note(self, kind: Kind, *, run_id: str = "", reason: str = "") -> None:
        """Write an audit line that says where the ledger stands."""
        sequence, head = self.ledger.sequence, self.ledger.head
        self.audit.write(AuditLine(kind=kind, run_id=run_id, reason=reason, ledger_sequence=sequence, ledger_head=head))


@dataclass(frozen=True, kw_only=True, eq=False)
class BooksRead:
    """As they were at one moment. What is written to this ledger goes nowhere.

    ``ledger_rows`` and ``audit_rows`` are the signed lines, for whoever wants to check them alone.
    """

    ledger: Ledger
    audit: tuple[Written, ...]
    ledger_rows: tuple[Mapping[str, Any], ...]
    audit_rows: tuple[Mapping[str, Any], ...]
    first: str
    register: UnitRegister

    def bearers(self, run_id: str) -> tuple[bytes, ...] | None:
        """The keyed digests of the units that bear a run, perhaps none at all; None where the whole source does."""
        grants = [fact for row in self.ledger_rows if isinstance(fact := fact_of(row["body"]), Granted)]
        borne_by_units = {fact.grant.run_id for fact in grants if fact.bearer is Bearer.UNITS}
        return self.register.bearers(run_id) if run_id in borne_by_units else None


def make_books(folder: Path, budget: Budget, keys: SiteKeys) -> None:
    """Make all books in a folder that does not exist yet, and open the ledger with its budget for life.

    Raises:
      OutputError: the disk refused.
    """
    with disk_errors("the books"):
        for each in (folder, folder / UNITS, folder / OUTBOX):
            each.mkdir(mode=0o700)
        register = UnitRegister(folder / UNITS, key=keys.units)
        with (
            DurableJournal.create(folder / LEDGER, name="ledger", key=keys.signing) as journal,
            DurableJournal.create(folder / AUDIT, name="audit", key=keys.signing) as trail,
        ):
            ledger = Ledger.create(journal, register, budget=budget, owner=keys.origin)
            books = Books(
                ledger=ledger, audit=Audit(trail), outbox=Outbox(folder / OUTBOX), first=ledger.head, register=register
            )
            books.note(Kind.OPENED, reason="the ledger was opened with its budget")


@contextlib.contextmanager
def open_books(folder: Path, keys: SiteKeys) -> Iterator[Books]:
    """All books, checked and open for writing.

    Raises:
      BudgetError: a book is missing, damaged, cut off, of another site, under another key, or open elsewhere.
      OutputError: a book cannot be read or written.
    """
    earlier = keys.public_keys[1:]
    with (
        DurableJournal.open(folder / LEDGER, name="ledger", key=keys.signing, earlier=earlier) as journal,
        DurableJournal.open(folder / AUDIT, name="audit", key=keys.signing, earlier=earlier) as trail,
    ):
        register = UnitRegister(folder / UNITS, key=keys.units)
        ledger = Ledger.open(journal, register, owner=keys.origin)
        first = journal.entries()[0].digest
        yield Books(ledger=ledger, audit=Audit(trail), outbox=Outbox(folder / OUTBOX), first=first, register=register)


def read_books(folder: Path, keys: SiteKeys) -> BooksRead:
    """Ledger and audit log, every signature checked; takes no lock, changes nothing, and may run beside a writer.

    Raises:
      BudgetError: a book is missing, damaged, cut off, of another site, or under another key.
      OutputError: a book cannot be read.
    """
    for _ in range(READS - 1):
        try:
            return _read(folder, keys)
        except BudgetError:
            time.sleep(0.01)
    return _read(folder, keys)


def lines_beyond(ledger: Ledger, lines: Sequence[Written]) -> tuple[Written, ...]:
    """The audit lines that name a ledger head which this ledger never had.

    Every line names the head that was on disk before the line was written. So one such line means that the ledger was
    set back, or cut off by whoever holds an earlier key.
    """
    return tuple(each for each in lines if each.line.ledger_head and not ledger.knows(each.line.ledger_head))


def uncounted_runs(ledger: Ledger, lines: Sequence[Written]) -> tuple[str, ...]:
    """The runs that did something by the audit log's word and cost nothing by the ledger's: their spending is lost."""
    runs = dict.fromkeys(each.line.run_id for each in lines if each.line.kind in OF_COUNTED_RUNS and each.line.run_id)
    return tuple(run for run in runs if not ledger.granted(run))


def _read(folder: Path, keys: SiteKeys) -> BooksRead:
    ledger_rows = DurableJournal.read(folder / LEDGER, name="ledger", public_keys=keys.public_keys)
    audit_rows = DurableJournal.read(folder / AUDIT, name="audit", public_keys=keys.public_keys)
    register = UnitRegister(folder / UNITS, key=keys.units, files=_OnlyReading())
    ledger = Ledger.open(_restored(ledger_rows), register, owner=keys.origin)
    audit = Audit(_restored(audit_rows)).lines()
    first = str(ledger_rows[0]["digest"])
    return BooksRead(
        ledger=ledger, audit=audit, ledger_rows=ledger_rows, audit_rows=audit_rows, first=first, register=register
    )


def _restored(rows: tuple[Mapping[str, Any], ...]) -> MemoryJournal:
    keys = Entry.__dataclass_fields__
    return MemoryJournal.restore({name: row[name] for name in keys} for row in rows)


class _OnlyReading(Files):
    """The disk for a reader: a register that is looked at must not tidy up behind its writer."""

    def remove(self, path: Path) -> None:
        """Nothing."""

    def remove_drafts(self, folder: Path) -> None:
        """Nothing."""
