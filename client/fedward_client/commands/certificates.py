"""``certificate RUN`` and ``certificate verify FILE``: a signed file that says what a run cost, for others to check."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedward_client.books.audit import AuditLine, Kind, Written
from fedward_client.certificates.certificate import Subject, Trust, Verified, make, verify, write
from fedward_client.certificates.commitment import new_nonce
from fedward_client.commands.ledger import find_run
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import read_public_key
from fedward_client.installation.noted import waivers_between
from fedward_client.installation.shelf import BooksRead
from fedward_common.checks import hex_digest
from fedward_common.errors import DataError, OutputError
from fedward_common.report import Report, brief, counted, rows

__all__ = ["certify", "verify_file"]

LARGEST_FILE = 64 * 2**20
UNTOLD = "earlier ones are not recorded"  # stands among the waivers: a certificate must not look complete that is not


def certify(folder: Folder, run: str, target: Path | None, *, adapter: str = "") -> Report:
    """Write the certificate of a run to a new file, with the waivers under which it happened by the audit log.

    Args:
      folder: of the site.
      run: a run id, or enough of its beginning.
      target: must not exist; ``certificate-RUN.json`` in the current folder, unless given.
      adapter: digest of the run's last adapter; else that of the last one which this site answered with an update.

    Raises:
      InputError: no run, or several, begin like this.
      OutputError: the file exists, or cannot be written.
    """
    if adapter:
        hex_digest("--adapter", adapter)
    site, keys = folder.load_site(), folder.load_keys()
    books = folder.read_books(keys)
    run_id = find_run(books.ledger, run)
    target = target or Path(f"certificate-{brief(run_id)}.json")
    if os.path.lexists(target) or not target.parent.is_dir():  # before the nonce of a certificate that cannot be
        what = "exists and is never overwritten" if os.path.lexists(target) else "lies in no folder"
        raise OutputError(f"{target} {what}", hint="give another --out")
    nonce = new_nonce()
    subject = Subject(
        run_id=run_id,
        adapter_digest=adapter or _last_adapter(books.audit, run_id),
        waivers=_waivers(books, run_id, today=site.policy_table.waivers),
    )
    content = make(
        books.ledger_rows, subject, key=keys.signing, units=books.bearers(run_id), nonce=nonce, at=time.time()
    )
    write(target, content, nonce=nonce, vault=folder.vault)
    said = verify(content, key=keys.public_key)
    facts = {"command": "certificate", "file": str(target), **_facts(said)}
    return Report(facts=facts, lines=(f"wrote {target}", *_lines(said)))


def _last_adapter(lines: Sequence[Written], run_id: str) -> str:
    served = (one.line for one in lines if one.line.kind is Kind.RELEASE and one.line.run_id == run_id)
    return max(served, key=lambda line: line.round, default=AuditLine(kind=Kind.RELEASE)).adapter_digest


def _waivers(books: BooksRead, run_id: str, *, today: Sequence[str]) -> tuple[str, ...]:
    """Those in force at any time from the run's grant to the last that it did; books of old may not tell them."""
    begun = [row["at"] for row in books.ledger_rows if row["body"].get("run_id") == run_id]  # granted, started
    done = [each.entry.at for each in books.audit if each.line.run_id == run_id]
    names, told = waivers_between(books.audit, min(begun), max((*begun, *done)))
    return tuple(sorted(names if told else {*names, *today, UNTOLD}))


def verify_file(file: Path, *, key: str = "") -> Report:
    """Check everything about a certificate that a stranger can check. Needs no site.

    Args:
      file: the certificate.
      key: the site's public key, from a source that is trusted.

    Raises:
      DataError: the file cannot be read.
      FedwardError: it is no certificate, not signed by the key, or its numbers do not follow from its events.
    """
    public_key = read_public_key(key) if key else None
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", hint="give the file that the site sent") from None
    said = verify(content, key=public_key)
    trusted = (
        "signed by the key that you gave"
        if said.trust is Trust.GIVEN
        else "signed by the key in the file itself: compare its fingerprint with the site, or give --key"
    )
    facts = {"command": "certificate verify", "file": str(file), **_facts(said)}
    details = ("verified:", *(f"  - {text}" for text in said.shown), "not verifiable:",
               *(f"  - {text}" for text in said.not_shown))  # fmt: skip
    return Report(facts=facts, lines=(trusted, *_lines(said)), details=details)


def _facts(said: Verified) -> dict[str, object]:
    return {name: value for name, value in asdict(said).items() if name not in ("shown", "not_shown")}


def _lines(said: Verified) -> tuple[str, ...]:
    return rows(
        [
            ("site", f"fingerprint {said.site}"),
            ("run", f"{said.run_id}: epsilon {said.epsilon:.4g} at delta {said.delta:g} for each {said.unit}"),
            ("all runs", f"epsilon {said.life_epsilon:.4g} at delta {said.life_delta:g} at most"),
            ("ledger", f"{said.head} after {counted(said.sequence, 'entry', 'entries')}"),
            ("waivers", ", ".join(said.waivers) or "none"),
        ]
    )
