"""What an operator sees while a run is followed: a live panel on a terminal, plain lines in a log, JSON for programs.

A view is told what was seen and draws it; it knows nothing of folders or processes. Besides ``cli.py`` this is the only
module of the server that imports rich, and it does so only when a panel is drawn.

Example:
    >>> from fedward_server.commands.follow import Seen
    >>> from fedward_server.deployment.runs import RunStatus
    >>> with choose_view(Output(quiet=False), name="wards") as view:
    ...     view.seen(Seen(status=RunStatus(rounds=3), rounds=[]))
    run wards: waiting  round 0/3  0 sites connected
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from fedward_common.report import Output, printable
from fedward_server.commands.follow import Seen, round_line, status_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

__all__ = ["RunView", "choose_view"]

SHOWN_ROUNDS = 8
FRAMES_PER_SECOND = 4
BAR = 40


class RunView(Protocol):
    """Whoever watches a run."""

    def __enter__(self) -> Self:
        """Begin to watch."""
        ...

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was, also after an error or Ctrl-C."""
        ...

    def seen(self, seen: Seen) -> None:
        """Show one look at the run."""
        ...


def choose_view(output: Output, *, name: str, stream: TextIO | None = None) -> RunView:
    """A panel on a terminal that can show it, and lines elsewhere."""
    out = stream or sys.stdout
    if output.json:
        return _JsonView(out)
    if output.quiet:
        return _Silent()
    shows_panel = out.isatty() and os.environ.get("TERM") != "dumb" and (out.encoding or "").lower().startswith("utf")
    return _LiveView(name) if shows_panel else _LineView(out, name)


class _Watching:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


class _Silent(_Watching):
    def seen(self, seen: Seen) -> None:
        return None


class _LineView(_Watching):
    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._last = stream, name, ""

    def seen(self, seen: Seen) -> None:
        for row in seen.rounds:
            self._say(round_line(row, rounds=seen.status.rounds))
        state = f"{seen.status.state}{seen.status.sites_connected}{seen.status.starts}"
        if state != self._last:  # the rounds speak for themselves
            self._last = state
            self._say(f"run {self._name}: {status_line(seen.status)}")

    def _say(self, line: str) -> None:
        self._stream.write(printable(line) + "\n")
        self._stream.flush()


class _JsonView(_Watching):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def seen(self, seen: Seen) -> None:
        for row in seen.rounds:
            self._say({"event": "round", **row})
        self._say({"event": "status", **seen.status.to_json()})

    def _say(self, row: dict[str, Any]) -> None:
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()


class _LiveView:
    def __init__(self, name: str) -> None:
        self._name = name
        self._rounds: deque[str] = deque(maxlen=SHOWN_ROUNDS)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(refresh_per_second=FRAMES_PER_SECOND, transient=False)
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def seen(self, seen: Seen) -> None:
        self._rounds.extend(printable(round_line(row, rounds=seen.status.rounds)) for row in seen.rounds)
        if self._live is not None:
            self._live.update(self._panel(seen), refresh=True)

    def _panel(self, seen: Seen) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        status = seen.status
        done = BAR * status.round // max(status.rounds, 1)
        bar = Text.assemble(("━" * done, "green"), ("━" * (BAR - done), "dim"))
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._rounds]
        head = Text(printable(status_line(status)))
        return Panel(Group(head, bar, *lines), title=f"run {printable(self._name)}", title_align="left")
