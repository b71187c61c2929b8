from __future__ import annotations

import math

import pytest

from fedward_common.checks import at_least, hex_digest, positive
from fedward_common.errors import InputError


@pytest.mark.parametrize("value", [0, -1, 0.0, -0.0, -1e-300, math.nan, math.inf, -math.inf])
def test_positive_refuses_and_prints_name_and_value(value: float) -> None:
    with pytest.raises(InputError, match=r"^rank is ") as caught:
        positive("rank", value)
    assert repr(value) in str(caught.value)
    assert "rank" in caught.value.hint


@pytest.mark.parametrize("value", [1, 5e-324, 1.7e308])
def test_positive_returns_the_value(value: float) -> None:
    assert positive("rank", value) == value


def test_at_least_is_inclusive() -> None:
    assert at_least("rounds", 3, 3) == 3
    with pytest.raises(InputError, match="rounds is 2"):
        at_least("rounds", 2, 3)


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_hex_digest_refuses_all_but_64_lower_case_hex_digits(value: str) -> None:
    with pytest.raises(InputError, match="run_id is no SHA-256"):
        hex_digest("run_id", value)
    assert hex_digest("run_id", "0123456789abcdef" * 4)
