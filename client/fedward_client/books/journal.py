"""A journal on disk: JSON lines, chained by hash, each signed by the site, and a signed head in a second file.

    ledger.jsonl   {"at","body","digest","nonce","previous","sequence","signature"} a line, canonical JSON
    ledger.head    two slots: how many entries, how many bytes, what they hash to; signed

An entry is fsynced, then the head that knows it; only then is it given back. So after a crash at most one entry lies
beyond the head, whole or torn. A whole one stays; a torn one was never given back, and goes. Anything else is a file
that was cut, edited, put in another order, or copied from another site, and is refused. What cannot be seen from one
folder is an older copy of both files: that takes a witness.

Example:
    >>> import tempfile
    >>> from fedward_common.codec import new_key
    >>> path, key = Path(tempfile.mkdtemp()) / "ledger.jsonl", new_key()
    >>> with DurableJournal.create(path, name="ledger", key=key) as journal:
    ...     head = journal.append({"entry": "open"}).digest
    >>> with DurableJournal.open(path, name="ledger", key=key) as journal:
    ...     journal.head == head
    True
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_client.books.files import Files, disk_errors
from fedward_client.books.lines import Content, Line, edited, judged, parsed_lines
from fedward_client.books.seals import Head, Seal, first_slots, newest
from fedward_common.errors import BudgetError
from fedward_common.privacy.journal import Entry

__all__ = ["DurableJournal", "head_path"]

RESTORE = "restore a true copy from a backup, then reconcile it with the coordinators' records"
NONCE_BYTES = 16
READS = 5  # of a journal whose writer is at work between the reading of its two files


class DurableJournal:
    """One writer's journal on disk, safe for threads.

    Guarantees:
      - What ``append`` gave back is found again after a crash at any instant, whole and in place.
      - A file that was truncated, edited, reordered, or signed by another site is refused.
      - Every entry holds a fresh nonce, so that a head tells nothing of the entries behind it.
      - After a disk error nothing more is written until the journal is opened again.
    """

    def __init__(self, path: Path, seal: Seal, files: Files, clock: Callable[[], float]) -> None:
        """For ``create`` and ``open``, which everyone else uses."""
        self._path, self._seal, self._files, self._clock = path, seal, files, clock
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._usable = False
        self._descriptors: list[int] = []
        self._last: Entry | None = None
        self._heads = {""}
        self._length, self._hash = 0, hashlib.sha256()
        self._just_read: tuple[Entry, ...] | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        key: Ed25519PrivateKey,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Make an empty journal and open it. One whose making was cut off is made anew.

        Args:
          path: of the lines; the head lies beside it.
          name: "ledger" or "audit"; part of what is signed.
          key: the site's signing key.
          files: the file layer.
          clock: seconds since the epoch.

        Raises:
          BudgetError: it exists, or its head knows entries.
          OutputError: the folder cannot be written.
        """
        files, seal = files or Files(), Seal.of(name, key)
        with disk_errors(f"the {name}"):
            if os.path.lexists(path):
                raise BudgetError(f"there is a {name} already, and it is never overwritten", hint="open it")
            if os.path.lexists(head_path(path)) and newest(files.read(head_path(path)), seal).head.sequence:
                raise BudgetError(f"the {name} is missing, and its head knows entries", hint=RESTORE)
            files.create(head_path(path), first_slots(seal))
            files.create(path, b"")
        return cls.open(path, name=name, key=key, files=files, clock=clock)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str,
        key: Ed25519PrivateKey,
        earlier: tuple[Ed25519PublicKey, ...] = (),
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open a journal, check all of it, and become its one writer.

        Args:
          path: of the lines.
          name: as when it was created.
          key: the site's signing key.
          earlier: public keys that the site signed with before.
          files: the file layer.
          clock: seconds since the epoch.

        Raises:
          BudgetError: missing, damaged, cut off, of another site, or open elsewhere.
          OutputError: it cannot be read or written.
        """
        journal = cls(path, Seal.of(name, key, earlier), files or Files(), clock)
        try:
            with disk_errors(f"the {name}"):
                journal._open()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def read(
        cls, path: Path, *, name: str, public_keys: tuple[Ed25519PublicKey, ...], files: Files | None = None
    ) -> tuple[dict[str, Any], ...]:
        """The signed lines as JSON, with every signature checked; changes nothing and takes no lock.

        Raises:
          BudgetError: missing, damaged, cut off, or of another site.
          OutputError: it cannot be read.
        """
        seal, files = Seal(name=name, public_keys=public_keys), files or Files()
        with disk_errors(f"the {name}"):
            lines = _read_beside_a_writer(path, seal, files).lines
        if not all(seal.entry_holds(line.entry.digest, line.signature) for line in lines):
            raise edited(seal)
        return tuple(line.to_json() for line in lines)

    # ---- Journal -------------------------------------------------------------------
    @property
    def head(self) -> str:
        """The digest of the last entry; "" while there is none."""
        return self._last.digest if self._last else ""

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add an entry; when this returns, it is on disk and its head knows it.

        Raises:
          BudgetError: closed, failed before, or in a forked child.
          OutputError: the disk refused. The entry may be found when the journal is opened again, or not.
        """
        with self._lock, disk_errors(f"the {self._seal.name}"):
            self.check_usable()
            self._usable = False  # whatever is half written is for the next opening to judge
            entry = Entry.after(self._last, body, now=self._clock(), nonce=os.urandom(NONCE_BYTES).hex())
            data = Line(entry=entry, signature=self._seal.sign_entry(entry.digest)).to_bytes()
            self._files.write_at(self._descriptors[0], data, self._length)
            self._files.fsync(self._descriptors[0])
            self._confirm(entry, data)
            self._usable = True
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first, read and checked again.

        Raises:
          BudgetError: the file is no longer what it was.
        """
        with self._lock, disk_errors(f"the {self._seal.name}"):
            if self._just_read is not None:  # a ledger asks as soon as it is opened: judge the file once, not twice
                entries, self._just_read = self._just_read, None
                return entries
            content = self._files.read(self._path)[: self._length]
            if hashlib.sha256(content).digest() != self._hash.digest():
                raise edited(self._seal)
            return tuple(line.entry for line in parsed_lines(content, self._seal))

    def knows(self, head: str) -> bool:
        """Say whether this was the head at some time."""
        return head in self._heads

    # ---- files -----------------------------------------------------------------------
    def close(self) -> None:
        """Let another writer have it. Closing twice changes nothing."""
        with self._lock:
            self._usable = False
            while self._descriptors:
                self._files.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        """For ``with``."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _open(self) -> None:
        _check_present(self._path)
        for path in (self._path, head_path(self._path)):
            self._descriptors.append(self._files.open(path))
            self._files.lock(self._descriptors[-1])
        content = _read(self._path, self._seal, self._files)
        for line in content.known:
            self._take(line.entry, line.to_bytes())
        beyond = content.beyond.to_bytes() if content.beyond else b""
        self._files.truncate(self._descriptors[0], self._length + len(beyond))
        # a killed process may have left in memory what was just read: nothing may build on it before it is on disk
        for descriptor in self._descriptors:
            self._files.fsync(descriptor)
        self._files.fsync_folder(self._path.parent)
        if content.beyond is not None:
            self._confirm(content.beyond.entry, beyond)
        self._just_read = tuple(line.entry for line in content.lines)
        self._usable = True

    def _confirm(self, entry: Entry, line: bytes) -> None:
        """Let the head know an entry that is on disk."""
        content = self._hash.copy()
        content.update(line)
        head = Head(
            sequence=entry.sequence,
            length=self._length + len(line),
            content=content.hexdigest(),
            digest=entry.digest,
        )
        self._files.write_at(self._descriptors[1], head.to_slot(self._seal), head.slot_offset)
        self._files.fsync(self._descriptors[1])
        self._take(entry, line)

    def _take(self, entry: Entry, line: bytes) -> None:
        self._just_read = None
        self._last = entry
        self._heads.add(entry.digest)
        self._length += len(line)
        self._hash.update(line)

    def check_usable(self) -> None:
        """Raise where nothing more can be written: in a forked process, closed, or after a disk error."""
        if self._process != os.getpid():
            raise BudgetError("a forked process may not write the books", hint="this is a fault of the program")
        if not self._usable:
            raise BudgetError(
                f"the {self._seal.name} is closed, or the disk refused a write of it",
                hint="mend the disk, then start fedward-client again",
            )


def head_path(path: Path) -> Path:
    """Where a journal's head lies."""
    return path.with_suffix(".head")


def _read_beside_a_writer(path: Path, seal: Seal, files: Files) -> Content:
    for _ in range(READS - 1):
        try:
            return _read(path, seal, files)
        except BudgetError:
            time.sleep(0.01)
    return _read(path, seal, files)


def _read(path: Path, seal: Seal, files: Files) -> Content:
    _check_present(path)
    return judged(files.read(head_path(path)), files.read(path), seal)


def _check_present(path: Path) -> None:
    for each in (path, head_path(path)):
        if not os.path.lexists(each):
            raise BudgetError(f"{each.name} is missing", hint=f"for a new site create it; else {RESTORE}")
