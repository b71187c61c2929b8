"""Which fedward each site runs, as its courier says in the header ``user-agent``. News for people, never evidence.

Example:
    >>> version_in({b"user-agent": b"fedward-courier/0.1.0"}), version_in({b"user-agent": b"curl/8"})
    ('0.1.0', '')
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fedward_common.errors import OutputError
from fedward_common.files import read_json, rewrite_json

__all__ = ["Versions", "read_versions", "version_in"]

SAID = re.compile(rb"fedward-courier/([0-9][0-9A-Za-z.+-]{0,31})")
FILE = "versions.json"


def version_in(headers: Mapping[bytes, bytes]) -> str:
    """The version that a request names; empty where it names none."""
    found = SAID.fullmatch(headers.get(b"user-agent", b""))
    return found[1].decode("ascii") if found else ""


class Versions:
    """The gateway's memory of them.

    Guarantees:
      - Noting one takes no time of a disk, however often a site changes what it says.
      - A disk that refuses disturbs nobody; it is tried again.
    """

    def __init__(self, state: Path) -> None:
        """What was known before stays known."""
        self._path, self._known, self._written = state / FILE, read_versions(state), True

    def note(self, name: str, version: str) -> None:
        """A site spoke."""
        if version and self._known.get(name) != version:
            self._known[name] = version
            self._written = False

    def write(self) -> None:
        """Write what was noted since, if anything was. Takes as long as the disk does; may run in another thread."""
        if self._written:
            return
        self._written = True  # before the copy: what is noted meanwhile is written the next time
        try:
            rewrite_json(self._path, dict(self._known))
        except OutputError:
            self._written = False


def read_versions(state: Path) -> dict[str, str]:
    """The last version of each site by name."""
    rows = read_json(state / FILE)
    return {str(name): str(version) for name, version in rows.items()} if isinstance(rows, dict) else {}
