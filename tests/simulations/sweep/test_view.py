from __future__ import annotations

import io
import json

import pytest

from fedward_simulations.sweep.progress import SweepProgress
from fedward_simulations.sweep.view import SweepView, _Live, choose_sweep_view


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show(view: SweepView) -> None:
    clock = iter([0.0] + [10.0] * 99)
    progress = SweepProgress(rounds={"a": 2, "b": 2}, finished=[], clock=lambda: next(clock, 10.0))
    with view:
        view.started(name="curve", out="out", progress=progress)
        progress.advance("b", rounds=1)
        progress.end("a", failed=False)
        view.ended(label="privacy.epsilon=1.0", seed=0, outcome="accuracy 0.5000")
        view.tick()
        progress.end("b", failed=True)
        view.ended(label="", seed=1, outcome="failed: out of\nluck")
        view.note("a note")
        view.finished({"runs": 2}, ["point  n"])


def test_plain_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    show(choose_sweep_view(json_lines=False, stream=stream))
    assert stream.getvalue().splitlines() == [
        "curve: 2 runs, 0 done before, into out",
        "1/2 done  1 running  about 5 s left  privacy.epsilon=1.0 seed 0: accuracy 0.5000",
        "1/2 done  1 failed  10 s  run seed 1: failed: out of luck",
        "note: a note",
        "point  n",
    ]


def test_one_run_is_one_run() -> None:
    stream = io.StringIO()
    view = choose_sweep_view(json_lines=False, stream=stream)
    view.started(name="curve", out="out", progress=SweepProgress(rounds={"a": 2}, finished=[]))
    assert stream.getvalue() == "curve: 1 run, 0 done before, into out\n"


@pytest.mark.parametrize(("columns", "lines"), [(30, 3), (60, 2), (66, 1), (80, 1), (200, 1)])
def test_the_bar_is_legible_without_colour_and_leaves_its_words_whole(
    columns: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    clock = iter([0.0] + [4000.0] * 99)
    names = [f"run-{number}" for number in range(100)]
    progress = SweepProgress(rounds=dict.fromkeys(names, 10), finished=[], clock=lambda: next(clock))
    view = choose_sweep_view(json_lines=False, stream=Terminal())
    assert isinstance(view, _Live)
    with view:
        view.started(name="curve", out="out", progress=progress)
        for number, name in enumerate(names[:58]):
            progress.end(name, failed=number < 12)
        for name in names[58:70]:
            progress.advance(name, rounds=1)
    assert view._console is not None
    shown = [line.plain for line in view._bar().wrap(view._console, columns)]
    assert len(shown) == lines
    assert all(len(line) <= columns for line in shown)
    assert "━" in shown[0] and "─" in shown[0]
    words = " ".join(line.strip(" ━╸─") for line in shown).strip()
    assert words.replace("  ", " ") == "46/100 done 12 failed 12 running about 58 min left"


def test_json_is_one_object_a_line_and_the_summary_last() -> None:
    stream = io.StringIO()
    show(choose_sweep_view(json_lines=True, stream=stream))
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["event"] for row in rows] == ["started", "run", "run", "note", "summary"]
    assert (rows[2]["done"], rows[2]["failed"], rows[2]["seed"]) == (1, 1, 1)
    assert rows[-1]["runs"] == 2


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    stream = Terminal()
    show(choose_sweep_view(json_lines=False, stream=stream))
    shown = stream.getvalue()
    assert "━" in shown
    assert "about 5 s left" in shown
    assert shown.rstrip().endswith("point  n")
