from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedward_common.config import RoundsConfig
from fedward_simulations.dealing.inspect import summarise
from fedward_simulations.watching.lines import JsonView, LineView
from fedward_simulations.watching.live import LiveView
from fedward_simulations.watching.tables import print_columns, print_metrics
from fedward_simulations.watching.view import OutputMode, choose_view
from support.told import SITES, STAGES, SUMMARY, config, record, tell

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def a_console(width: int, *, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def frame(view: LiveView, width: int, *, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(view)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def shown(console: Console) -> str:
    return str(console.file.getvalue())  # type: ignore[attr-defined]


# ---- lines -------------------------------------------------------------------------
def lines_of(rounds: int, *, summary: Mapping[str, Any] | None = None) -> list[str]:
    stream = io.StringIO()
    with LineView(stream=stream) as view:
        tell(view, rounds=rounds)
        if summary is not None:
            view.finished(summary)
    return stream.getvalue().splitlines()


def test_lines_say_one_line_a_round_without_escape_codes() -> None:
    lines = lines_of(6, summary=SUMMARY)
    rounds = [line for line in lines if line.startswith("round ")]
    assert [line.split()[1] for line in rounds] == [f"{number}/6" for number in range(1, 7)]
    assert "accuracy 0.0300" in rounds[2]
    assert "2/2 sites" in rounds[2]
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_lines_announce_the_promise_and_each_cached_site_once() -> None:
    lines = lines_of(2)
    assert "promise: epsilon 8 at delta 1e-05, per record, at each site" in lines
    assert [line for line in lines if line.startswith("features")] == [
        "features cached: site-1 (1/2)",
        "features cached: site-2 (2/2)",
    ]


def cached_lines(*, sites: int, cohort: int = 0, asked: int = 0) -> list[str]:
    stream, names = io.StringIO(), [f"site-{number}" for number in range(1, sites + 1)]
    view = LineView(stream=stream)
    terms = config(rounds=RoundsConfig(cohort=cohort))
    view.started(config=terms, sites=dict.fromkeys(names, 10), records={}, out=Path("runs/wards"))
    for name in names[: asked or sites]:
        view.caching(name, 10, 10)
    return [line for line in stream.getvalue().splitlines() if line.startswith("features cached")]


def test_many_cached_sites_are_about_ten_lines_and_the_last_one_is_among_them() -> None:
    lines = cached_lines(sites=1200)
    assert len(lines) <= 12
    assert lines[0] == "features cached: site-1 (1/1200)"
    assert lines[-1] == "features cached: site-1200 (1200/1200)"


def test_cached_sites_are_counted_without_a_total_where_only_a_cohort_is_asked() -> None:
    lines = cached_lines(sites=1000, cohort=8, asked=30)
    assert [line.partition("(")[2] for line in lines] == [
        "1 site so far)", "2 sites so far)", "5 sites so far)", "10 sites so far)", "20 sites so far)",
    ]  # fmt: skip
    assert cached_lines(sites=4, cohort=4)[-1] == "features cached: site-4 (4/4)"


def test_lines_say_one_site_of_one() -> None:
    stream = io.StringIO()
    view = LineView(stream=stream)
    view.started(config=config(stages=STAGES[:1]), sites={"ward": 10}, records={}, out=Path("runs/wards"))
    view.round_finished(record(1, cohort=1, replied=1))
    text = stream.getvalue()
    assert ", 1 site, 4 rounds, " in text
    assert "1/1 site  " in text


def test_lines_name_refusals_drops_and_abandoned_rounds() -> None:
    stream = io.StringIO()
    view = LineView(stream=stream)
    view.started(config=config(), sites=SITES, records=SITES, out=Path("runs/wards"))
    view.round_finished(record(1, refused={"unavailable": 1}, dropped={"late": 1}, replied=0, abandoned=True))
    last = stream.getvalue().splitlines()[-1]
    assert "abandoned" in last
    assert "refused: 1 unavailable" in last
    assert "dropped: 1 late" in last


def test_lines_end_with_the_summary_and_a_caveat_where_it_is_due() -> None:
    assert "  accuracy         0.7025" in lines_of(6, summary=SUMMARY)
    assert not any(line.startswith("note:") for line in lines_of(6, summary=SUMMARY))
    assert lines_of(6, summary={**SUMMARY, "accuracy": 0.2})[-1].startswith("note: accuracy is no better")


def test_a_line_survives_a_stream_that_cannot_spell_a_name() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    LineView(stream=stream).note("Kantonsspital Zürich\nround 9")
    stream.seek(0)
    assert stream.read() == "note: Kantonsspital Z\\xfcrich round 9\n"


# ---- JSON --------------------------------------------------------------------------
def test_json_is_all_that_stdout_holds_and_the_summary_is_last(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonView() as view:
        print("a library says hello")
        tell(view, rounds=6)
        view.note("one site moved")
        view.finished({**SUMMARY, "loss": float("nan")})
        view.note("too late")
    out = capsys.readouterr()
    events = [json.loads(line) for line in out.out.splitlines()]
    assert [event["event"] for event in events] == ["started", *["round"] * 6, "note", "summary"]
    assert out.err == "a library says hello\n"
    assert events[0]["sites"] == SITES
    assert events[3]["evaluation"] == {"accuracy": 0.03, "loss": 2.7}
    assert events[-1]["loss"] is None
    assert events[-1]["accuracy"] == SUMMARY["accuracy"]


# ---- the panel ---------------------------------------------------------------------
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_panel_holds_the_figures_within_the_terminal(width: int) -> None:
    view = LiveView(console=a_console(width), clock=lambda: 0.0)
    view._progress.notes.append("an earlier result was moved to runs/wards.1")
    tell(view, rounds=5)
    view.round_started(round=6, stage="adapter", attempt=2, cohort=2)
    view.answered("site-1", "update")
    view.answered("site-2", "unavailable")
    lines = frame(view, width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for figure in ("6/6", "1/2", "●▲", "1 refused", "0.0500", "2.500", "best 0.0500", "7.99 of 8",
                   "delta 1e-05, per record", "0.2 MB up", "0.2 MB down", "stage 2 of 2", "attempt 2"):  # fmt: skip
        assert figure in text
    assert "an earlier result was moved" in text


def test_a_wide_panel_keeps_graphs_and_remarks_in_columns() -> None:
    view = LiveView(console=a_console(80), clock=lambda: 0.0)
    tell(view, rounds=5)
    lines = frame(view, 80, height=40)
    remarks = ("adapter, stage 2 of 2", "best 0.0500", "best 2.500", "delta 1e-05")
    assert {line.index(remark) for remark in remarks for line in lines if remark in line} == {3 + 74 - 24}
    assert "│  Accuracy  0.0500" in next(line for line in lines if "best 0.0500" in line)


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 12), (60, 24), (80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_the_panel_fits_any_terminal(width: int, height: int, rounds: int) -> None:
    view = LiveView(console=a_console(width), clock=lambda: 0.0)
    view._progress.notes.extend(f"note {number}" for number in range(50))
    tell(view, rounds=rounds)
    lines = frame(view, width, height=height)
    assert all(len(line) <= width for line in lines)
    if height >= 24:
        assert len(lines) < height


def test_a_finished_panel_leaves_notes_and_results_and_gives_stderr_back(capsys: pytest.CaptureFixture[str]) -> None:
    console, before = a_console(80), sys.stderr
    with LiveView(console=console) as view:
        view.note("an earlier result was moved to runs/wards.1")
        sys.stderr.write("a library warns\n")
        assert capsys.readouterr().err == ""
        tell(view, rounds=6)
        view.finished(SUMMARY)
    assert sys.stderr is before
    assert capsys.readouterr().err == "a library warns\n"
    _, _, after = shown(console).rpartition(f"{ESCAPE}[?1049l")  # back from the alternate screen
    for text in ("moved to runs/wards.1", "0.7025", "commonest label", "epsilon 7.99 at delta 1e-05", "runs/wards"):
        assert text in after
    assert "stopped" not in after


def test_a_stopped_panel_says_how_far_it_came_before_what_stderr_held(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80, force_terminal=True, color_system=None)  # stdout, as in life
    with pytest.raises(KeyboardInterrupt), LiveView(console=console) as view:
        tell(view, rounds=2)
        sys.stderr.write("hint: resume\n")
        raise KeyboardInterrupt
    out = capsys.readouterr()
    assert out.out.rpartition(f"{ESCAPE}[?1049l")[2].splitlines()[-1] == (
        "stopped after round 2  accuracy 0.0200  epsilon 7.99"
    )
    assert f"{ESCAPE}[?25h" in out.out  # the cursor is back
    assert out.err == "hint: resume\n"


def test_a_note_breaks_between_words_alone() -> None:
    screen = Terminal()
    console = Console(file=screen, width=30, force_terminal=True, no_color=True)
    path = "/results/of/a/study/that/is/longer/than/a/line"
    LiveView(console=console).note(f"an earlier result was moved to {path} just now")
    shown = [line.strip() for line in screen.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").split("\n")]
    assert shown == ["· an earlier result was moved", "to", path, "just now", ""]


def test_a_note_cannot_move_the_cursor() -> None:
    console = a_console(80)
    LiveView(console=console).note(f"site-1 refused: {ESCAPE}[2J\rdone")
    assert f"{ESCAPE}[2J" not in shown(console)


# ---- choosing, and tables ----------------------------------------------------------
def test_auto_is_a_panel_only_on_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(choose_view(OutputMode.AUTO, stream=Terminal()), LiveView)
    assert isinstance(choose_view(OutputMode.AUTO, stream=io.StringIO()), LineView)
    assert isinstance(choose_view(OutputMode.LINES, stream=Terminal()), LineView)
    assert isinstance(choose_view(OutputMode.JSON, stream=Terminal()), JsonView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_view(OutputMode.AUTO, stream=Terminal()), LineView)


def test_tables_are_plain_and_whole_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    name = "Chapter 19: " + "Injury, poisoning and certain other consequences of external causes " * 2
    print_columns(summarise({"label": [name.strip(), "no"] * 30}))
    print_metrics({"accuracy": 0.5, "per_class": {name.strip(): dict.fromkeys(("precision", "recall", "f1"), 0.5) | {
        "support": 30
    }}})  # fmt: skip
    out = capsys.readouterr().out
    assert out.count(name.strip()) == 2
    assert ESCAPE not in out
