"""What a researcher sees of a run: a live panel on a terminal, plain lines in a log, or JSON for programs.

A view is told what happens and draws it; it knows nothing of models, data, messages or how a round works, and a run
gives the same result whichever view watches. Besides ``cli.py`` this is the only module that imports rich, and it does
so only when a panel is drawn.

Example:
    >>> with choose_view(OutputMode.LINES) as view:
    ...     view.note("an earlier result was moved to runs/wards.1")
    note: an earlier result was moved to runs/wards.1
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from fedward_common.report import counted
from fedward_simulations.device import held_bytes
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
from fedward_simulations.watching.progress import (
    Progress,
    caveats,
    measures,
    printable,
    reasons,
    size,
    summary_rows,
)
from fedward_simulations.watching.tables import columns_lines, metrics_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table

    from fedward_common.config import RunConfig
    from fedward_common.round import RoundRecord
    from fedward_simulations.dealing.inspect import Summary

__all__ = [
    "JsonView",
    "LineView",
    "LiveView",
    "OutputMode",
    "RunView",
    "choose_view",
    "print_columns",
    "print_metrics",
    "shows_panels",
    "write_line",
]

FRAMES_PER_SECOND = 4
WIDEST = 110  # a panel wider than this is harder to read, not easier
TALL = 32  # from this many lines on, curves are drawn several lines high
MARGINS = 6  # border and padding on both sides
FEW = 10  # sites up to which each has a line of its own in a log


class OutputMode(StrEnum):
    """Where a run's progress goes."""

    AUTO = "auto"  # a live panel on a terminal, lines elsewhere
    LINES = "lines"  # one plain line a round
    JSON = "json"  # one JSON object a line on stdout and nothing else


class RunView(Protocol):
    """What a run tells whoever watches. Methods return at once and never fail because of what they are told."""

    def __enter__(self) -> RunView:
        """Begin to watch."""
        ...

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was, also after an error or Ctrl-C."""
        ...

    def preparing(self, what: str) -> None:
        """Something long begins, for example ``reading data``."""
        ...

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """The run is prepared.

        Args:
          config: its run file.
          sites: declared, public nominal units by name.
          records: what a pass over all training units reads of each; known in a simulation alone.
          out: the result folder.
        """
        ...

    def caching(self, site: str, done: int, total: int) -> None:
        """A site has computed ``done`` of ``total`` features. May be called many times a second."""
        ...

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """A round (counted from 1) was sent to ``cohort`` sites; ``attempt`` counts from 1."""
        ...

    def answered(self, site: str, outcome: str) -> None:
        """A site's reply: ``update``, a refusal's code, or the coordinator's reason to drop it."""
        ...

    def round_finished(self, record: RoundRecord) -> None:
        """The round is over, or abandoned."""
        ...

    def note(self, text: str) -> None:
        """One sentence that the person should read."""
        ...

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is over; called at most once, last."""
        ...


def choose_view(mode: OutputMode, *, stream: TextIO | None = None) -> RunView:
    """The view for a mode: ``AUTO`` takes the panel on a terminal that can show it, and lines elsewhere."""
    out = stream or sys.stdout
    if mode is OutputMode.JSON:
        return JsonView(stream=out)
    return LiveView() if mode is OutputMode.AUTO and shows_panels(out) else LineView(stream=out)


def shows_panels(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can be drawn on."""
    utf = (stream.encoding or "").lower().startswith("utf")
    return stream.isatty() and os.environ.get("TERM") != "dumb" and utf


class _Silent:
    """A view that shows nothing; the others say what they add."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def preparing(self, what: str) -> None:
        pass

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        pass

    def caching(self, site: str, done: int, total: int) -> None:
        pass

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        pass

    def answered(self, site: str, outcome: str) -> None:
        pass


class JsonView(_Silent):
    """One JSON object a line, each with an ``event``: started, round, note, summary (last)."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        """Write to ``stream``; while watching, whatever else is printed to stdout goes to stderr."""
        self._stream = stream or sys.stdout
        self._elsewhere = contextlib.ExitStack()
        self._open = True

    def __enter__(self) -> Self:
        """Keep stdout for JSON alone."""
        self._elsewhere.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *error: object) -> None:
        """Give stdout back."""
        self._elsewhere.close()

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """Write the run's public facts."""
        self._emit(
            "started",
            name=config.name,
            base=config.model.base,
            config_digest=config.digest,
            seed=config.seed,
            rounds=config.total_rounds,
            stages=[{"name": stage.name, "rounds": stage.rounds} for stage in config.stages],
            epsilon_target=config.privacy.epsilon,
            delta=config.privacy.delta,
            unit=str(config.privacy.unit),
            sites=sites,
            out=out,
        )

    def round_finished(self, record: RoundRecord) -> None:
        """Write the record, abandoned or not."""
        self._emit("round", **{name: getattr(record, name) for name in record.__dataclass_fields__})

    def note(self, text: str) -> None:
        """Write the note."""
        self._emit("note", text=text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; nothing follows it."""
        self._emit("summary", **summary)
        self._open = False

    def _emit(self, event: str, /, **values: Any) -> None:
        if self._open:
            self._stream.write(json.dumps(_plain(values | {"event": event}), allow_nan=False) + "\n")
            self._stream.flush()


class LineView(_Silent):
    """One plain line a round, for logs and pipes: no escape codes, nothing rewritten, ASCII unless a name is not."""

    def __init__(self, *, stream: TextIO | None = None) -> None:
        """Write to ``stream``, stdout by default."""
        self._stream = stream or sys.stdout
        self._rounds = 0
        self._stage_width = 0
        self._sites = 0  # that compute features in any case; 0 where nobody knows how many will be asked
        self._cached: set[str] = set()

    def preparing(self, what: str) -> None:
        """Say what begins."""
        self._write(f"{what} ...")

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """Say what runs and what it promises."""
        asked = config.rounds.cohort
        self._rounds, self._sites = config.total_rounds, 0 if 0 < asked < len(sites) else len(sites)
        self._stage_width = max(len(stage.name) for stage in config.stages)
        terms = config.privacy
        scale = f"{counted(len(sites), 'site', 'sites')}, {counted(self._rounds, 'round', 'rounds')}"
        self._write(f"{config.name}: base {config.model.base}, {scale}, into {out}")
        self._write(f"promise: epsilon {terms.epsilon:g} at delta {terms.delta:g}, per {terms.unit}, at each site")

    def caching(self, site: str, done: int, total: int) -> None:
        """One line a site at its end; with many sites, ever more of them pass between two lines."""
        if done < total or site in self._cached:
            return
        self._cached.add(site)
        count, all_sites = len(self._cached), self._sites
        if 0 < all_sites <= FEW or count == all_sites or str(count).rstrip("0") in ("1", "2", "5"):
            so_far = f"{count}/{max(all_sites, count)}" if all_sites else f"{counted(count, 'site', 'sites')} so far"
            self._write(f"features cached: {site} ({so_far})")

    def round_finished(self, record: RoundRecord) -> None:
        """One line."""
        self._write("  ".join(part for part in self._parts(record) if part))

    def note(self, text: str) -> None:
        """One line."""
        self._write(f"note: {text}")

    def finished(self, summary: Mapping[str, Any]) -> None:
        """A table of plain lines."""
        for label, figure, _ in summary_rows(summary):
            self._write(f"  {label:<17}{figure}")
        for text in caveats(summary):
            self._write(f"note: {text}")

    def _parts(self, record: RoundRecord) -> Iterable[str]:
        width, sites = len(str(self._rounds)), len(str(record.cohort))
        yield f"round {record.round:>{width}}/{self._rounds} {record.stage:<{self._stage_width}}"
        yield f"{record.replied:>{sites}}/{counted(record.cohort, 'site', 'sites')}"
        yield "abandoned" if record.abandoned else ""
        yield from measures(record)
        yield f"up {size(record.bytes_up)}"
        yield f"{record.seconds:.1f} s"
        for verb, counts in (("refused", record.refused), ("dropped", record.dropped)):
            yield f"{verb}: {reasons(counts)}" if reasons(counts) else ""

    def _write(self, line: str) -> None:
        write_line(self._stream, printable(line).rstrip())


class LiveView(_Silent):
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
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_columns(summary: Summary) -> None:
    """What ``inspect`` found in a file, as plain text of any width: nothing is cut."""
    for line in columns_lines(summary):
        write_line(sys.stdout, line)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """What ``eval`` measured, as plain text of any width: nothing is cut."""
    for line in metrics_lines(metrics):
        write_line(sys.stdout, line)


def write_line(stream: TextIO, line: str) -> None:
    """Write a line at once; a stream that cannot spell a name shows its code points rather than ending a run."""
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _plain(value: object) -> object:
    """What JSON can hold: no NaN, no infinity, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _frame(progress: Progress, terminal: ConsoleDimensions) -> Panel:
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    width = min(terminal.width, WIDEST)
    rows = panel_rows(progress, width=width - MARGINS, lines=4 if terminal.height >= TALL else 1)
    doing = [Text(progress.doing, no_wrap=True, overflow="ellipsis"), Text()] if progress.doing else []
    room = max(terminal.height - sum(height(row) for row in rows) - len(doing) - 6, 0)  # border, padding, blank, spare
    notes = [Text(f"· {text}", style=QUIET, no_wrap=True, overflow="ellipsis") for text in progress.notes]
    below = [Text(), *notes[-room:]] if notes and room else []
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
