"""rounds.jsonl: one line for every attempt at a round, appended and flushed; the run's public diary.

Version 1 of the format: each line is a :class:`~fedward_common.round.RoundRecord` as JSON. Readers skip unknown keys.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from fedward_common.errors import OutputError
from fedward_common.round import RoundRecord

__all__ = ["RoundLog"]


class RoundLog:
    """Appends records to a file, and forgets those of rounds that a resumed run will do again."""

    def __init__(self, path: Path) -> None:
        """The file is made by the first record."""
        self._path = path

    def append(self, record: RoundRecord) -> None:
        """Write one line.

        Raises:
          OutputError: the disk is full or not writable.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path.name}: {error.strerror}", hint="free disk space, then resume the run"
            ) from None

    def rewind(self, *, finished: int) -> None:
        """Drop records of rounds after ``finished``: the checkpoint, not the diary, says what happened.

        Raises:
          OutputError: the diary cannot be rewritten; it is as it was.
        """
        draft = self._path.with_name(f".{self._path.name}.part")
        try:
            if not self._path.exists():
                return
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = "".join(line + "\n" for line in lines if _round_of(line) <= finished)
            draft.write_text(kept, encoding="utf-8")
            os.replace(draft, self._path)
        except OSError as error:
            raise OutputError(
                f"cannot rewrite {self._path.name}: {error.strerror}", hint="free disk space, then resume the run"
            ) from None


def _round_of(line: str) -> float:
    try:
        return float(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):  # cut off by a crash
        return math.inf
