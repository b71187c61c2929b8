"""What a researcher sees of a sweep: two lines on a terminal that stay, plain lines in a log, or JSON for programs.

A view is told what happens and draws it. rich is imported only when a terminal is drawn on.

Example:
    >>> with choose_sweep_view(json_lines=False, stream=sys.stdout) as view:
    ...     view.note("2 runs were done before")
    note: 2 runs were done before
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from fedward_common.report import counted, printable
from fedward_simulations.sweep.progress import SweepProgress
from fedward_simulations.watching.lines import write_line
from fedward_simulations.watching.live import say
from fedward_simulations.watching.panel import bar
from fedward_simulations.watching.progress import about, duration
from fedward_simulations.watching.view import shows_panels

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

__all__ = ["SweepView", "choose_sweep_view"]

WIDEST, NARROWEST = 40, 8  # cells of the bar; where fewer are left beside the words, it has a line of its own


class SweepView(Protocol):
    """What a sweep tells whoever watches."""

    def __enter__(self) -> SweepView:
        """Begin to watch."""
        ...

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""
        ...

    def started(self, *, name: str, out: str, progress: SweepProgress) -> None:
        """The plan stands; ``progress`` changes as the sweep goes on."""
        ...

    def tick(self) -> None:
        """Something moved, or some time went by."""
        ...

    def ended(self, *, label: str, seed: int, outcome: str) -> None:
        """A run is over: ``outcome`` is its accuracy, or what went wrong."""
        ...

    def note(self, text: str) -> None:
        """One sentence that the person should read."""
        ...

    def finished(self, summary: Mapping[str, Any], lines: list[str]) -> None:
        """Tables are written; ``lines`` are them in plain text."""
        ...


def choose_sweep_view(*, json_lines: bool, stream: TextIO | None = None) -> SweepView:
    """JSON lines, or a live display on a terminal that can show it, or plain lines."""
    out = stream or sys.stdout
    if json_lines:
        return _JsonLines(out)
    return _Live(out) if shows_panels(out) else _Lines(out)


class _Watching:
    """A view that shows nothing yet; the others say what they add."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress: SweepProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def tick(self) -> None:
        pass


class _Lines(_Watching):
    """One plain line a run."""

    def started(self, *, name: str, out: str, progress: SweepProgress) -> None:
        self._progress = progress
        self._say(f"{name}: {counted(progress.total, 'run', 'runs')}, {progress.done} done before, into {out}")

    def ended(self, *, label: str, seed: int, outcome: str) -> None:
        self._say("  ".join([*_counts(self._progress), f"{label or 'run'} seed {seed}: {outcome}"]))

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def finished(self, summary: Mapping[str, Any], lines: list[str]) -> None:
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        write_line(self._stream, printable(line).rstrip())


class _Live(_Lines):
    """The lines, and below them one that is redrawn: a bar, counts, time left."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._live: Live | None = None
        self._console: Console | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=self._stream)
        self._live = Live(get_renderable=self._bar, console=self._console, transient=True)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def finished(self, summary: Mapping[str, Any], lines: list[str]) -> None:
        self.__exit__()
        super().finished(summary, lines)

    def _say(self, line: str) -> None:
        if self._live is None:
            super()._say(line)
        else:
            say(self._live.console, printable(line))

    def _bar(self) -> Text:
        from rich.text import Text

        if self._progress is None or self._console is None:
            return Text("")
        share = self._progress.rounds_done / max(self._progress.rounds_total, 1)
        words, width = "  ".join(_counts(self._progress)), self._console.width
        beside = width - len(words) - 3  # two between them, and no letter in the last column
        drawn = bar(share, min(beside if beside >= NARROWEST else width - 1, WIDEST))
        return Text.assemble(*drawn, "  " if beside >= NARROWEST else "\n", words)


class _JsonLines(_Watching):
    """One JSON object a line, each with an ``event``: started, run, note, summary (last)."""

    def started(self, *, name: str, out: str, progress: SweepProgress) -> None:
        self._progress = progress
        self._emit("started", name=name, out=out, runs=progress.total, done=progress.done)

    def ended(self, *, label: str, seed: int, outcome: str) -> None:
        seen = self._progress
        counts = {"done": seen.done, "failed": seen.failed} if seen else {}
        self._emit("run", point=label, seed=seed, outcome=outcome, **counts)

    def note(self, text: str) -> None:
        self._emit("note", text=text)

    def finished(self, summary: Mapping[str, Any], lines: list[str]) -> None:
        self._emit("summary", **summary)

    def _emit(self, event: str, /, **values: Any) -> None:
        self._stream.write(json.dumps(values | {"event": event}, allow_nan=False) + "\n")
        self._stream.flush()


def _counts(progress: SweepProgress | None) -> list[str]:
    if progress is None:
        return []
    words = [f"{progress.done}/{progress.total} done"]
    words += [f"{progress.failed} failed"] if progress.failed else []
    words += [f"{len(progress.running)} running"] if progress.running else []
    left = progress.left
    over = progress.done + progress.failed >= progress.total
    words += [duration(progress.elapsed)] if over or left is None else [f"about {about(left)} left"]
    return words
