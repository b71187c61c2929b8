"""The file layer of the books: a few calls to the operating system, so that tests can record them or make them fail.

Every file is private (0600), is never reached through a symbolic link, and belongs to one writer at a time. This module
knows no formats.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Files().create(folder / "a", b"whole or absent")
    >>> Files().read(folder / "a")
    b'whole or absent'
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward_common.errors import BudgetError, OutputError

__all__ = ["Files", "disk_errors"]

PRIVATE = 0o600
FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC
FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # on macOS fsync alone leaves data in the drive's cache
DRAFT = ".draft"

HINTS = {
    errno.ENOSPC: "free disk space, then start again; nothing that is half written counts",
    errno.EDQUOT: "free disk space, then start again; nothing that is half written counts",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "run as the account that owns the site's folder",
    errno.EPERM: "run as the account that owns the site's folder",
    errno.ELOOP: "the site's files may not be symbolic links",
}


class Files:
    """The real disk. Each method is one step that a crash can fall before or after.

    Raises:
      OSError: from every method; the books turn it into an ``OutputError`` with ``disk_errors``.
    """

    def open(self, path: Path) -> int:
        """A descriptor of a file that exists, for reading and writing."""
        return os.open(path, os.O_RDWR | FLAGS)

    def create_new(self, path: Path) -> int:
        """A descriptor of a file that did not exist, with mode 0600."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, PRIVATE)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back, and with it its lock."""
        os.close(descriptor)

    def lock(self, descriptor: int) -> None:
        """Become the file's one writer, or ``BlockingIOError`` when there is another."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self, path: Path) -> bytes:
        """The whole content."""
        descriptor = os.open(path, os.O_RDONLY | FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
        """Write all of the data at a place."""
        view = memoryview(data)
        while view:
            done = os.pwrite(descriptor, view, offset)
            view, offset = view[done:], offset + done

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file off."""
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        """Return once everything written to the file is on disk, its length included."""
        if FULL_SYNC is None:
            os.fdatasync(descriptor)  # leaves out only the time of the change: half the cost where nothing else changed
        else:
            fcntl.fcntl(descriptor, FULL_SYNC)

    def fsync_folder(self, folder: Path) -> None:
        """Return once every name made, changed or removed in the folder is on disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name in its folder, in one step."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Remove a name; none is no error."""
        path.unlink(missing_ok=True)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, sorted."""
        return sorted(os.listdir(folder))

    def create(self, path: Path, data: bytes) -> None:
        """Write a whole file.

        Guarantees:
          - Under its name there is the whole new content, or what was there before, also after a crash at any instant.
          - When this returns, name and content are on disk.
        """
        draft = path.with_name(f".{path.name}{DRAFT}")
        self.remove(draft)
        descriptor = self.create_new(draft)
        try:
            self.write_at(descriptor, data, 0)
            self.fsync(descriptor)
        finally:
            self.close(descriptor)
        self.rename(draft, path)
        self.fsync_folder(path.parent)

    def remove_drafts(self, folder: Path) -> None:
        """Remove what a crash left of files that never got their name."""
        for name in self.names(folder):
            if name.startswith(".") and name.endswith(DRAFT):
                self.remove(folder / name)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the operating system's errors into ours.

    Args:
      what: which book, for a person: "the ledger".

    Raises:
      BudgetError: another process has it open.
      OutputError: any other error of the disk or its permissions.
    """
    try:
        yield
    except BlockingIOError:
        raise BudgetError(
            f"{what} is open in another process",
            hint="stop the other fedward-client of this site; books have one writer",
        ) from None
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "check the disk and who owns the site's folder")
        raise OutputError(f"cannot read or write {what}: {error.strerror or 'disk error'}", hint=hint) from None
