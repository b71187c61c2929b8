"""A site's folder: what lies where, who may read it, and who may write.

    DIR/            0700
      site.toml     what the administrator allows
      keys/         the signing key, the unit-digest key, and which ledger is this site's
      books/        ledger.jsonl  ledger.head  audit.jsonl  audit.head  units/  outbox/  commitments/
      models/       FINGERPRINT/  base models that plans may name
      lock          held by whichever process writes
      serving       held by a trainer that takes plans

Nothing here reads data or loads a model.

Example:
    >>> import tempfile
    >>> folder = Folder.create(Path(tempfile.mkdtemp()) / "site", name="st-elsewhere")
    >>> folder.site_file.name, folder.keys.is_dir()
    ('site.toml', True)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedward_client.installation.keys import MARK, SiteKeys, create_keys, load_keys
from fedward_client.installation.noted import PolicyNote, check_column
from fedward_client.installation.site_file import SiteFile, template
from fedward_common.codec import key_fingerprint
from fedward_common.errors import BudgetError, ConfigError, OutputError
from fedward_common.files import check_private, make_private_folder, sync_folder, write_new

if TYPE_CHECKING:
    from fedward_client.installation.shelf import Books, BooksRead
    from fedward_common.privacy.grants import Budget

__all__ = ["Folder", "check_budget"]

SITE_FILE, KEYS, BOOKS, MODELS, LOCK = "site.toml", "keys", "books", "models", "lock"
VAULT = "commitments"
LOCK_TRIES, LOCK_WAIT_S = 5, 0.05
RESTORE = "restore books/ from a backup, then reconcile: fedward-client ledger reconcile"


@dataclass(frozen=True)
class Folder:
    """The folder of one site."""

    root: Path

    @classmethod
    def create(cls, root: Path, *, name: str, operator: str | None = None, door: Path | None = None) -> Self:
        """Make whatever is missing: the folder, a commented site file, the keys. What exists is left as it is.

        Args:
          root: the folder.
          name: of the site, in a new site file.
          operator: the public key of the operator, in a new site file; to be filled in by hand otherwise.
          door: the folder of the trainer's socket, in a new site file.

        Raises:
          OutputError: the folder holds something else, or cannot be written.
          PrivacyError: the folder or a key is open to other accounts, or a key is gone although the ledger exists.
        """
        folder = cls(root)
        folder._claim()
        if not folder.site_file.exists():
            write_new(folder.site_file, template(name, operator=operator, door=door).encode())
        make_private_folder(folder.models)
        if folder.has_books or folder._mark.exists():
            load_keys(folder.keys)  # a lost key must be restored: a new one would disown what the books hold
        create_keys(folder.keys)
        return folder

    @classmethod
    def open(cls, root: Path) -> Self:
        """A folder that ``create`` made.

        Raises:
          OutputError: it is none.
          PrivacyError: it is open to other accounts.
        """
        folder = cls(root)
        try:
            there = folder.site_file.is_file()
        except PermissionError:
            raise OutputError(
                f"this account may not look into {root}", hint="run as the account that owns it, or as root"
            ) from None
        if not there:
            raise OutputError(
                f"there is no site in {root}", hint="give its folder, or make one: fedward-client init DIR"
            )
        folder._check_private()
        return folder

    @property
    def site_file(self) -> Path:
        """What the administrator allows."""
        return self.root / SITE_FILE

    @property
    def keys(self) -> Path:
        """The folder of both secrets."""
        return self.root / KEYS

    @property
    def books(self) -> Path:
        """The folder of ledger, register, audit log and finished updates."""
        return self.root / BOOKS

    @property
    def models(self) -> Path:
        """The folder of base models."""
        return self.root / MODELS

    @property
    def vault(self) -> Path:
        """The folder of the secret nonces behind certificates; made when the first one is written."""
        return self.books / VAULT

    @property
    def has_books(self) -> bool:
        """Whether a ledger was ever opened here."""
        return self.books.is_dir()

    def model(self, fingerprint: str) -> Path:
        """Where the base model of this fingerprint lies."""
        return self.models / fingerprint

    def base_models(self, fingerprints: Iterable[str]) -> dict[str, Path]:
        """Those of these base models that are here, by fingerprint. What they hold is proven when they are loaded."""
        return {known: self.model(known) for known in fingerprints if self.model(known).is_dir()}

    def load_site(self) -> SiteFile:
        """The site file, checked.

        Raises:
          ConfigError: a key or value of it is wrong or missing.
        """
        return SiteFile.load(self.site_file)

    def load_keys(self) -> SiteKeys:
        """Both secrets.

        Raises:
          PrivacyError: one is missing, damaged, or open to other accounts.
        """
        return load_keys(self.keys)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here.

        Raises:
          OutputError: another process is; its number is in the message.
        """
        try:
            descriptor = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(f"cannot lock {self.root}: {error.strerror}", hint="check who owns the folder") from None
        try:
            _hold(descriptor, self.root)
            yield
        finally:
            os.close(descriptor)

    # ---- the books -----------------------------------------------------------------
    def create_books(self, site: SiteFile, keys: SiteKeys) -> None:
        """Make the ledger, with the budget of the site file, and all other books. The caller holds the lock.

        Open them once afterwards: that marks the ledger as this site's.

        Guarantees:
          - All books are there, or none, also after a crash.

        Raises:
          BudgetError: this site had books before, and they are gone.
          OutputError: they exist, or the folder cannot be written.
        """
        from fedward_client.installation.shelf import make_books

        if self.has_books:
            raise OutputError(f"{self.books} exists", hint="a ledger is opened once; its budget is fixed for life")
        if self._mark.exists():
            raise BudgetError(f"{self.books} is gone: this site opened a ledger before", hint=RESTORE)
        draft = self.root / f".{BOOKS}-{secrets.token_hex(8)}"
        try:
            make_books(draft, site.budget(), keys)
            os.rename(draft, self.books)
            sync_folder(self.root)
        except OSError as error:
            raise OutputError(f"cannot write {self.books}: {error.strerror}", hint="check the disk") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextlib.contextmanager
    def open_books(self, site: SiteFile, keys: SiteKeys) -> Iterator[Books]:
        """All books, checked and open for writing. The caller holds the lock.

        A policy or a signing key that changed since the books were last open is noted in the audit log.

        Raises:
          BudgetError: no ledger was opened here, or a book is missing, damaged, cut off, of another site, or under
            another key; or the site file names another column of unit ids than the one that was charged.
          ConfigError: the site file asks for another budget than the ledger was opened with.
          OutputError: a book cannot be read or written.
        """
        from fedward_client.installation.shelf import open_books

        self._check_opened()
        with open_books(self.books, keys) as books:
            self._check_first(books.first)
            if not self._mark.exists():  # a crash came between the books and this
                write_new(self._mark, books.first.encode() + b"\n")
            check_budget(site.budget(), books.ledger.budget)
            check_column(site, keys, books.audit.lines(), used=bool(books.register.digest))
            _note_changes(site, keys, books)
            yield books

    def read_books(self, keys: SiteKeys) -> BooksRead:
        """Ledger and audit log as they are now, every signature checked; takes no lock and changes nothing.

        Raises:
          BudgetError: no ledger was opened here, or a book is missing, damaged, cut off, of another site, or under
            another key.
          OutputError: a book cannot be read.
        """
        from fedward_client.installation.shelf import read_books

        self._check_opened()
        books = read_books(self.books, keys)
        self._check_first(books.first)
        return books

    @property
    def _mark(self) -> Path:
        return self.keys / MARK

    def _check_opened(self) -> None:
        if self.has_books:
            return
        if self._mark.exists():
            raise BudgetError(f"{self.books} is gone: this site opened a ledger before", hint=RESTORE)
        raise BudgetError(
            f"no ledger was opened in {self.root}",
            hint=f"fill in site.toml, then run: fedward-client init {self.root}",
        )

    def _check_first(self, first: str) -> None:
        """Refuse a ledger that this site did not open, whoever signed it."""
        if self._mark.exists() and first != self._mark.read_text(encoding="ascii", errors="replace").strip():
            raise BudgetError("the ledger is not the one that this site opened", hint=RESTORE)

    @property
    def in_use(self) -> bool:
        """Whether another process holds the lock at this moment."""
        try:
            descriptor = os.open(self.root / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _claim(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not any(self.root.iterdir()):
                self.root.chmod(0o700)
            elif not self.site_file.is_file():
                raise OutputError(
                    f"{self.root} holds something that is no site", hint="give a new folder: fedward-client init DIR"
                )
        except OSError as error:
            raise OutputError(f"cannot make {self.root}: {error.strerror}", hint="give another folder") from None
        self._check_private()

    def _check_private(self) -> None:
        for path in (self.root, self.keys, self.books):
            check_private(path)


def _hold(descriptor: int, root: Path) -> None:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(LOCK_WAIT_S)  # a command that only asks who is at work holds it for an instant
    else:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise OutputError(f"{root} is in use by process {holder}", hint="stop it first, or wait until it ends")
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise OutputError(f"cannot lock {root}: {error.strerror}", hint="check the free disk space") from None


def check_budget(asked: Budget, opened: Budget) -> None:
    """Compare a site file's budget with the one that the ledger was opened with.

    Raises:
      ConfigError: they differ, other than in a stricter limit for one run.
    """
    fixed = [
        ("life_epsilon", asked.epsilon, opened.epsilon),
        ("life_delta", asked.delta, opened.delta),
        ("unit", asked.unit, opened.unit),
        ("rdp_order", asked.renyi_order, opened.renyi_order),
    ]
    for key, now, then in fixed:
        if now != then:
            raise ConfigError(
                f"policy.{key} is {_shown(now)}, but the ledger was opened with {_shown(then)}",
                hint="it is fixed for the life of the data: set it back; only limits for one run may be made stricter",
            )
    limits = [
        ("run_epsilon", asked.run_epsilon, opened.run_epsilon),
        ("run_delta", asked.run_delta, opened.run_delta),
    ]
    for key, now, then in limits:
        if now is not None and then is not None and now > then:
            raise ConfigError(
                f"policy.{key} is {now:g}, above the {then:g} that the ledger was opened with",
                hint="it can be made stricter, never looser",
            )


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, int | float) else f"'{value}'"


def _note_changes(site: SiteFile, keys: SiteKeys, books: Books) -> None:
    """Write down a policy or a signing key that is not the one of the last such line."""
    from fedward_client.books.audit import Kind

    noted: dict[Kind, str] = {written.line.kind: written.line.reason for written in books.audit.lines()}
    policy = PolicyNote.now(site, keys).reason
    if noted.get(Kind.POLICY) != policy:
        books.note(Kind.POLICY, reason=policy)
    for rotation in keys.rotations[-1:]:
        old, new = key_fingerprint(rotation.old), key_fingerprint(rotation.new)
        change = f"signing key {old} was replaced by {new}"
        if noted.get(Kind.KEYS) != change:
            books.note(Kind.KEYS, reason=change)
