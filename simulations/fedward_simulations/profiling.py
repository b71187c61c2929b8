"""Where a round's time goes: torch's profiler over one round of each stage, a trace and a table of named spans.

Code that takes time says so with ``span``; no span lies in another. Nothing is measured and nothing slows down while no
profile is being taken.

    with Profiles(out / "profile", view) as watched:
        ...  # a run that tells ``watched`` of its rounds

Per stage, ``STAGE.json.gz`` opens in https://ui.perfetto.dev or chrome://tracing; ``STAGE.txt`` lists torch's costliest
operators; ``rounds.csv`` holds the table.
"""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedward_common.errors import OutputError
from fedward_common.round import RoundRecord
from fedward_simulations.watching.events import RunView
from fedward_simulations.watching.tables import aligned

if TYPE_CHECKING:
    from fedward_common.config import RunConfig

__all__ = ["Profiles", "Share", "span"]

MARK = "fedward: "
REST = "coordinator: plans, sums, checkpoint"
OPERATORS = 30  # in a stage's list
FORBIDDEN, LONGEST = re.compile(r"[^A-Za-z0-9._-]"), 40  # in the name of a file
_taking = False  # one profile at a time in a process, as torch's own


def span(name: str) -> AbstractContextManager[object]:
    """A named part of a round's time."""
    if not _taking:
        return nullcontext()
    from torch.profiler import record_function

    return record_function(MARK + name)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one span took in a stage's profiled round: ``seconds`` of wall time, ``calls``."""

    stage: str
    round: int
    name: str
    calls: int
    seconds: float
    part: float

    def row(self) -> tuple[str, ...]:
        """As text, for a table."""
        return (self.stage, f"{self.calls:,}", f"{1e3 * self.seconds:,.1f}", f"{self.part:.1%}", self.name)


@dataclass(kw_only=True, eq=False)
class _Taken:
    """The round that is being profiled."""

    stage: str
    round: int
    profiler: Any
    began: float


@dataclass(eq=False)
class Profiles(RunView):
    """In front of another view: the second round of each stage is profiled (its first has caches to fill).

    Args:
      folder: where traces and tables go.
      view: hears everything as before, and of the table at the end.

    Raises:
      OutputError: the folder cannot be written.
    """

    folder: Path
    view: RunView
    shares: list[Share] = field(default_factory=list)
    _single: frozenset[str] = frozenset()
    _last: int = 0
    _seen: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)
    _now: _Taken | None = None

    def __exit__(self, *error: object) -> None:
        """Write what was measured, also where the run was stopped."""
        with self._writing():
            self._stop()
            self._write()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error.strerror}", hint="free disk space") from None

    # ---- what a run tells ------------------------------------------------------------
    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """Stages of a single round have no second one."""
        self._last = config.total_rounds
        self._single = frozenset(stage.name for stage in config.stages if stage.rounds == 1)
        self.view.started(config=config, sites=sites, records=records, out=out)

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """A profile ends where the next round begins: the checkpoint belongs to it."""
        with self._writing():
            self._stop()
        if attempt == 1 and stage not in self._done and (stage in self._seen or stage in self._single):
            self._start(stage, round)
        self._seen.add(stage)
        self.view.round_started(round=round, stage=stage, attempt=attempt, cohort=cohort)

    def round_finished(self, record: RoundRecord) -> None:
        """A profile of the last round ends here: what follows belongs to no round."""
        if record.round == self._last and not record.abandoned:
            with self._writing():
                self._stop()
        self.view.round_finished(record)

    def preparing(self, what: str) -> None:
        """Pass it on."""
        self.view.preparing(what)

    def caching(self, site: str, done: int, total: int) -> None:
        """Pass it on."""
        self.view.caching(site, done, total)

    def answered(self, site: str, outcome: str) -> None:
        """Pass it on."""
        self.view.answered(site, outcome)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.view.note(text)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Pass it on."""
        self.view.finished(summary)

    # ---- one profile -----------------------------------------------------------------
    def _start(self, stage: str, round: int) -> None:
        global _taking
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        profiler = profile(activities=activities)
        with _without_stderr():
            profiler.start()
        _taking, self._now = True, _Taken(stage=stage, round=round, profiler=profiler, began=time.perf_counter())

    def _stop(self) -> None:
        global _taking
        if self._now is None:
            return
        taken, self._now, _taking = self._now, None, False
        seconds = time.perf_counter() - taken.began
        with _without_stderr():
            taken.profiler.stop()
        averages = taken.profiler.key_averages()
        self._done.add(taken.stage)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shares += _shares(taken, averages, seconds)
        stem = f"{len(self._done)}-{FORBIDDEN.sub('-', taken.stage)[:LONGEST]}"
        taken.profiler.export_chrome_trace(str(self.folder / f"{stem}.json.gz"))
        operators = averages.table(sort_by="self_cpu_time_total", row_limit=OPERATORS)
        (self.folder / f"{stem}.txt").write_text(operators, encoding="utf-8")

    def _write(self) -> None:
        if not self.shares:
            return
        names = list(Share.__dataclass_fields__)
        with (self.folder / "rounds.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(names)
            table.writerows([getattr(share, name) for name in names] for share in self.shares)
        head = ("stage", "calls", "ms", "part", "where a round's time goes")
        for line in aligned([head, *(share.row() for share in self.shares)], left=1):
            self.view.note(line)
        self.view.note(f"traces, operators and this table are in {self.folder}")


@contextmanager
def _without_stderr() -> Iterator[None]:
    # torch's native part tells the terminal when it starts and stops
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _shares(taken: _Taken, averages: Sequence[Any], seconds: float) -> list[Share]:
    """Spans in falling order of time, the rest last; together they are the whole round."""
    found = [(one.key.removeprefix(MARK), one.count, 1e-6 * one.cpu_time_total) for one in _spans(averages)]
    found.sort(key=lambda row: -row[2])
    rest = (REST, 1, max(seconds - sum(took for _, _, took in found), 0.0))
    return [
        Share(stage=taken.stage, round=taken.round, name=name, calls=calls, seconds=took, part=took / seconds)
        for name, calls, took in (*found, rest)
    ]


def _spans(averages: Sequence[Any]) -> list[Any]:
    return [one for one in averages if one.key.startswith(MARK) and one.is_user_annotation]
