"""One-line checks at construction: each prints the name and the value. Shared by every frozen type.

Example:
    >>> positive("rank", 8)
    8
"""

from __future__ import annotations

import math
import re

from fedward_common.errors import InputError

__all__ = ["at_least", "hex_digest", "positive"]

HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


def positive(name: str, value: float) -> float:
    """Return ``value`` if it is finite and above zero.

    Raises:
      InputError: otherwise.
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value!r}", hint=f"{name} must be a finite number above zero")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value`` if it is at least ``least``.

    Raises:
      InputError: otherwise.
    """
    if value < least:
        raise InputError(f"{name} is {value!r}", hint=f"{name} must be at least {least}")
    return value


def hex_digest(name: str, value: str) -> str:
    """Return ``value`` if it is a SHA-256 digest in lower-case hex.

    Raises:
      InputError: otherwise.
    """
    if not HEX_DIGEST.fullmatch(value):
        raise InputError(f"{name} is no SHA-256 digest", hint=f"{name} must be 64 lower-case hex digits")
    return value
