"""Memory that nobody uses, given back to the system.

glibc keeps what a program frees, and tensors of ever new sizes leave holes in it: without this, a run of many rounds
takes two or three times the memory that it needs at any one time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["give_back"]


def give_back() -> None:
    """Return free memory to the system where the C library can; elsewhere nothing happens. No effect on results."""
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
