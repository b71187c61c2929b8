"""Looking for canaries: as they are, in another case, as JSON, hex, base64 at any offset, UTF-16, reversed, deflated.

Example:
    >>> found(b"a harmless text", ["zqward"])
    []
    >>> found(base64.b64encode(b"x zqward0001 y"), ["zqward"])
    ['base64 of zqward', 'base64url of zqward']
    >>> found(json.dumps({"text": "a zqwärd"}).encode(), ["zqwärd"])
    ['JSON of zqwärd']
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence

SMALLEST = 6  # a shorter canary would turn up in random bytes
ZLIB_STARTS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b\x08")
MOST_INFLATED = 1 << 20


def found(data: bytes, canaries: Sequence[str]) -> list[str]:
    """Which canaries are in some bytes, and in which spelling."""
    texts = [("", data), *(("deflated ", inflated) for inflated in _inflated(data))]
    hits = []
    for how, text in texts:
        lowered = text.lower()
        for canary in canaries:
            hits += [f"{how}{name} of {canary}" for name, form in _spellings(canary) if form in text]
            hits += [f"{how}plain {canary}"] if canary.lower().encode() in lowered else []
    return hits


def _spellings(canary: str) -> Iterator[tuple[str, bytes]]:
    raw = canary.encode()
    assert len(raw) >= SMALLEST
    if (escaped := json.dumps(canary)[1:-1]) != canary:
        yield "JSON", escaped.encode()
    yield "hex", raw.hex().encode()
    yield "HEX", raw.hex().upper().encode()
    yield "UTF-16", canary.encode("utf-16-le")
    yield "reversed", raw[::-1]
    for offset in range(3):
        # what three bytes before it would make of it: the first and last characters depend on the neighbours
        coded = base64.b64encode(b"\0" * offset + raw)
        inner = coded[(0, 2, 3)[offset] : (len(raw) + offset) // 3 * 4]
        yield "base64", inner
        yield "base64url", inner.replace(b"+", b"-").replace(b"/", b"_")


def _inflated(data: bytes) -> Iterator[bytes]:
    for start in ZLIB_STARTS:
        at = data.find(start)
        while at >= 0:
            wbits = 31 if start[0] == 0x1F else 15
            try:
                inflated = zlib.decompressobj(wbits).decompress(data[at : at + MOST_INFLATED], MOST_INFLATED)
            except zlib.error:
                inflated = b""
            if len(inflated) >= SMALLEST:
                yield inflated
            at = data.find(start, at + 1)
