from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_simulations.watching.panel import GAP, Row, bar, curve, dots, graph_width, height, panel_rows
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


def test_the_epsilon_of_the_panel_is_never_below_the_true_one() -> None:
    progress = a_progress(1)
    progress.end_round(record(2, epsilon=7.9904))
    assert by_label(panel_rows(progress, width=74, lines=1))["Epsilon"][0] == "8.00 of 8"


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


def a_busy_progress() -> Progress:
    """Every row, each with long figures."""
    clock = iter(range(1000))
    progress = Progress(clock=lambda: float(next(clock)), memory=lambda: dict.fromkeys(("host", "device"), 12 * 10**9))
    progress.start(config=config(), sites=SITES, records=dict.fromkeys(SITES, 900_000))
    for number in range(1, 6):
        progress.begin_round(round=number, stage=record(number).stage, attempt=1, cohort=2)
        progress.answer(site="site-1", outcome="update")
        progress.end_round(record(number, sites={"accuracy": 0.5}, bytes_up=10**8, bytes_down=10**8, seconds=67.0))
    progress.begin_round(round=6, stage="adapter", attempt=2, cohort=4)
    for outcome in ("update", "unavailable", "late"):
        progress.answer(site="site-1", outcome=outcome)
    progress.cache(site="site-1", done=100, total=100)
    return progress


def words_of(row: Row) -> str:
    return " ".join(text_of(cell) for cell in row[1:])


@pytest.mark.parametrize("terminal", [60, 61, 66, 79, 80, 110])
def test_from_60_columns_up_no_figure_is_cut(terminal: int) -> None:
    width = terminal - 6
    rows, graph = panel_rows(a_busy_progress(), width=width, lines=1), graph_width(width)
    right = width - 8 - 13 - 2 * GAP
    for _, figure, drawn, said in rows:
        assert len(text_of(figure)) <= 13
        assert len(text_of(drawn)) <= (graph if said else right)
        assert graph + GAP + len(text_of(said)) <= right
    text = " ".join(" ".join(map(words_of, rows)).split())
    for words in ("adapter, stage 2 of 2, attempt 2", "1 refused, 1 dropped", "1 of 2 sites ready", "best 0.0500",
                  "noisy accuracy", "for the whole run", "delta 1e-05, per record", "500.0 MB down", " records/s",
                  "memory 12.0 GB, GPU 12.0 GB", "about 1 min 10 s left"):  # fmt: skip
        assert words in text


def test_a_remark_stands_beside_its_graph_where_it_fits_and_below_where_not() -> None:
    rows = {width: panel_rows(a_progress(5), width=width, lines=1) for width in (54, 74)}
    epsilon = {width: [row[0] for row in found].index("Epsilon") for width, found in rows.items()}
    assert words_of(rows[74][epsilon[74]]) == "7.99 of 8 for the whole run delta 1e-05, per record"
    assert [words_of(row).strip() for row in rows[54][epsilon[54] :][:2]] == [
        "7.99 of 8 for the whole run",
        "delta 1e-05, per record",
    ]


def test_a_fast_run_has_room_for_its_figure() -> None:
    clock = iter([0.0, 0.0, *[0.001] * 99])
    progress = Progress(clock=lambda: next(clock))
    progress.start(config=config(), sites=SITES, records=SITES)
    progress.begin_round(round=1, stage="head", attempt=1, cohort=2)
    for site in SITES:
        progress.answer(site=site, outcome="update")
    assert by_label(panel_rows(progress, width=74, lines=1))["Speed"][0] == "2,000 sites/s"


def test_one_site_is_one_site() -> None:
    progress = Progress(clock=lambda: 0.0)
    progress.start(config=config(), sites={"ward": 10}, records={"ward": 10})
    progress.begin_round(round=1, stage="head", attempt=1, cohort=1)
    progress.cache(site="ward", done=10, total=10)
    assert by_label(panel_rows(progress, width=74, lines=1))["Features"][2] == "1 of 1 site ready"


def test_of_a_cohort_the_panel_counts_the_sites_of_this_round() -> None:
    progress = Progress(clock=lambda: 0.0)
    names = [f"site-{number}" for number in range(10)]
    progress.start(config=config(), sites=dict.fromkeys(names, 10), records=dict.fromkeys(names, 10))
    for number, site in ((1, "site-1"), (2, "site-5")):
        progress.begin_round(round=number, stage="head", attempt=1, cohort=3)
        progress.cache(site=site, done=10, total=10)
        row = by_label(panel_rows(progress, width=74, lines=1))["Features"]
        assert (row[0], row[2]) == ("1", "of at most 3 sites")
        progress.end_round(record(number))


def test_caching_says_how_many_sites_are_ready() -> None:
    progress = a_progress(0)
    progress.begin_round(round=1, stage="head", attempt=2, cohort=2)
    progress.cache(site="site-1", done=100, total=100)
    rows = by_label(panel_rows(progress, width=74, lines=1))
    assert rows["Features"][0] == "56%"
    assert rows["Features"][2] == "1 of 2 sites ready"
    assert panel_rows(progress, width=74, lines=1)[1][2] == (("head, stage 1 of 2, attempt 2", ""),)


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
