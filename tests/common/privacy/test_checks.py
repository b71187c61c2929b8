from __future__ import annotations

import math
from enum import StrEnum

import pytest

from fedward_common.errors import MalformedMessage, PrivacyError
from fedward_common.privacy import checks


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_positive_refuses_and_names(value: float) -> None:
    with pytest.raises(PrivacyError, match="sigma is"):
        checks.positive("sigma", value)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0000001, math.nan])
def test_rate_refuses(value: float) -> None:
    with pytest.raises(PrivacyError, match="q is"):
        checks.rate("q", value)


@pytest.mark.parametrize("value", [0, True, 1.5, "2"])
def test_at_least_takes_integers_only(value: int) -> None:
    with pytest.raises(PrivacyError):
        checks.at_least("steps", value, 1)


def test_edges_are_accepted() -> None:
    checks.rate("q", 1.0)
    checks.at_least("n", 1, 1)
    checks.within("x", 2.0, 2.0, 3.0)
    with pytest.raises(PrivacyError):
        checks.within("x", math.nan, 2.0, 3.0)


@pytest.mark.parametrize("value", [True, "1", None, math.inf, math.nan, 2**60])
def test_number_refuses(value: object) -> None:
    with pytest.raises(MalformedMessage):
        checks.number(value, where="x")


@pytest.mark.parametrize("value", [True, 1.0, "1", 2**53 + 1])
def test_integer_refuses(value: object) -> None:
    with pytest.raises(MalformedMessage):
        checks.integer(value, where="x")


def test_table_wants_exactly_the_keys() -> None:
    assert checks.table({"a": 1}, ("a",), where="x") == {"a": 1}
    values: list[object] = [{}, {"a": 1, "b": 2}, [], None]
    for value in values:
        with pytest.raises(MalformedMessage, match="keys a"):
            checks.table(value, ("a",), where="x")


def test_text_rows_and_members() -> None:
    assert checks.text("a", where="x") == "a"
    assert checks.member(Colour, "red", where="x") is Colour.RED
    for call in (
        lambda: checks.text("", where="x"),
        lambda: checks.text("a" * 257, where="x"),
        lambda: checks.rows("ab", where="x"),
        lambda: checks.rows([0] * 4097, where="x"),
        lambda: checks.member(Colour, "blue", where="x"),
        lambda: checks.member(Colour, 1, where="x"),
    ):
        with pytest.raises(MalformedMessage):
            call()


def test_decoding_turns_refusals_into_malformed_messages() -> None:
    with pytest.raises(MalformedMessage, match="terms: q is 2"), checks.decoding("terms"):
        checks.rate("q", 2.0)
