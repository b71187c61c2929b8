"""``backup`` and ``rotate-keys``: what keeps a site usable after a lost disk or a leaked key."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import SiteKeys, public_key_text, rotate_signing_key
from fedward_client.installation.site_file import SiteFile
from fedward_common.errors import OutputError
from fedward_common.files import sync_file, sync_folder, write_new
from fedward_common.report import Report, rows

__all__ = ["backup", "rotate_keys"]

SCHEMA = 1
MANIFEST = "backup.json"


def backup(folder: Folder, target: Path, *, with_keys: bool) -> Report:
    """Copy books and site file, checked and consistent, into a new folder. The site must not be running.

    Args:
      folder: of the site.
      target: must not exist.
      with_keys: copy the secrets too.

    Guarantees:
      - The copy is whole or absent, readable by this account alone, and its books were checked.
      - Without ``with_keys`` neither key is in it.

    Raises:
      OutputError: the target exists, lies inside the site, or cannot be written; or the site is running.
      BudgetError: the books are damaged: a copy of them would be no backup.
    """
    if os.path.lexists(target):
        raise OutputError(f"{target} exists and is never overwritten", hint="give a new name, with the date in it")
    if target.resolve().is_relative_to(folder.root.resolve()):
        raise OutputError(f"{target} lies inside the site", hint="give a folder elsewhere, best on another disk")
    keys = folder.load_keys()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with folder.lock():
        books = folder.read_books(keys)
        try:
            _copy(folder, draft, with_keys=with_keys)
            manifest = {
                "at": round(time.time(), 3),
                "files": {str(path.relative_to(draft)): _sha256(path) for path in _files(draft)},
                "fingerprint": keys.fingerprint,
                "ledger": {"head": books.ledger.head, "sequence": books.ledger.sequence},
                "schema": SCHEMA,
                "with_keys": with_keys,
            }
            write_new(draft / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
            os.rename(draft, target)
            sync_folder(target.parent)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}", hint="check the disk") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    facts = {"command": "backup", "target": str(target), **manifest}
    return Report(facts=facts, lines=_backup_lines(target, books.ledger.head, with_keys=with_keys))


def rotate_keys(folder: Folder) -> Report:
    """Replace the signing key by a fresh one that the old one vouches for.

    The unit-digest key is never replaced: what each unit has spent is remembered under digests made with it, so with
    another key every unit would look new, and everything spent would be forgotten.

    Raises:
      OutputError: the site is running, or the folder cannot be written.
      PrivacyError: the present keys cannot be used.
    """
    site = folder.load_site()
    with folder.lock():
        _open_once(folder, site, folder.load_keys())  # what cannot be opened now could not be opened afterwards
        keys, rotation = rotate_signing_key(folder.keys)
        _open_once(folder, site, keys)  # notes the change in the audit log, signed with the new key
    statement = json.dumps(rotation.to_json(), sort_keys=True)
    facts = {
        "command": "rotate-keys",
        "fingerprint": keys.fingerprint,
        "public_key": public_key_text(keys.public_key),
        "statement": rotation.to_json(),
    }
    lines = rows(
        [
            ("new public key", public_key_text(keys.public_key)),
            ("fingerprint", keys.fingerprint),
            ("statement", statement),
        ]
    )
    return Report(
        facts=facts,
        lines=(
            *lines,
            "plans must be addressed to the new key from now on: enrol again with the file that `init --server` makes",
            "and the statement, which shows that the old key vouches for it; the operator: `enrol --replace`",
            "the unit-digest key stays for good: with another one everything that units have spent would be forgotten",
        ),
    )


def _open_once(folder: Folder, site: SiteFile, keys: SiteKeys) -> None:
    if folder.has_books:
        with folder.open_books(site, keys):
            pass


def _copy(folder: Folder, draft: Path, *, with_keys: bool) -> None:
    draft.mkdir(mode=0o700)
    shutil.copyfile(folder.site_file, draft / folder.site_file.name)
    for source in (folder.books, *((folder.keys,) if with_keys else ())):
        shutil.copytree(source, draft / source.name, symlinks=True)
    for path in _files(draft):
        path.chmod(0o600)
        sync_file(path)
    for inner in sorted(path for path in draft.rglob("*") if path.is_dir()):
        inner.chmod(0o700)
        sync_folder(inner)


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _backup_lines(target: Path, head: str, *, with_keys: bool) -> tuple[str, ...]:
    keys = (
        "it holds both secrets: keep it as you keep the data"
        if with_keys
        else "the keys are not in it, and without keys/units.key it cannot be used: keep a copy of that elsewhere"
    )
    return (
        f"wrote {target}: books and site file, ledger head {head}",
        keys,
        "base models are not in it: fetch-model brings them back under the same fingerprints",
        "nor is the courier's folder: `init --server` makes it anew, with a new node key to be enrolled",
        "to restore an old copy is to forget what was spent since. So after restoring, and before training: "
        "fedward-client ledger reconcile WITNESS.json, with the witness of every run since",
    )
