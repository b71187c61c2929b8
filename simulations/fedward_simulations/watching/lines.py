"""A run as plain lines in a log, or as JSON for programs.

Example:
    >>> with LineView() as view:
    ...     view.note("an earlier result was moved to runs/wards.1")
    note: an earlier result was moved to runs/wards.1
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TextIO

from fedward_common.report import counted, printable
from fedward_simulations.watching.events import RunView
from fedward_simulations.watching.progress import caveats, measures, reasons, size, summary_rows

if TYPE_CHECKING:
    from pathlib import Path

    from fedward_common.config import RunConfig
    from fedward_common.round import RoundRecord

__all__ = ["JsonView", "LineView", "write_line"]

FEW = 10  # sites up to which each has a line of its own in a log


class JsonView(RunView):
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


class LineView(RunView):
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
