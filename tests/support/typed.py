"""Commands as they are typed: run in this process, with what they print and how they end; and transcripts of errors.

Example:
    told = typed(main, "fedward-server", "sites", folder)
    assert told.code == 0
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Main = Callable[[], None]


@dataclass(frozen=True)
class Told:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def typed(main: Main, program: str, *arguments: str | Path) -> Told:
    """Run a program's command to its end."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
    return Told(int(str(stopped.value.code)), out.getvalue(), err.getvalue())


def transcript(path: Path, program: str) -> list[tuple[str, str]]:
    """The blocks of a transcript: what was typed after the program's name, and what is said."""
    parts = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [(part.split("\n", 1)[0].removeprefix(f"$ {program} "), part.split("\n", 1)[1]) for part in parts]


def check_transcript(main: Main, program: str, command: str, expected: str) -> None:
    """A command says exactly this on stderr, and ends so."""
    told = typed(main, program, *shlex.split(command))
    assert f"{told.err}exit {told.code}" == expected
    assert "Traceback" not in told.err + told.out


def check_shape(blocks: Iterable[tuple[str, str]]) -> None:
    """Every error is two lines and exit code 2."""
    for command, text in blocks:
        error, hint, code = text.split("\n")
        assert error.startswith("fedward: error: "), command
        assert hint.startswith("hint: "), command
        assert code == "exit 2", command


def again(main: Main, program: str, commands: Iterable[str]) -> Iterator[str]:
    """The blocks of a transcript as they would be written now."""
    for command in commands:
        told = typed(main, program, *shlex.split(command))
        yield f"$ {program} {command}\n{told.err}exit {told.code}"
