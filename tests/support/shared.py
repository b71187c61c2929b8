"""Data sets that lie beside the repository on some machines: tests that want them skip without."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
MOST_ROWS = 600


def shared_data(name: str) -> Path:
    """The file of this name, or a skipped test."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"the shared data set {name} is not beside the repository")
    return path


def shared_rows(name: str, folder: Path) -> Path:
    """A copy of the first rows of a shared .jsonl.gz file, in ``folder``."""
    copy = folder / name.removesuffix(".gz")
    with gzip.open(shared_data(name), "rt", encoding="utf-8") as lines:
        copy.write_text("".join(islice(lines, MOST_ROWS)), encoding="utf-8")
    return copy
