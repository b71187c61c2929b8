"""Finished replies, stored before they are released and sent again byte for byte, for the same plan id alone.

    <number>-<plan id>.reply   header, canonical JSON and a line end | the reply's bytes

The header's digest covers run, plan and bytes. A file comes under its name whole or not at all. The newest four replies
of a run are kept; a plan whose reply is gone stays started in the ledger, and is never trained again.

Example:
    >>> import tempfile
    >>> outbox = Outbox(Path(tempfile.mkdtemp()))
    >>> outbox.store("run-1", "ab" * 32, b"signed bytes")
    >>> outbox.find("ab" * 32), outbox.find("cd" * 32)
    (b'signed bytes', None)
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedward_client.books.files import Files, disk_errors
from fedward_common.canonical import canonical
from fedward_common.checks import hex_digest
from fedward_common.errors import BudgetError, FedwardError, OutputError
from fedward_common.privacy import checks

__all__ = ["Outbox"]

SCHEMA = 1
KEPT = 4
SUFFIX = ".reply"
WHAT = "the outbox"
KEYS = ("plan_id", "run_id", "schema", "sha256")


class Outbox:
    """The stored replies of a site, in a folder of their own, behind the ledger's lock.

    Guarantees:
      - When ``store`` returns, the reply is on disk, whole.
      - ``find`` gives the very bytes that were stored, or refuses.
      - A plan id has one reply for ever.
    """

    def __init__(self, folder: Path, *, files: Files | None = None) -> None:
        """Take in what is stored.

        Raises:
          OutputError: the folder cannot be read or written.
        """
        self._folder, self._files = folder, files or Files()
        self._lock = threading.RLock()
        self._names: dict[str, str] = {}  # plan id -> name; oldest first
        self._runs: dict[str, list[str]] = {}
        self._number = 0
        with disk_errors(WHAT):
            self._files.remove_drafts(folder)
            self._files.fsync_folder(folder)  # a name seen now must not be gone after a crash
            for name in self._files.names(folder):
                if name.endswith(SUFFIX):
                    self._index(name)
            for run_id in tuple(self._runs):
                self._forget_old(run_id)

    def store(self, run_id: str, plan_id: str, reply: bytes) -> None:
        """Keep a finished reply; the same again changes nothing.

        Raises:
          BudgetError: the plan has another reply already.
          OutputError: the disk refused; nothing is stored. Or the stored one is damaged.
        """
        hex_digest("plan_id", plan_id)
        with self._lock:
            stored = self.find(plan_id)
            if stored is not None:
                if stored != reply:
                    raise BudgetError("a plan has one reply already", hint="send the stored reply again")
                return
            header = {"plan_id": plan_id, "run_id": run_id, "schema": SCHEMA, "sha256": _sum(run_id, plan_id, reply)}
            name = f"{self._number + 1:010d}-{plan_id}{SUFFIX}"
            with disk_errors(WHAT):
                self._files.create(self._folder / name, canonical(header) + b"\n" + reply)
                self._note(name, run_id)
                self._forget_old(run_id)

    def find(self, plan_id: str) -> bytes | None:
        """The stored reply of this plan; None where there is none.

        Raises:
          OutputError: it is damaged, and nothing is sent.
        """
        with self._lock, disk_errors(WHAT):
            name = self._names.get(plan_id)
            return None if name is None else self._reply(name, plan_id)

    def _reply(self, name: str, plan_id: str) -> bytes:
        head, _, reply = self._files.read(self._folder / name).partition(b"\n")
        row = _parsed(head)
        if row is None or row["plan_id"] != plan_id or row["sha256"] != _sum(str(row["run_id"]), plan_id, reply):
            raise OutputError("a stored reply is damaged", hint="it is not sent; ask the operator for a new run")
        return reply

    def _index(self, name: str) -> None:
        row = None
        with suppress(OSError):  # a file that cannot be read stays listed: its plan alone is refused
            row = _parsed(self._files.read(self._folder / name).partition(b"\n")[0])
        self._note(name, str(row["run_id"]) if row else "")

    def _note(self, name: str, run_id: str) -> None:
        number, _, plan_id = name.removesuffix(SUFFIX).partition("-")
        self._number = max(self._number, int(number) if number.isdecimal() else 0)
        self._names[plan_id] = name
        self._runs.setdefault(run_id, []).append(plan_id)

    def _forget_old(self, run_id: str) -> None:
        plans = self._runs[run_id]
        for plan_id in plans[:-KEPT] if run_id else ():  # a damaged one stays, so that its plan is refused
            self._files.remove(self._folder / self._names.pop(plan_id))
        self._runs[run_id] = plans[-KEPT:] if run_id else plans


def _sum(run_id: str, plan_id: str, reply: bytes) -> str:
    return hashlib.sha256(canonical([run_id, plan_id]) + reply).hexdigest()


def _parsed(head: bytes) -> dict[str, Any] | None:
    try:
        row = checks.table(json.loads(head), KEYS, where="a stored reply")
    except (ValueError, RecursionError, FedwardError):
        return None
    return row if row["schema"] == SCHEMA else None
