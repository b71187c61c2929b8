"""The rows of the live panel: which figures stand where, as styled text, without a terminal.

Nothing here imports rich or knows how a run works; ``live.py`` lays the rows out.

Example:
    >>> "".join(text for text, _ in bar(0.3, 10)), "".join(text for text, _ in dots((3, 1, 0, 2), cells=6))
    ('━━━───────', '●●●▲··')
    >>> curve({1: 0.1, 2: 0.5, 4: 0.9}, rounds=8, width=8, lines=1)
    ['▁▅▅█']
"""

from __future__ import annotations

import bisect
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fedward_common.report import counted, rounded_up
from fedward_simulations.watching.progress import Progress, about, duration, size

if TYPE_CHECKING:
    from fedward_common.config import RunConfig

__all__ = [
    "FIGURE",
    "GAP",
    "LABEL",
    "QUIET",
    "Cell",
    "Row",
    "Span",
    "bar",
    "curve",
    "dots",
    "graph_width",
    "height",
    "panel_rows",
]

LABEL, FIGURE, REMARK, GAP = 8, 13, 24, 2  # columns of a row and the space between them; the graph takes the rest
WIDE, SHORT = 74, 12  # a row narrower than WIDE has a SHORT column of remarks, so that a graph remains
BLOCKS = " ▁▂▃▄▅▆▇█"
ACCENT, QUIET = "cyan", "dim"
MARKS = (("●", "green"), ("▲", "yellow"), ("✗", "red"), ("·", QUIET))  # update, refusal, dropped, still to come

Span = tuple[str, str]  # text and its style
Cell = tuple[Span, ...]
Row = tuple[str, Cell, Cell, Cell]  # label, figure, graph, remark; a graph may reach over the place of no remark
HELD = {"host": "memory", "device": "GPU"}
BLANK: Row = ("", (), (), ())


def panel_rows(progress: Progress, *, width: int, lines: int) -> list[Row]:
    """What is worth showing now.

    Args:
      progress: of the run.
      width: of a whole row, in cells.
      lines: how many lines high a curve is.
    """
    graph = graph_width(width)
    rows = _rows(progress, width=graph, lines=lines)
    return [part for row in rows for part in _fitted(row, graph=graph, remark=_remark_width(width))]


def graph_width(width: int) -> int:
    """Cells for graphs in a whole row of ``width`` cells."""
    return max(width - LABEL - FIGURE - _remark_width(width) - 3 * GAP, 8)


def _remark_width(width: int) -> int:
    return REMARK if width >= WIDE else SHORT


def _fitted(row: Row, *, graph: int, remark: int) -> Iterable[Row]:
    """The row; where its remark, or text in place of a graph, is too long for its column, the remark goes below."""
    label, figure, drawn, said = row
    if _longest(said) <= remark and (not said or _longest(drawn) <= graph):
        yield row
        return
    whole = graph + GAP + remark
    below: list[Cell] = [((line, style),) for text, style in said for line in textwrap.wrap(text, whole)]
    first, *rest = [drawn, *below] if drawn else below
    yield label, figure, first, ()
    yield from (("", (), line, ()) for line in rest)


def _longest(cell: Cell) -> int:
    return max(map(len, "".join(text for text, _ in cell).split("\n")))


def height(row: Row) -> int:
    """Lines that a row takes."""
    return 1 + sum(text.count("\n") for text, _ in row[2])


def _rows(progress: Progress, *, width: int, lines: int) -> Iterable[Row]:
    config = progress.config
    if config and progress.round:
        yield _round_row(progress, config, width)
        yield _sites_row(progress, width)
    yield from _work_rows(progress, width)
    if config and progress.records:
        yield BLANK
        yield from _curve_rows(progress, config, width, lines)
        yield BLANK
        yield _epsilon_row(progress, config)
        yield _traffic_row(progress)
    if progress.round:
        yield _speed_row(progress)
    yield _time_row(progress)


def _round_row(progress: Progress, config: RunConfig, width: int) -> Row:
    names = [stage.name for stage in config.stages]
    place = f", stage {names.index(progress.stage) + 1} of {len(names)}" if progress.stage in names else ""
    again = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
    graph = bar(progress.rounds_done / config.total_rounds, width)
    return "Round", (_bold(f"{progress.round}/{config.total_rounds}"),), graph, ((progress.stage + place + again, ""),)


def _sites_row(progress: Progress, width: int) -> Row:
    updates, refused, dropped = progress.tally()
    waiting = max(progress.cohort - updates - refused - dropped, 0)
    remark = [f"{refused} refused"] * bool(refused) + [f"{dropped} dropped"] * bool(dropped)
    graph = dots((updates, refused, dropped, waiting), cells=min(progress.cohort, width))
    return "Sites", (_bold(f"{updates}/{progress.cohort}"),), graph, ((", ".join(remark), "yellow"),)


def _work_rows(progress: Progress, width: int) -> Iterable[Row]:
    if progress.caching:
        complete = sum(done >= total for done, total in progress.caches.values())
        share = progress.cached_share
        if progress.partial:  # those of earlier rounds have theirs
            yield "Features", (_bold(str(complete)),), (), ((f"of at most {progress.cohort} sites", ""),)
        else:
            ready = f"{complete} of {counted(progress.sites, 'site', 'sites')} ready"
            yield "Features", (_bold(f"{share:.0%}"),), bar(share, width), ((ready, ""),)


def _curve_rows(progress: Progress, config: RunConfig, width: int, lines: int) -> Iterable[Row]:
    for label, key, best, digits in (("Accuracy", "accuracy", max, 4), ("Loss", "loss", min, 3)):
        if values := progress.curve("evaluation", key):
            last, top = list(values.values())[-1], best(values.values())
            graph = "\n".join(curve(values, rounds=config.total_rounds, width=width, lines=lines))
            yield label, (_bold(f"{last:.{digits}f}"),), ((graph, ACCENT),), ((f"best {top:.{digits}f}", ""),)
            yield from [BLANK] * (lines > 1)
    if values := progress.curve("sites", "accuracy"):
        number, last = list(values.items())[-1]
        yield "At sites", (_bold(f"{last:.4f}"),), (("noisy accuracy", ""),), ((f"at round {number}", ""),)


def _epsilon_row(progress: Progress, config: RunConfig) -> Row:
    # a site reserves the whole run before its first round, so the figure does not grow and a bar would mislead
    terms, spent = config.privacy, progress.records[-1].epsilon
    figure = _bold("-" if spent is None else rounded_up(spent, digits=2)), (f" of {terms.epsilon:g}", "")
    return "Epsilon", figure, (("for the whole run", ""),), ((f"delta {terms.delta:g}, per {terms.unit}", ""),)


def _traffic_row(progress: Progress) -> Row:
    up = sum(record.bytes_up for record in progress.records)
    down = sum(record.bytes_down for record in progress.records)
    return "Traffic", (_bold(size(up)), (" up", "")), (_bold(size(down)), (" down", "")), ()


def _speed_row(progress: Progress) -> Row:
    held = ", ".join(f"{HELD[name]} {size(count)}" for name, count in progress.memory().items() if count)
    if progress.speed is None:
        return "Speed", (("-", QUIET),), (), ((held, ""),)
    clients, records = progress.speed
    return (
        "Speed",
        (_bold(f"{clients:,.{1 if clients < 1000 else 0}f} sites/s"),),
        ((f"{records:,.0f} records/s", ""),),
        ((held, ""),),
    )


def _time_row(progress: Progress) -> Row:
    left = progress.left
    known = f"about {about(left)} left" if left else ""
    guess = "time left not known yet" if left is None and progress.round else known
    return "Time", (_bold(duration(progress.elapsed)),), ((guess, ""),), ()


def _bold(text: str) -> Span:
    return text, "bold"


def bar(share: float, width: int) -> Cell:
    """A horizontal bar, legible without colour."""
    halves = round(min(max(share, 0.0), 1.0) * 2 * width)
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return (done, ACCENT), ("─" * (width - len(done)), QUIET)


def dots(counts: Sequence[int], *, cells: int) -> Cell:
    """One mark a site, or in proportion where there are more sites than cells."""
    spans, before, whole = [], 0, max(sum(counts), 1)
    for (mark, style), count in zip(MARKS, counts, strict=True):
        begin, end = (round(at * cells / whole) for at in (before, before + count))
        spans.append((mark * (end - begin), style))
        before += count
    return tuple(spans)


def curve(values: Mapping[int, float], *, rounds: int, width: int, lines: int) -> list[str]:
    """A block graph whose x axis is that of the round's bar, from the top line down."""
    numbers, low, high = sorted(values), min(values.values()), max(values.values())
    reach = max(width * numbers[-1] // rounds, 1)
    ends = (math.ceil((cell + 1) * rounds / width) for cell in range(reach))
    held = [values[numbers[max(bisect.bisect_right(numbers, end) - 1, 0)]] for end in ends]
    steps = len(BLOCKS) - 1
    levels = [1 + round((steps * lines - 1) * (value - low) / ((high - low) or 1.0)) for value in held]
    below = (line * steps for line in reversed(range(lines)))
    return ["".join(BLOCKS[min(max(level - floor, 0), steps)] for level in levels) for floor in below]
