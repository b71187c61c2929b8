from __future__ import annotations

import json

import pytest

from fedward_client.commands.report import Report, counted, rows
from fedward_client.view import Output, complain, show
from fedward_common.errors import DataError

REPORT = Report(facts={"units": 2}, lines=("two units",), details=("and their detail",))
PROBLEM = Report(facts={"units": 2}, lines=("two units",), problem=DataError("not ready", hint="mend it"))


@pytest.mark.parametrize(
    ("report", "output", "expected"),
    [
        (REPORT, Output(), "two units\n"),
        (REPORT, Output(verbose=True), "two units\nand their detail\n"),
        (REPORT, Output(quiet=True), ""),
        (PROBLEM, Output(quiet=True), "two units\n"),
    ],
)
def test_what_a_person_sees(report: Report, output: Output, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, output)
    assert capsys.readouterr().out == expected


def test_json_is_one_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, Output(json=True, verbose=True))
    assert json.loads(capsys.readouterr().out) == {"units": 2}


def test_a_terminal_is_given_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report(facts={}, lines=("run \x1b[2J\x07 name\rx",)), Output())
    complain("bad \x1b]0;name", "hint \n more")
    printed = capsys.readouterr()
    assert printed.out == "run ?[2J? name?x\n"
    assert printed.err == "fedward: error: bad ?]0;name\nhint: hint ? more\n"


def test_rows_stand_below_each_other() -> None:
    assert rows([("a", "x"), ("long", "y")]) == ("a     x", "long  y")
    assert (counted(1, "unit", "units"), counted(0, "unit", "units")) == ("1 unit", "0 units")
