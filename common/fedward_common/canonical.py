r"""The one spelling of a JSON value, for whatever is hashed, signed or compared byte by byte.

Example:
    >>> canonical({"b": 1, "a": ["\u00e9", 2.0]})
    b'{"a":["\\u00e9",2.0],"b":1}'
"""

from __future__ import annotations

import json

__all__ = ["canonical"]

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: object) -> bytes:
    """Sorted keys, no spaces, ASCII, no NaN.

    Raises:
      TypeError: it is no JSON.
      ValueError: it holds NaN or infinity, or itself.
    """
    return ENCODER.encode(value).encode("ascii")
