"""Where the Door's Unix socket lies, and who may open it. Imports next to nothing: it runs before all else.

    DIR/door/      0700, or 2750 with a group that the courier's account shares
      door.sock    the trainer listens here
      courier.pem  with two accounts: the courier's half of the keys, 0640, made anew at each start

``[network].door`` of the site file moves the folder. With two accounts it has to lie outside of the site's own folder,
which the courier's account cannot enter.

Example:
    >>> Place(Path("/run/fedward")).socket
    PosixPath('/run/fedward/door.sock')
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedward_common.errors import InputError, OutputError, PrivacyError

__all__ = ["SERVING", "Place", "listening"]

SERVING = "serving"
"""In the site's folder: a lock that the trainer holds while it takes plans."""

FOLDER, SOCKET, HALF = "door", "door.sock", "courier.pem"
LONGEST_PATH = 107  # bytes, of struct sockaddr_un, without the zero at its end
ALONE, SHARED = 0o700, 0o2750  # with the set-group-id bit what is made inside has the folder's group
KNOCK_S = 2.0


@dataclass(frozen=True)
class Place:
    """The folder of the Door's socket: an absolute path."""

    folder: Path

    @classmethod
    def at_site(cls, root: Path) -> Self:
        """The folder that a site's file names. Of the file nothing else is read, and whatever is wrong with it waits.

        Args:
          root: of the site; a relative ``[network].door`` counts from there.
        """
        moved = ""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            moved = tomllib.loads((root / "site.toml").read_text(encoding="utf-8"))["network"]["door"]
        with contextlib.suppress(TypeError):
            return cls(root.absolute() / (Path(moved).expanduser() if moved else FOLDER))
        return cls(root.absolute() / FOLDER)

    @property
    def socket(self) -> Path:
        """The trainer's socket."""
        return self.folder / SOCKET

    @property
    def half(self) -> Path:
        """The courier's half of the keys, where it has another account than the trainer."""
        return self.folder / HALF

    def prepare(self, group: str | None = None) -> None:
        """Make the folder, or check the one that is there. Call it before the process leaves any namespace.

        Args:
          group: of the courier's account, where that is another one.

        Guarantees:
          - Without a group no other account can reach the socket; with one, only its members.

        Raises:
          InputError: the path is too long, or there is no such group.
          OutputError: the folder cannot be made.
          PrivacyError: the folder is open to more accounts, or to fewer, than it should be.
        """
        self.check_length()
        wanted = None if group is None else _group_id(group)
        try:
            made = not self.folder.is_dir()
            if made:
                self.folder.mkdir(mode=ALONE)
            if made and wanted is not None:
                with contextlib.suppress(OSError):  # what could not be done is found out below
                    os.chown(self.folder, -1, wanted)
                    self.folder.chmod(SHARED)
            self._check(self.folder.lstat(), wanted, group)
        except OSError as error:
            raise OutputError(
                f"cannot make {self.folder}: {error.strerror}",
                hint="make its parent, or set [network].door in site.toml",
            ) from None

    def check_length(self) -> None:
        """Refuse a path that the kernel would cut off.

        Raises:
          InputError: it has more than 107 bytes.
        """
        length = len(os.fsencode(self.socket))
        if length > LONGEST_PATH:
            raise InputError(
                f"the socket {self.socket} has a path of {length} bytes; the system takes {LONGEST_PATH}",
                hint="set [network].door in site.toml to a folder with a shorter path",
            )

    def clear(self) -> None:
        """Remove a socket that a killed trainer left.

        Raises:
          OutputError: somebody answers there, or something else has its name.
        """
        if not os.path.lexists(self.socket):
            return
        if not stat.S_ISSOCK(self.socket.lstat().st_mode):
            raise OutputError(f"{self.socket} is no socket", hint="move it away yourself")
        if listening(self.socket):
            raise OutputError(
                f"another trainer answers at {self.socket}", hint="stop it first, or give this site a door of its own"
            )
        self.socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def binding(self) -> Iterator[None]:
        """While a socket is bound: it can be opened by this account, or by the folder's group as well."""
        shared = self.folder.stat().st_mode & stat.S_IXGRP
        before = os.umask(0o007 if shared else 0o077)
        try:
            yield
        finally:
            os.umask(before)

    def _check(self, found: os.stat_result, wanted: int | None, group: str | None) -> None:
        mode, expected = stat.S_IMODE(found.st_mode), ALONE if wanted is None else SHARED
        fitting = stat.S_ISDIR(found.st_mode) and mode == expected and found.st_uid in (os.geteuid(), 0)
        if fitting and (wanted is None or found.st_gid == wanted):
            return
        if wanted is None:
            raise PrivacyError(
                f"the folder {self.folder} is not this account's alone",
                hint=f"chmod 700 {self.folder}; or name the courier's group: --group",
            )
        raise PrivacyError(
            f"the folder {self.folder} is not shared with the group {group} alone",
            hint=f"as root: install -d -m 2750 -o {os.geteuid()} -g {group} {self.folder}",
        )


def listening(path: Path) -> bool:
    """Whether somebody takes calls at a Unix socket.

    Raises:
      PermissionError: this account may not open it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(KNOCK_S)
        try:
            knock.connect(os.fsencode(path))
        except PermissionError:
            raise
        except (TimeoutError, BlockingIOError):
            return True  # a full queue: somebody has it
        except OSError:
            return False
    return True


def _group_id(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InputError(f"there is no group {name!r} on this machine", hint="groupadd it, as root") from None
