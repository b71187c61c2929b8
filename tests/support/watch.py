"""A view that keeps what it is told, and can stop a run where a test wants it.

Example:
    view = Recorder(stop_after=2)   # raises KeyboardInterrupt, as Ctrl-C would, after the second finished round
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedward_common.config import RunConfig
from fedward_common.round import RoundRecord
from fedward_simulations.watching.events import RunView


@dataclass
class Recorder(RunView):
    """A view; ``outcomes`` holds (site, outcome) in the order in which answers were judged."""

    stop_after: int | None = None
    stop_at_answer: int | None = None
    records: list[RoundRecord] = field(default_factory=list)
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sites: dict[str, int] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        self.sites = dict(sites)

    def caching(self, site: str, done: int, total: int) -> None:
        self.cached.append(site)

    def answered(self, site: str, outcome: str) -> None:
        self.outcomes.append((site, outcome))
        if self.stop_at_answer is not None and len(self.outcomes) == self.stop_at_answer:
            raise KeyboardInterrupt

    def round_finished(self, record: RoundRecord) -> None:
        self.records.append(record)
        if self.stop_after is not None and len(self.records) == self.stop_after:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)
