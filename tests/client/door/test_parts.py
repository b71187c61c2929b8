from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.door import parts
from fedward_client.door.parts import PART_BYTES, announced, joined
from fedward_common.errors import MalformedMessage
from support.memory import traced


@given(st.integers(0, 3), st.integers(-2, 2))
def test_what_is_announced_and_parted_is_joined_again(whole: int, more: int) -> None:
    data = bytes(range(251)) * ((max(0, whole * PART_BYTES + more)) // 251 + 1)
    data = data[: max(0, whole * PART_BYTES + more)]
    size, pieces = announced(data)
    kept = list(pieces)
    assert size == len(data) and all(0 < len(piece) <= PART_BYTES for piece in kept)
    assert joined(size, kept) == data


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (3, [b"ab"]),
        (3, [b"ab", b"cd"]),
        (3, [b"abc", b"d"]),
        (3, [b"abc", b""]),
        (0, [b"a"]),
        (2 * PART_BYTES, [bytes(PART_BYTES + 1), bytes(PART_BYTES - 1)]),
    ],
)
def test_parts_that_are_not_what_was_announced_are_refused(size: int, pieces: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        joined(size, pieces)


def test_what_is_joined_is_kept_once() -> None:
    size, pieces = 32 * PART_BYTES, (bytes([number]) * PART_BYTES for number in range(32))
    with traced() as peak:
        whole = joined(size, pieces)
        assert peak() < 1.3 * size
    assert len(whole) == size


def test_never_more_than_the_announced_size_is_kept() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(MalformedMessage):
        joined(5000, endless())
    assert taken == 6


def test_limits_fit_each_other() -> None:
    assert dict(parts.CHANNEL_OPTIONS)["grpc.max_receive_message_length"] > PART_BYTES
    assert parts.SILENCE_S > 5 * parts.BEAT_S
