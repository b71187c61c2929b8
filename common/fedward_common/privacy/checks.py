"""Shared one-liners that refuse a number out of range or a JSON value of the wrong form, naming it.

Constructors raise ``PrivacyError``; decoders raise ``MalformedMessage``. This module knows no type of fedward, so that
every other module of the package may use it.

Example:
    >>> rate("sampling_rate", 0.5)
    >>> from fedward_common.errors import PrivacyError
    >>> try:
    ...     rate("sampling_rate", 1.5)
    ... except PrivacyError as error:
    ...     print(error)
    sampling_rate is 1.5
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

from fedward_common.errors import MalformedMessage, PrivacyError

__all__ = ["at_least", "decoding", "integer", "member", "number", "positive", "rate", "rows", "table", "text", "within"]

LARGEST_INTEGER = 2**53
MOST_ROWS = 4096

Member = TypeVar("Member", bound=StrEnum)


def positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise PrivacyError(f"{name} is {value}", hint=f"give {name} as a finite number above 0")


def rate(name: str, value: float) -> None:
    """Refuse what is not in (0, 1]."""
    if not 0 < value <= 1:
        raise PrivacyError(f"{name} is {value}", hint=f"give {name} above 0 and at most 1")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is not in the closed interval [low, high]; NaN is in none."""
    if not low <= value <= high:
        raise PrivacyError(f"{name} is {value}", hint=f"give {name} between {low:g} and {high:g}")


def at_least(name: str, value: int, minimum: int) -> None:
    """Refuse what is not an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise PrivacyError(f"{name} is {value}", hint=f"give {name} as an integer of at least {minimum}")


def table(value: object, keys: Collection[str], *, where: str) -> dict[str, Any]:
    """The value as a JSON object with exactly these keys."""
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise _malformed(where, f"an object with the keys {', '.join(sorted(keys))}")
    return value


def rows(value: object, *, where: str) -> list[Any]:
    """The value as a JSON list of bounded length."""
    if not isinstance(value, list) or len(value) > MOST_ROWS:
        raise _malformed(where, f"a list of at most {MOST_ROWS} items")
    return value


def number(value: object, *, where: str) -> float:
    """The value as a finite float; ``true`` is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise _malformed(where, "a finite number")
    return float(value) if abs(value) < LARGEST_INTEGER or isinstance(value, float) else _refuse_size(where)


def integer(value: object, *, where: str) -> int:
    """The value as an integer that a double can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_INTEGER:
        raise _malformed(where, "an integer below 2^53")
    return value


def text(value: object, *, where: str) -> str:
    """The value as a string of 1 to 256 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise _malformed(where, "a string of 1 to 256 characters")
    return value


def member(kind: type[Member], value: object, *, where: str) -> Member:
    """The value as a member of a closed enum."""
    names = tuple(item.value for item in kind)
    if not isinstance(value, str) or value not in names:
        raise _malformed(where, f"one of {', '.join(names)}")
    return kind(value)


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn a constructor's refusal into ``MalformedMessage``: here the number came from outside."""
    try:
        yield
    except PrivacyError as error:
        raise MalformedMessage(f"{what}: {error}", hint=error.hint) from None


def _malformed(where: str, wanted: str) -> MalformedMessage:
    return MalformedMessage(f"{where} is not {wanted}", hint="both sides must run versions that write the same schema")


def _refuse_size(where: str) -> float:
    raise _malformed(where, "a number below 2^53")
