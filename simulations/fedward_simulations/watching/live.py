"""A run as a panel on a terminal. rich is imported only when one is drawn."""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from fedward_common.report import printable
from fedward_simulations.device import held_bytes
from fedward_simulations.watching.events import RunView
from fedward_simulations.watching.panel import (
    FIGURE,
    GAP,
    LABEL,
    QUIET,
    Row,
    Span,
    bar,
    graph_width,
    height,
    panel_rows,
)
from fedward_simulations.watching.progress import Progress, caveats, summary_rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table

    from fedward_common.config import RunConfig
    from fedward_common.round import RoundRecord

__all__ = ["LiveView", "say"]

FRAMES_PER_SECOND = 4
WIDEST = 110  # a panel wider than this is harder to read, not easier
TALL = 32  # from this many lines on, curves are drawn several lines high
MARGINS = 6  # border and padding on both sides


class LiveView(RunView):
    """A panel on a terminal, redrawn a few times a second on the alternate screen, so that resizing leaves no trace.

    At the end the screen comes back as it was, with the notes and a table of results below. Whatever is written to
    stderr meanwhile is held back and shown then.
    """

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw on ``console``; ``clock`` counts seconds."""
        from rich.console import Console

        self._console = console or Console(highlight=False)
        self._progress = Progress(clock=clock, memory=held_bytes)
        self._lock = threading.RLock()  # the panel is drawn by a thread of its own
        self._live: Live | None = None
        self._held = io.StringIO()
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Show the panel."""
        from rich.live import Live

        self._live = Live(
            self,
            console=self._console,
            screen=True,
            refresh_per_second=FRAMES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._restore.enter_context(contextlib.redirect_stderr(self._held))
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the alternate screen; without a summary, say how far the run came."""
        if self._stop():
            self._print_notes()
            self._say(self._progress.epitaph())
            sys.stderr.write(self._held.getvalue())

    def preparing(self, what: str) -> None:
        """Show what is being done until the next round."""
        with self._lock:
            self._progress.doing = printable(what)

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """Show the run."""
        with self._lock:
            self._progress.start(config=config, sites=sites, records=records)

    def caching(self, site: str, done: int, total: int) -> None:
        """Remember the progress; the next frame shows it."""
        with self._lock:
            self._progress.cache(site=site, done=done, total=total)

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """Show the round."""
        with self._lock:
            self._progress.begin_round(round=round, stage=stage, attempt=attempt, cohort=cohort)

    def answered(self, site: str, outcome: str) -> None:
        """Fill one dot."""
        with self._lock:
            self._progress.answer(site=site, outcome=outcome)

    def round_finished(self, record: RoundRecord) -> None:
        """Extend the curves."""
        with self._lock:
            self._progress.end_round(record)

    def note(self, text: str) -> None:
        """Show the note now, and again once the panel is gone."""
        with self._lock:
            self._progress.notes.append(printable(text))
        if self._live is None:
            self._say(f"· {printable(text)}", style=QUIET)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Leave the panel and print the results."""
        self._stop()
        sys.stderr.write(self._held.getvalue())
        self._print_notes()
        self._console.print(_results(summary, width=min(self._console.width, WIDEST)))
        for text in caveats(summary):
            self._say(f"Note: {text}", style="yellow")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One frame, fitted to the terminal's size at this moment."""
        with self._lock:
            frame = _frame(self._progress, options.size)
        yield from console.render(frame, options.update(height=None))

    def _stop(self) -> bool:
        """Whether the panel was still there."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self._restore.close()
        return live is not None

    def _print_notes(self) -> None:
        for text in self._progress.notes:
            self._say(f"· {text}", style=QUIET)

    def _say(self, text: str, *, style: str = "") -> None:
        say(self._console, text, style=style)


def say(console: Console, text: str, *, style: str = "") -> None:
    """Print a line, wrapped between words alone, so that a path or a command can be copied whole."""
    for line in textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False):
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _frame(progress: Progress, terminal: ConsoleDimensions) -> Panel:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    width = min(terminal.width, WIDEST)
    rows = panel_rows(progress, width=width - MARGINS, lines=4 if terminal.height >= TALL else 1)
    doing = [Text(progress.doing, no_wrap=True, overflow="ellipsis"), Text()] if progress.doing else []
    room = max(terminal.height - sum(height(row) for row in rows) - len(doing) - 6, 0)  # border, padding, blank, spare
    last = progress.notes[-room:] if room else []
    notes = [Text(f"· {text}", style=QUIET, no_wrap=True, overflow="ellipsis") for text in last]
    below = [Text(), *notes] if notes else []
    body = Group(*doing, _grid(rows, room=graph_width(width - MARGINS)), *below)
    title = Text.assemble(*_title(progress))
    return Panel(body, title=title, title_align="left", width=width, padding=(1, 2), border_style=QUIET)


def _grid(rows: Iterable[Row], *, room: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, GAP, 0, 0), expand=True)
    grid.add_column(width=LABEL, style=QUIET)
    grid.add_column(width=FIGURE, no_wrap=True)
    grid.add_column(ratio=1, no_wrap=True)
    for label, figure, graph, remark in rows:
        first, *below = Text.assemble(*graph).split("\n") or [Text()]
        if remark:
            first.pad_right(room + GAP - len(first))
            first.append_text(Text.assemble(*remark))
        grid.add_row(label, Text.assemble(*figure), Text("\n").join([first, *below]))
    return grid


def _title(progress: Progress) -> Iterable[Span]:
    config = progress.config
    yield "fedward", QUIET
    if config:
        yield f" {printable(config.name)}", "bold default"
        yield f" on {printable(config.model.base)}", QUIET


def _results(summary: Mapping[str, Any], *, width: int) -> Panel:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    scores, facts = Table.grid(padding=(0, GAP, 0, 0)), Table.grid(padding=(0, GAP, 0, 0))
    for table in (scores, facts):
        table.add_column(style=QUIET, width=15)
    for label, figure, share in summary_rows(summary):
        if share is None:
            facts.add_row(label, Text(figure, overflow="fold"))
        else:
            scores.add_row(label, Text(figure, style="bold"), Text.assemble(*bar(share, min(width - 34, 50))))
    title = Text(f"{printable(str(summary.get('name', 'run')))}: result", style="bold default")
    body = Group(scores, Text(), facts)
    return Panel(body, title=title, title_align="left", width=width, padding=(1, 2), border_style=QUIET)
