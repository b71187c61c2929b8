from __future__ import annotations

import pytest

from fedward_common.errors import InputError
from fedward_server.deployment.outcome import Ending, Order

TOKEN = "very-secret-token"  # noqa: S105 - of a fake


def test_an_order_is_read_back_and_never_shown() -> None:
    order = Order(port=8000, token=TOKEN)
    assert Order.from_bytes(order.to_bytes()) == order
    assert TOKEN not in repr(order)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"port": 1}', b'{"port": "x", "token": ""}', b"null"])
def test_anything_else_is_no_order(content: bytes) -> None:
    with pytest.raises(InputError, match="no order"):
        Order.from_bytes(content)


def test_endings_differ_from_a_crash_and_from_a_shells_codes() -> None:
    assert len(set(Ending)) == len(Ending)
    assert not {1, 2, 126, 127} & set(Ending)
