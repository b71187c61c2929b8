from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.canonical import canonical

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_a_value_has_one_spelling_and_comes_back(value: object) -> None:
    spelled = canonical(value)
    assert spelled.isascii()
    assert canonical(json.loads(spelled)) == spelled
    assert json.loads(spelled) == value


def test_keys_are_sorted_and_there_are_no_spaces() -> None:
    assert canonical({"b": [1, 2], "a": "\u00e9"}) == b'{"a":"\\u00e9","b":[1,2]}'


@pytest.mark.parametrize("value", [math.nan, -math.inf, b"bytes", {1, 2}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical({"x": value})
