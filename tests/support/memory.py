"""How much memory a piece of work takes at its worst, NumPy's arrays included.

Example:
    with traced() as peak:
        work()
    assert peak() < 1_000_000
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yield a function that says how many bytes were held at most since the beginning, above those held before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
