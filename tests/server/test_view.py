from __future__ import annotations

import io
import json

import pytest

from fedward_common.report import Output
from fedward_server.commands.follow import Seen
from fedward_server.deployment.runs import RunState, RunStatus
from fedward_server.view import choose_view
from support.operating import diary_row

LOOKS = [
    Seen(status=RunStatus(rounds=4), rounds=[]),
    Seen(status=RunStatus(state=RunState.RUNNING, rounds=4, stage="head", sites_connected=2), rounds=[]),
    Seen(status=RunStatus(state=RunState.RUNNING, round=1, rounds=4, sites_connected=2), rounds=[diary_row(1)]),
    Seen(status=RunStatus(state=RunState.FINISHED, round=2, rounds=4), rounds=[diary_row(2, stage="he\x1b[2Jad")]),
]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def seen(output: Output, stream: io.StringIO) -> str:
    with choose_view(output, name="wards", stream=stream) as view:
        for look in LOOKS:
            view.seen(look)
    return stream.getvalue()


def test_lines_tell_each_round_and_each_change_of_state_once() -> None:
    assert seen(Output(), io.StringIO()).splitlines() == [
        "run wards: waiting  round 0/4  0 sites connected",
        "run wards: running  round 0/4  head  2 sites connected",
        "round 1/4  head  2 of 3 sites  no_answer 1  1.5 s",
        "round 2/4  he?[2Jad  2 of 3 sites  no_answer 1  1.5 s",
        "run wards: finished  round 2/4",
    ]


def test_json_is_one_object_a_line() -> None:
    rows = [json.loads(line) for line in seen(Output(json=True), io.StringIO()).splitlines()]
    assert [row["event"] for row in rows] == ["status", "status", "round", "status", "round", "status"]
    assert rows[-1]["state"] == "finished"


def test_quiet_is_silent() -> None:
    assert seen(Output(quiet=True), io.StringIO()) == ""


def test_a_terminal_gets_a_panel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert seen(Output(), Terminal()) == ""  # rich writes to the terminal itself
    shown = capsys.readouterr().out
    assert "run wards" in shown
    assert "finished  round 2/4" in shown
    assert "round 1/4  head" in shown
    assert "\x1b[2J" not in shown
    monkeypatch.setenv("TERM", "dumb")
    assert "run wards: waiting" in seen(Output(), Terminal())
