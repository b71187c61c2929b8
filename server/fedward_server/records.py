"""What a run leaves for people: rounds.jsonl, its diary, and witness.json, what it knows of the sites' ledgers.

Both outlive a power cut: what was said to be written is there.

rounds.jsonl, version 1: one line for every attempt at a round, appended and flushed, each a
:class:`~fedward_common.round.RoundRecord` as JSON. Readers skip unknown keys. witness.json, version 1: the run's id and
terms, and the last ledger head of each site. A site whose ledger was restored from an old copy counts as spent what a
witness knows (`fedward-client ledger reconcile`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fedward_common.checks import hex_digest
from fedward_common.errors import InputError, OutputError
from fedward_common.files import rewrite, rewrite_json, sync_folder
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.round import RoundRecord

__all__ = ["RoundLog", "read_witness", "write_witness"]

WITNESS_SCHEMA = 1


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
        new = not self._path.exists()
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self._path.parent)
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path.name}: {error.strerror}", hint="free disk space, then resume the run"
            ) from None

    def rewind(self, *, finished: int) -> None:
        """Drop records of rounds after ``finished``: the checkpoint, not the diary, says what happened.

        Raises:
          OutputError: the diary cannot be rewritten; it is as it was.
        """
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {self._path.name}: {error.strerror}", hint="check who owns it") from None
        kept = "".join(line + "\n" for line in lines if _round_of(line) <= finished)
        rewrite(self._path, kept.encode())


def write_witness(path: Path, *, run_id: str, terms: PrivacyTerms, heads: Mapping[str, str]) -> None:
    """Write what the coordinator knows of the sites' ledgers, all of it or nothing.

    Args:
      path: of the file, which is replaced.
      run_id: of the run.
      terms: what every site of the run reserved.
      heads: last ledger head by fingerprint of the site's signing key.

    Raises:
      OutputError: the disk is full or not writable; the file is as it was.
    """
    content = {"heads": dict(heads), "run_id": run_id, "schema": WITNESS_SCHEMA, "terms": terms.to_json()}
    rewrite_json(path, content)


def read_witness(path: Path, *, run_id: str) -> dict[str, str]:
    """The ledger heads in a witness that ``write_witness`` wrote, by fingerprint; none where there is no file.

    Raises:
      OutputError: it cannot be read, is damaged, or is of another run. What it knew must not be replaced unseen.
    """
    try:
        row = json.loads(path.read_bytes())
        if (row["schema"], row["run_id"]) != (WITNESS_SCHEMA, run_id):
            raise ValueError
        return {hex_digest("a site", site): hex_digest("a head", head) for site, head in row["heads"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        raise OutputError(
            f"{path.name} is no witness of this run",
            hint=f"restore {path} from a backup, or move it aside and keep it: a new one knows less, then resume",
        ) from None


def _round_of(line: str) -> float:
    try:
        return float(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):  # cut off by a crash
        return math.inf
