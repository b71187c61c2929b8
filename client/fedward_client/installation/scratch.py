"""Where temporary files of a site lie: in its own folder, private, and gone afterwards, also those of a killed process.

What is read of the data passes through such files. Elsewhere, below ``$TMPDIR``, a killed process would leave them.

Example:
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> with scratch(root):
    ...     tempfile.gettempdir() == str(root / "scratch")
    True
    >>> (root / "scratch").exists()
    False
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward_common.errors import OutputError
from fedward_common.files import make_private_folder

__all__ = ["scratch", "scratch_beside"]

SCRATCH = "scratch"


@contextmanager
def scratch(root: Path) -> Iterator[None]:
    """For the one process that holds the site's lock: what a killed one left goes first, and all goes afterwards.

    Raises:
      OutputError: the folder cannot be made.
    """
    place = root / SCRATCH
    shutil.rmtree(place, ignore_errors=True)
    make_private_folder(place)
    try:
        with _files_in(place):
            yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def scratch_beside(root: Path) -> Iterator[None]:
    """For a command that takes no lock: a folder of its own in the same place, which the next ``scratch`` sweeps.

    Raises:
      OutputError: the folder cannot be made.
    """
    place = root / SCRATCH
    make_private_folder(place)
    try:
        own = Path(tempfile.mkdtemp(prefix="beside-", dir=place))
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror}", hint="check the disk and its owner") from None
    try:
        with _files_in(own):
            yield
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(OSError):  # a trainer's own files may lie there
            place.rmdir()


@contextmanager
def _files_in(place: Path) -> Iterator[None]:
    before = tempfile.tempdir
    tempfile.tempdir = str(place)
    try:
        yield
    finally:
        tempfile.tempdir = before
