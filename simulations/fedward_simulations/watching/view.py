"""What a researcher sees of a run: a live panel on a terminal, plain lines in a log, or JSON for programs.

Example:
    >>> with choose_view(OutputMode.LINES) as view:
    ...     view.note("an earlier result was moved to runs/wards.1")
    note: an earlier result was moved to runs/wards.1
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TextIO

from fedward_simulations.watching.events import RunView
from fedward_simulations.watching.lines import JsonView, LineView
from fedward_simulations.watching.live import LiveView

__all__ = ["OutputMode", "choose_view", "shows_panels"]


class OutputMode(StrEnum):
    """Where a run's progress goes."""

    AUTO = "auto"  # a live panel on a terminal, lines elsewhere
    LINES = "lines"  # one plain line a round
    JSON = "json"  # one JSON object a line on stdout and nothing else


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
