from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_simulations.watching.panel import Row, bar, curve, dots, height, panel_rows
from fedward_simulations.watching.progress import Progress
from support.told import SITES, config, record


def text_of(cell: tuple[tuple[str, str], ...]) -> str:
    return "".join(text for text, _ in cell)


def by_label(rows: list[Row]) -> dict[str, tuple[str, str, str]]:
    return {row[0]: (text_of(row[1]), text_of(row[2]), text_of(row[3])) for row in rows if row[0]}


def a_progress(rounds: int) -> Progress:
    progress = Progress(clock=lambda: 0.0)
    progress.start(config=config(), sites=SITES, records=SITES)
    for number in range(1, rounds + 1):
        progress.begin_round(round=number, stage=record(number).stage, attempt=1, cohort=2)
        progress.answers.extend(["update"] * 2)
        progress.end_round(record(number))
    return progress


def test_before_the_first_round_there_is_only_the_time() -> None:
    assert list(by_label(panel_rows(a_progress(0), width=74, lines=1))) == ["Time"]


def test_a_run_under_way_shows_every_figure() -> None:
    progress = a_progress(5)
    progress.end_round(record(5, sites={"accuracy": 0.5}))
    rows = by_label(panel_rows(progress, width=74, lines=1))
    assert rows["Round"][0] == "5/6"
    assert rows["Round"][2] == "adapter, stage 2 of 2"
    assert rows["Accuracy"][0] == "0.0500"
    assert rows["Loss"][2] == "best 2.500"
    assert rows["At sites"] == ("0.5000", "noisy accuracy", "at round 5")
    assert rows["Epsilon"] == ("7.99 of 8", "for the whole run", "delta 1e-05, per record")
    assert rows["Traffic"][0] == "0.2 MB up"


def test_speed_and_memory_have_a_row_of_their_own() -> None:
    clock = iter(range(1000))
    progress = Progress(clock=lambda: float(next(clock)), memory=lambda: {"host": 1_500_000_000, "device": 0})
    progress.start(config=config(), sites=SITES, records=dict.fromkeys(SITES, 4_000_000))
    progress.begin_round(round=1, stage="head", attempt=1, cohort=2)
    assert by_label(panel_rows(progress, width=74, lines=1))["Speed"] == ("-", "", "memory 1.5 GB")
    progress.answer(site="site-1", outcome="update")
    figure, records, _ = by_label(panel_rows(progress, width=74, lines=1))["Speed"]
    assert figure.endswith(" sites/s")
    assert records.endswith(",000 records/s")


def test_caching_says_how_many_sites_are_ready() -> None:
    progress = a_progress(0)
    progress.begin_round(round=1, stage="head", attempt=2, cohort=2)
    progress.cache(site="site-1", done=100, total=100)
    rows = by_label(panel_rows(progress, width=74, lines=1))
    assert rows["Features"][0] == "56%"
    assert rows["Features"][2] == "1 of 2 sites ready"
    assert rows["Round"][2].endswith("attempt 2")


def test_tall_curves_take_their_lines() -> None:
    rows = panel_rows(a_progress(5), width=74, lines=4)
    assert [height(row) for row in rows if row[0] in ("Accuracy", "Loss")] == [4, 4]


@given(share=st.floats(-1, 2), width=st.integers(1, 200))
def test_a_bar_has_its_width(share: float, width: int) -> None:
    assert len(text_of(bar(share, width))) == width


@given(counts=st.lists(st.integers(0, 500), min_size=4, max_size=4), cells=st.integers(1, 100))
def test_dots_fill_their_cells(counts: list[int], cells: int) -> None:
    assert len(text_of(dots(counts, cells=cells))) == (cells if sum(counts) else 0)


@given(
    values=st.dictionaries(st.integers(1, 500), st.floats(-1e6, 1e6), min_size=1, max_size=40),
    rounds=st.integers(500, 1000),
    width=st.integers(1, 120),
    lines=st.integers(1, 6),
)
def test_a_curve_stays_in_its_box(values: dict[int, float], rounds: int, width: int, lines: int) -> None:
    graph = curve(values, rounds=rounds, width=width, lines=lines)
    assert len(graph) == lines
    assert len({len(line) for line in graph}) == 1
    assert 1 <= len(graph[0]) <= width


@pytest.mark.parametrize("lines", [1, 4])
def test_a_flat_curve_is_a_line_and_not_an_error(lines: int) -> None:
    assert curve({1: 0.5, 2: 0.5}, rounds=2, width=4, lines=lines)[-1] == "▁▁▁▁"
