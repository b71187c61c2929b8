"""``logs``: what the conductor of a run wrote, one line an entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedward_common.report import Report
from fedward_server.commands.follow import Kind, Tail
from fedward_server.commands.words import moment, stamp
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder

__all__ = ["log_line", "logs", "new_rows"]

SHOWN_LINES = 50
POLL_S = 0.5
KNOWN = frozenset({"time", "level", "message", "process", "logger"})


def logs(folder: OperatorFolder, text: str) -> Report:
    """The last fifty lines of a run's log, all of them with ``-v``.

    Raises:
      InputError: no such run.
    """
    run = folder.find_run(text)
    found = Tail(run.log).rows()
    lines = [log_line(row) for row in found]
    early, late = lines[:-SHOWN_LINES], lines[-SHOWN_LINES:]
    above = (f"{len(early)} earlier lines: see -v",) if early else ()
    nothing = ("nothing is logged yet",) if not lines else ()
    facts = {"command": "logs", "lines": found, "name": run.name}
    return Report(facts=facts, lines=(*nothing, *above, *late), details=tuple(early))


def new_rows(run: RunFolder, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """Every entry of a run's log, and then each new one, until the run is over."""
    log = Tail(run.log, Kind.LOG)
    while True:
        over = run.read_status().state.is_over
        yield from log.rows()
        if over:
            return
        sleep(POLL_S)


def log_line(row: Mapping[str, Any]) -> str:
    """An entry as a person reads it."""
    at = moment(row.get("time"))
    more = [f"{key}={value}" for key, value in row.items() if key not in KNOWN and not isinstance(value, dict | list)]
    parts = [stamp(at) if at else "", f"{row.get('level', ''):<7}", str(row.get("message", "")), *more]
    return "  ".join(part for part in parts if part.strip())
