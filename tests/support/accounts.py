"""Another account for the length of a block: what it may not open, a test may not. Needs root.

Example:
    with another_account():
        path.read_bytes()  # PermissionError, where path is private
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["NOBODY", "another_account", "needs_root"]

NOBODY = 61237
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another account for a moment")


@contextmanager
def another_account() -> Iterator[None]:
    """Be nobody until the block ends."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
