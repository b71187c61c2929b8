"""What these tests share: Python in a process of its own, since what they do to a process cannot be undone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Python = Callable[..., str]


@pytest.fixture
def python() -> Python:
    """Run code in a new process; its stdout. Its assertions are the test's."""

    def run(code: str, *arguments: object) -> str:
        argv = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=30)
        assert done.returncode == 0, done.stderr[-3000:] or f"ended with {done.returncode}"
        return done.stdout

    return run


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three folders with a file each; a link leads from ``read`` into ``secret``."""
    for name in ("read", "write", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "read" / "link").symlink_to(tmp_path / "secret" / "file")
    return tmp_path
