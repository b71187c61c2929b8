from __future__ import annotations

import re
import sys

import pytest
import typer

from fedward_common.cli import Command, group, run, tell
from fedward_common.errors import InputError, PrivacyError
from fedward_common.report import Report


@pytest.fixture
def program() -> typer.Typer:
    app = group("prog", "A program.")

    @app.callback()
    def _nothing() -> None:
        pass

    @app.command(cls=Command)
    def act(what: str) -> None:
        """Do it."""
        if what == "refuse":
            raise PrivacyError("no", hint="never")
        if what == "break":
            raise KeyError("CANARY")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "three":
            raise typer.Exit(3)
        problem = InputError("half", hint="mend it") if what == "half" else None
        tell(Report(facts={"what": what}, lines=(what,), problem=problem))

    return app


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["act", "it"], 0, "it\n", ""),
        (["act", "it", "--json"], 0, '{"what": "it"}\n', ""),
        (["act", "it", "-q"], 0, "", ""),
        (["act", "half"], 2, "half\n", "fedward: error: half\nhint: mend it\n"),
        (["act", "refuse"], 2, "", "fedward: error: no\nhint: never\n"),
        (["act", "interrupt"], 130, "", ""),
        (["act", "three"], 3, "", ""),
        (["act"], 2, "", "fedward: error: Missing argument 'WHAT'.\nhint: prog act --help\n"),
    ],
)
def test_each_end_has_its_exit_code(
    program: typer.Typer,
    words: list[str],
    code: int,
    out: str,
    err: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    with pytest.raises(SystemExit) as stopped:
        run(program, "prog")
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err) == (code, out, err)


def test_an_error_that_nobody_foresaw_shows_its_type_and_place_and_not_its_text(
    program: typer.Typer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", "act", "break"])
    with pytest.raises(SystemExit):
        run(program, "prog")
    said = capsys.readouterr().err
    assert re.match(r"fedward: error: internal error of type KeyError at \w+\.py:\d+\nhint: ", said)
    assert "CANARY" not in said


def test_without_a_word_it_says_what_there_is(
    program: typer.Typer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(SystemExit) as stopped:
        run(program, "prog")
    assert stopped.value.code == 2
    assert "Do it." in capsys.readouterr().out
