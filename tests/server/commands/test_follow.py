from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_server.commands.follow import Kind, Tail, follow, round_line, status_line
from fedward_server.deployment.runs import RunFolder, RunState, RunStatus
from support.operating import diary_row, new_operator, new_run, write_diary


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return new_run(new_operator(tmp_path / "op"), tmp_path / "b")


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    with (tmp_path / "log").open("w") as file:
        for text, expected in [("a\nb", ["a"]), ("c\n", ["bc"]), ("", []), ("\nd\n", ["", "d"])]:
            file.write(text)
            file.flush()
            assert tail.lines() == expected


def test_a_diary_that_was_rewound_is_not_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text("one\ntwo\nthree\n")
    tail = Tail(path)
    assert tail.lines() == ["one", "two", "three"]
    (tmp_path / "new").write_text("one\ntwo\n")
    os.replace(tmp_path / "new", path)
    assert tail.lines() == []
    with path.open("a") as file:
        file.write("three again\n")
    assert tail.lines() == ["three again"]


def test_no_line_of_a_log_is_lost_or_given_twice_when_it_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("one\ntwo\n")
    log = Tail(path, Kind.LOG)
    assert log.lines() == ["one", "two"]
    with path.open("a") as file:
        file.write("three\n")
    os.replace(path, tmp_path / "log.jsonl.1")
    path.write_text("four\nfive\nsix\n")
    assert log.lines() == ["three", "four", "five", "six"]
    assert log.lines() == []


def test_a_log_that_began_before_is_not_told_twice(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl.1").write_text("old\n")
    (tmp_path / "log.jsonl").write_text("new\n")
    assert Tail(tmp_path / "log.jsonl", Kind.LOG).lines() == ["new"]


def test_what_is_no_json_object_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"a": 1}\nnonsense\n[1]\n\xff\n{"b": 2}\n')
    assert Tail(tmp_path / "log").rows() == [{"a": 1}, {"b": 2}]


def test_following_ends_when_the_run_is_over_and_misses_nothing(run: RunFolder) -> None:
    def end() -> None:
        write_diary(run, diary_row(2))
        run.write_status(RunStatus(state=RunState.FINISHED, rounds=4))

    steps: list[Callable[[], None]] = [
        lambda: None,
        lambda: run.write_status(RunStatus(state=RunState.RUNNING, rounds=4)),
        lambda: write_diary(run, diary_row(1)),
        end,
    ]
    looks = list(follow(run, sleep=lambda _: steps.pop(0)()))
    assert [look.status.state for look in looks] == [
        RunState.WAITING,
        RunState.RUNNING,
        RunState.RUNNING,
        RunState.FINISHED,
    ]
    assert [row["round"] for look in looks for row in look.rounds] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "round 2/4  head  2 of 3 sites  no_answer 1  1.5 s"),
        ({"attempt": 2, "abandoned": True}, "round 2/4  head  attempt 2  2 of 3 sites  no_answer 1  abandoned  1.5 s"),
        (
            {"dropped": {}, "sites": {"accuracy": 0.71234, "sites": 2.0}, "evaluation": {"accuracy": 0.5}},
            "round 2/4  head  2 of 3 sites  accuracy 0.5  sites.accuracy 0.7123  1.5 s",
        ),
    ],
)
def test_a_round_is_a_line(changes: dict[str, object], expected: str) -> None:
    assert round_line(diary_row(2, **changes), rounds=4) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (RunStatus(rounds=4), "waiting  round 0/4  0 sites connected"),
        (
            RunStatus(state=RunState.RUNNING, round=1, rounds=4, stage="head", attempt=2, sites_connected=1, starts=3),
            "running  round 1/4  head  attempt 2  1 site connected  started 3 times",
        ),
        (RunStatus(state=RunState.FAILED, rounds=4, reason="why"), "failed  round 0/4  why"),
        (RunStatus(state=RunState.FINISHED, round=4, rounds=4), "finished  round 4/4"),
    ],
)
def test_a_status_is_a_line(status: RunStatus, expected: str) -> None:
    assert status_line(status) == expected
