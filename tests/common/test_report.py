from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import InputError
from fedward_common.report import Output, Report, complain, counted, rounded_up, rows, show, table

REPORT = Report(facts={"units": 2}, lines=("two\x1b[2J units",), details=("more",))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output(), "two?[2J units\n"),
        (Output(verbose=True), "two?[2J units\nmore\n"),
        (Output(quiet=True), ""),
        (Output(quiet=True, verbose=True), ""),
    ],
)
def test_a_person_reads_lines(output: Output, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, output)
    assert capsys.readouterr().out == expected


def test_a_program_reads_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, Output(json=True, quiet=True))
    assert json.loads(capsys.readouterr().out) == {"units": 2}


def test_a_problem_is_shown_even_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report(facts={}, lines=("why",), problem=InputError("x", hint="y")), Output(quiet=True))
    assert capsys.readouterr().out == "why\n"


def test_errors_are_two_lines_whatever_is_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    complain("what\nnow", "do\x07 this")
    complain("it goes on", "stop it", word="note")
    assert capsys.readouterr().err == (
        "fedward: error: what now\nhint: do? this\nfedward: note: it goes on\nhint: stop it\n"
    )


def test_columns_are_as_wide_as_they_must_be() -> None:
    assert rows([("a", "1"), ("long", "2")]) == ("a     1", "long  2")
    assert rows([]) == ()
    assert table(("a", "b"), []) == ("a  b",)
    assert table(("a", "b"), [("xyz", ""), ("", "1")]) == ("a    b", "xyz", "     1")
    assert (counted(1, "site", "sites"), counted(0, "site", "sites")) == ("1 site", "0 sites")


@given(epsilon=st.floats(0, 1e300), digits=st.integers(0, 4))
def test_a_shown_epsilon_is_never_below_the_true_one_nor_a_digit_above(epsilon: float, digits: int) -> None:
    shown = float(rounded_up(epsilon, digits=digits))
    assert epsilon <= shown <= math.nextafter(epsilon, math.inf) + 10**-digits


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(7.9904, "8.00"), (7.99, "7.99"), (8.0, "8.00"), (0.30000000000000004, "0.31"), (math.inf, "inf")],
)
def test_epsilons_are_rounded_up(epsilon: float, shown: str) -> None:
    assert rounded_up(epsilon, digits=2) == shown
