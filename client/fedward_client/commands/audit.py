"""``audit show|verify|export``: what left this site, what was refused and why. Nothing here takes a lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedward_client.books.audit import Written
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import public_key_text
from fedward_common.canonical import canonical
from fedward_common.files import write_new
from fedward_common.report import Report, brief, counted, rows, stamp

__all__ = ["export", "show", "verify"]

SHOWN_LINES = 50
EXPORT_SCHEMA = 1


def show(folder: Folder, *, run: str = "") -> Report:
    """The audit log, oldest first: the last fifty lines, all of them with ``-v``.

    Args:
      folder: of the site.
      run: only lines of runs whose id begins like this.
    """
    books = folder.read_books(folder.load_keys())
    chosen = [written for written in books.audit if written.line.run_id.startswith(run)]
    facts = {"command": "audit show", "lines": [_facts(written) for written in chosen]}
    early, late = chosen[:-SHOWN_LINES], chosen[-SHOWN_LINES:]
    above = (f"{len(early)} earlier lines: see -v",) if early else ()
    return Report(facts=facts, lines=(*above, *map(_line, late)), details=tuple(map(_line, early)))


def verify(folder: Folder) -> Report:
    """Check every signature and link of the log.

    Raises:
      BudgetError: it was truncated, edited, or copied from another site.
    """
    books = folder.read_books(folder.load_keys())
    left = [written.line for written in books.audit if written.line.update_digest]
    last = books.audit[-1].entry
    facts = {
        "bytes_out": sum(line.size for line in left),
        "command": "audit verify",
        "head": last.digest,
        "lines": len(books.audit),
        "messages_out": len(left),
    }
    lines = rows(
        [
            ("audit log", f"{counted(len(books.audit), 'line', 'lines')}, each signed by this site and chained"),
            ("left", f"{counted(len(left), 'message', 'messages')} of {facts['bytes_out']} bytes in all"),
            ("head", last.digest),
        ]
    )
    return Report(facts=facts, lines=lines)


def export(folder: Folder, target: Path) -> Report:
    """Write the signed lines to a new file, with the public keys that check them. No secret is in it.

    Raises:
      OutputError: the file exists, or cannot be written.
    """
    keys = folder.load_keys()
    books = folder.read_books(keys)
    head: dict[str, Any] = {
        "journal": "audit",
        "public_keys": [public_key_text(key) for key in keys.public_keys],
        "rotations": [rotation.to_json() for rotation in keys.rotations],
        "schema": EXPORT_SCHEMA,
    }
    write_new(target, b"".join(canonical(row) + b"\n" for row in (head, *books.audit_rows)))
    facts = {"command": "audit export", "file": str(target), "lines": len(books.audit_rows)}
    note = "it says why each plan was refused: show it to an auditor, not to the coordinator"
    return Report(facts=facts, lines=(f"wrote {counted(len(books.audit_rows), 'line', 'lines')} to {target}", note))


def _line(written: Written) -> str:
    line, entry = written.line, written.entry
    round_ = f"round {line.round}" if line.round else ""
    size = f"{line.size} bytes" if line.size else ""
    parts = (f"{entry.sequence:>6}", stamp(entry.at), line.kind.value, brief(line.run_id), round_, size)
    return "  ".join(part for part in (*parts, line.code, line.reason) if part)


def _facts(written: Written) -> dict[str, Any]:
    return {"at": written.entry.at, "sequence": written.entry.sequence, **written.line.to_json()}
