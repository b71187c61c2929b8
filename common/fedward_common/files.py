"""Files that must be whole or absent, and secrets that nobody else may read. Used by every folder that fedward keeps.

This module knows no key, no ledger and no data.

Example:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "secret"
    >>> write_new(path, b"s3cret")
    >>> read_secret(path, lost="restore it from a backup"), oct(path.stat().st_mode & 0o777)
    (b's3cret', '0o600')
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from fedward_common.errors import OutputError, PrivacyError

__all__ = [
    "check_private",
    "make_private_folder",
    "read_foreign",
    "read_json",
    "read_secret",
    "replace_file",
    "rewrite",
    "rewrite_json",
    "sync_file",
    "sync_folder",
    "write_new",
]

LARGEST_FILE = 1 << 20
LARGEST_FOREIGN = 64 << 10


def make_private_folder(folder: Path) -> None:
    """Make a folder with mode 0700; one that exists is left as it is.

    Raises:
      OutputError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def check_private(folder: Path) -> None:
    """Refuse a folder that other accounts may enter.

    Raises:
      PrivacyError: its mode allows them to.
    """
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        raise PrivacyError(f"folder {folder} is open to other accounts", hint=f"chmod 700 {folder}")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist: whole or absent, mode 0600, on disk when this returns.

    Raises:
      OutputError: it exists, or cannot be written.
    """
    draft = _draft_of(path)
    try:
        try:
            _write(draft, content)
            os.link(draft, path, follow_symlinks=False)  # unlike a rename, a link never replaces what is there
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError:
        raise OutputError(f"{path} exists and is never overwritten", hint="move it aside yourself") from None
    except OSError as error:
        raise _unwritable(path, error) from None


def rewrite(path: Path, content: bytes) -> None:
    """Write or replace a file: the old content or the new one, never a mixture; mode 0600.

    Raises:
      OutputError: it cannot be written; it is as it was.
    """
    draft = _draft_of(path)
    try:
        _write(draft, content)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def rewrite_json(path: Path, content: Any) -> None:
    """``rewrite`` with a value as JSON."""
    rewrite(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where there is none, or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_foreign(path: Path) -> bytes | None:
    """A small file that somebody else may have put there; None where there is none, or something else than a file.

    Guarantees:
      - It returns at once: no pipe is waited for, no link is followed, no device and no endless file is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FOREIGN:
            return None
        return file.read(LARGEST_FOREIGN)


def read_secret(path: Path, *, lost: str) -> bytes:
    """The content of a file that only its owner may read.

    Args:
      path: of the file.
      lost: the hint where it is gone.

    Raises:
      PrivacyError: it is missing, unreadable, or open to other accounts.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(LARGEST_FILE)
    except FileNotFoundError:
        raise PrivacyError(f"{path} is missing", hint=lost) from None
    except OSError as error:
        raise PrivacyError(f"cannot read {path}: {error.strerror}", hint="run as the account that owns it") from None
    if mode & 0o077:
        raise PrivacyError(f"{path} is open to other accounts", hint=f"chmod 600 {path}")
    return content


def replace_file(source: Path, target: Path) -> None:
    """Give a file the name of another in its folder, in one step; on disk when this returns.

    Raises:
      OutputError: the disk refused.
    """
    try:
        os.replace(source, target)
        sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None


def sync_file(path: Path) -> None:
    """Return once a file that somebody else wrote is on disk, or raise ``OSError``."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Return once every name made, changed or removed in the folder is on disk, or raise ``OSError``."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}", hint="check the disk and who owns the folder")
