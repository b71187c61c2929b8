"""The ledgers of all virtual sites in one file of a run's folder, which grows by what is new in each round.

A checkpoint holds where the file ended when it was written; whatever follows is of rounds that are done again, and is
cut off. One line a site and round: ``{"site": ..., "entries": [...]}``; entries are chained by their digests.

Example:
    >>> import tempfile
    >>> from fedward_common.privacy.grants import Budget
    >>> from fedward_common.privacy.ledger import Ledger
    >>> ledger, path = Ledger.in_memory(Budget(epsilon=8.0, delta=1e-5)), Path(tempfile.mkdtemp()) / "ledgers.jsonl"
    >>> end = LedgerFile(path).add({"ward": ledger.export})
    >>> [entry["sequence"] for entry in LedgerFile(path, end=end).entries["ward"]]
    [1]
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedward_common.errors import OutputError
from fedward_common.files import sync_file

__all__ = ["Entries", "Export", "LedgerFile"]

Entries: TypeAlias = list[dict[str, Any]]
Export: TypeAlias = Callable[[int], Entries]  # a ledger's entries after the first so many, oldest first


class LedgerFile:
    """``ledgers.jsonl``.

    Args:
      path: of the file; it need not be there.
      end: of what counts, in bytes; what follows is cut off.

    ``entries`` holds, by site, what the file held when it was opened.

    Raises:
      OutputError: the file is shorter than that, cannot be read, or is no such file.
    """

    def __init__(self, path: Path, *, end: int = 0) -> None:
        """Read what counts, and forget the rest."""
        self._path, self._end = path, end
        self.entries: dict[str, Entries] = defaultdict(list)
        try:
            with path.open("a+b") as file:
                file.seek(0)
                lines = file.read(end)
                file.truncate(end)
            for line in lines.splitlines():
                row = json.loads(line)
                self.entries[row["site"]] += row["entries"]
        except OSError as error:
            raise OutputError(f"cannot use {path}: {error.strerror}", hint="check the run's folder") from None
        except (ValueError, KeyError, TypeError):
            lines = b""
        if len(lines) != end:
            raise OutputError(f"{path} does not hold what the checkpoint names", hint="start the run anew")
        self._known = {site: len(found) for site, found in self.entries.items()}

    def add(self, ledgers: Mapping[str, Export]) -> int:
        """Write what each ledger has that the file has not; where the file ends now.

        Guarantees:
          - What was added is on disk when this returns.

        Raises:
          OutputError: the disk is full or not writable.
        """
        new = {site: found for site, export in ledgers.items() if (found := export(self._known.get(site, 0)))}
        lines = "".join(json.dumps({"site": site, "entries": found}) + "\n" for site, found in new.items()).encode()
        try:
            with self._path.open("r+b") as file:
                file.seek(self._end)
                file.write(lines)
                file.truncate()
            sync_file(self._path)
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}", hint="free disk space, then resume the run"
            ) from None
        self._end += len(lines)
        self._known |= {site: self._known.get(site, 0) + len(found) for site, found in new.items()}
        return self._end
