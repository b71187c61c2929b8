"""What has been seen of a run so far, in numbers and in words, and how long the rest will take.

This module knows nothing of terminals, models or data; ``live.py`` draws what it says.

Example:
    >>> size(312_000), duration(72.4), size(12_040)
    ('0.3 MB', '1 min 12 s', '12.0 kB')
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from fedward_common.report import counted, rounded_up

if TYPE_CHECKING:
    from fedward_common.config import RunConfig, StageConfig
    from fedward_common.round import RoundRecord

__all__ = [
    "Pace",
    "Progress",
    "about",
    "caveats",
    "duration",
    "measures",
    "promise",
    "reasons",
    "size",
    "summary_rows",
]

RECENT = 5  # rounds whose median says how long the next one takes
BACKWARD = 3.0  # a training pass costs about three forward passes
CACHED = 50.0  # how much cheaper a round over cached features is than the forward pass that cached them
UNCACHED = 20.0  # how much dearer a round through the base model is than one over features, until one was measured
UNITS = {0: "B", 3: "kB", 6: "MB", 9: "GB"}
DIGITS = 16  # of a digest in a table; the whole one is in summary.json

SummaryRow = tuple[str, str, float | None]  # label, figure, and a share in [0, 1] where a bar helps


class Pace:
    """How long the rest of a run takes, from the seconds that its rounds took so far.

    A stage without a finished round is guessed: from a stage that trains the same groups, else from the time that one
    forward pass over all data took while features were cached, else from whatever was measured.

    Example:
        >>> Pace(()).left(done=0, elapsed=0.0)
        0.0
    """

    def __init__(self, stages: Sequence[StageConfig]) -> None:
        """Nothing is measured yet; ``forward_seconds`` is set once one forward pass over all data was timed."""
        self.forward_seconds = 0.0
        self._stages = tuple(stages)
        self._seconds: dict[str, list[float]] = {}

    def measured(self, stage: str, seconds: float) -> None:
        """Take one finished round into account."""
        self._seconds.setdefault(stage, []).append(seconds)

    def left(self, *, done: int, elapsed: float) -> float | None:
        """Seconds until the last round ends; None where nothing is known yet.

        Args:
          done: finished rounds, over all stages.
          elapsed: seconds since the next round began.
        """
        ahead = self._ahead(done)
        costs = [self._cost(stage) for stage, _ in ahead]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return None
        total = sum(cost * rounds for cost, (_, rounds) in zip(known, ahead, strict=True))
        return total - min(elapsed, known[0]) if known else 0.0

    def _ahead(self, done: int) -> list[tuple[StageConfig, int]]:
        ahead, end = [], 0
        for stage in self._stages:
            end += stage.rounds
            if end > done:
                ahead.append((stage, min(stage.rounds, end - done)))
        return ahead

    def _cost(self, stage: StageConfig) -> float | None:
        if stage.name in self._seconds:
            return self._recent(stage)
        measured = [other for other in self._stages if other.name in self._seconds]
        alike = [other for other in measured if set(other.train) == set(stage.train)]
        if alike:
            return self._scaled(alike[-1], stage, floor=0.5)
        if self.forward_seconds > 0 and ("adapter" in stage.train or not measured):
            factor = BACKWARD if "adapter" in stage.train else 1 / CACHED
            return factor * self.forward_seconds * _passes(stage)
        return self._scaled(measured[-1], stage, floor=1.0) if measured else None

    def _scaled(self, known: StageConfig, stage: StageConfig, *, floor: float) -> float:
        dearer = UNCACHED if "adapter" in stage.train and "adapter" not in known.train else 1.0
        return self._recent(known) * max(dearer * _passes(stage) / _passes(known), floor)

    def _recent(self, stage: StageConfig) -> float:
        return median(self._seconds[stage.name][-RECENT:])


def _passes(stage: StageConfig) -> float:
    return stage.sampling_rate * stage.local_steps


class Progress:
    """The state of a run as its events tell it. Not safe for threads: whoever shares it, locks it.

    Example:
        >>> progress = Progress(clock=lambda: 0.0)
        >>> progress.begin_round(round=1, stage="head", attempt=1, cohort=3)
        >>> progress.answer(site="ward", outcome="update")
        >>> progress.tally(), progress.epitaph()
        ((1, 0, 0), 'stopped before the first round ended')
    """

    def __init__(self, *, clock: Callable[[], float], memory: Callable[[], Mapping[str, int]] = dict) -> None:
        """Nothing has happened; ``clock`` counts seconds, ``memory`` says what is held, in bytes by name."""
        self.config: RunConfig | None = None
        self.doing = ""
        self.stage = ""
        self.round = self.attempt = self.cohort = 0
        self.answers: list[str] = []
        self.records: list[RoundRecord] = []
        self.notes: list[str] = []
        self.caching = False  # features are being computed in this round
        self.caches: dict[str, tuple[int, int]] = {}
        self._clock, self.memory = clock, memory
        self._began = clock()
        self._round_began: float | None = None
        self._pace = Pace(())
        self._units: Mapping[str, int] = {}
        self._trained: Mapping[str, int] = {}
        self._cached = self._uncached = 0  # features that are there, and those still missing
        self._caching_seconds = self._caching_before = 0.0
        self._tick: float | None = None
        self._drawn = 0.0
        self._speed: tuple[float, float] | None = None

    def start(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int]) -> None:
        """The run is prepared; what an earlier run in this view left is forgotten."""
        self.config, self._units, self._pace = config, dict(sites), Pace(config.stages)
        self._trained = dict(records)
        self.records, self.round, self.caching, self._speed = [], 0, False, None
        self._forget_caches()

    def cache(self, *, site: str, done: int, total: int) -> None:
        """Features of a site; times the passes as they come."""
        now = self._clock()
        known, whole = self.caches.get(site, (0, 1))
        if done < total and known >= whole:  # it was complete: the model below the head moved, and all begin again
            self._forget_caches()
            self._caching_seconds = self._caching_before = 0.0
        self._caching_seconds += now - self._tick if self._tick is not None else 0.0
        self._tick = None if done >= total else now
        self.caching = True
        self._count(site, min(done, total), total)
        self._pace.forward_seconds = self._caching_seconds / max(self.cached_share, 1e-9)

    def begin_round(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """A round went out."""
        self.round, self.stage, self.attempt, self.cohort = round, stage, attempt, cohort
        self.answers, self._drawn = [], 0.0
        self.doing = ""
        if self.partial:
            self._forget_caches()
            self._caching_seconds = 0.0
        self._round_began, self._caching_before = self._clock(), self._caching_seconds

    def answer(self, *, site: str, outcome: str) -> None:
        """A site's reply, or why it was dropped."""
        self.answers.append(outcome)
        stages = {stage.name: stage for stage in self.config.stages} if self.config else {}
        if outcome == "update" and self.stage in stages:
            self._drawn += self._trained.get(site, 0) * _passes(stages[self.stage])

    def end_round(self, record: RoundRecord) -> None:
        """A round is over; its time without the caching inside it tells the pace."""
        self.records.append(record)
        self._speed = self.speed_of_round
        self._round_began, self._tick, self.caching = None, None, False
        if not record.abandoned:
            caching = self._caching_seconds - self._caching_before
            self._pace.measured(record.stage, max(record.seconds - caching, 0.0))

    def tally(self) -> tuple[int, int, int]:
        """Updates, refusals and drops among the answers to this attempt."""
        from fedward_common.round import Code

        refused = sum(answer in tuple(Code) for answer in self.answers)
        updates = self.answers.count("update")
        return updates, refused, len(self.answers) - updates - refused

    @property
    def speed(self) -> tuple[float, float] | None:
        """Of the last finished round, or of the first one so far: updates, and records in their steps, a second.

        How many entered a step is private at a real site; here it is the expected number.
        """
        return self._speed or self.speed_of_round

    @property
    def speed_of_round(self) -> tuple[float, float] | None:
        """The same of the round at work, without the caching of features; None before the first update."""
        updates = self.answers.count("update")
        seconds = self._inside()
        return (updates / seconds, self._drawn / seconds) if updates and seconds > 0 else None

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def rounds_done(self) -> int:
        """Finished rounds, also those before a resumed run began."""
        over = bool(self.records) and self.records[-1].round == self.round and not self.records[-1].abandoned
        return self.round if over else max(self.round - 1, 0)

    @property
    def cached_share(self) -> float:
        """How much of all features is there, in [0, 1]; a site not seen yet counts its nominal units.

        Of a round that asks a part of the sites: of its sites' features, where those from earlier rounds count as
        missing, since nobody says which they are.
        """
        if self.partial:
            return sum(done / max(total, 1) for done, total in self.caches.values()) / max(self.cohort, 1)
        return self._cached / max(self._cached + self._uncached, 1)

    @property
    def sites(self) -> int:
        """How many sites there are."""
        return max(len(self._units), len(self.caches))

    @property
    def partial(self) -> bool:
        """Whether a round asks only some of the sites."""
        return 0 < self.cohort < self.sites

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes; None where nothing is known yet."""
        left = self._pace.left(done=self.rounds_done, elapsed=self._inside())
        return None if left is None or self.config is None else left + self._caching_left()

    def curve(self, source: str, key: str) -> dict[int, float]:
        """A metric by round; ``source`` is ``evaluation`` or ``sites``."""
        found = {record.round: (getattr(record, source) or {}).get(key) for record in self.records}
        return {number: value for number, value in found.items() if value is not None and math.isfinite(value)}

    def epitaph(self) -> str:
        """How far the run came, in one line."""
        done = self.rounds_done
        if not done:
            return "stopped before the first round ended"
        accuracy = list(self.curve("evaluation", "accuracy").values())[-1:]
        spent = [record.epsilon for record in self.records[-1:] if record.epsilon is not None]
        words = [f"accuracy {value:.4f}" for value in accuracy] + [
            f"epsilon {rounded_up(value, digits=2)}" for value in spent
        ]
        return "  ".join([f"stopped after round {done}", *words])

    def _forget_caches(self) -> None:
        self.caches = {}
        self._cached, self._uncached = 0, sum(self._units.values())

    def _count(self, site: str, done: int, total: int) -> None:
        # told many times a second, of up to 10,000 sites: sums go along
        before, whole = self.caches.get(site, (0, self._units.get(site, 0)))
        self.caches[site] = (done, total)
        self._cached += done - before
        self._uncached += (total - done) - (whole - before)

    def _inside(self) -> float:
        # seconds of the round at work, without those in which features were computed
        if self._round_began is None:
            return 0.0
        return max(self._clock() - self._round_began - (self._caching_seconds - self._caching_before), 0.0)

    def _caching_left(self) -> float:
        share = self.cached_share
        return self._caching_seconds * (1 - share) / share if self.caching and share > 0 else 0.0


def measures(record: RoundRecord) -> Iterable[str]:
    """The coordinator's figures of a round, as words."""
    seen = record.evaluation or {}
    if (accuracy := seen.get("accuracy")) is not None:
        yield f"accuracy {accuracy:.4f}"
    if (loss := seen.get("loss")) is not None:
        yield f"loss {loss:.2f}"
    if record.epsilon is not None:
        yield f"epsilon {rounded_up(record.epsilon, digits=2)}"


def reasons(counts: Mapping[str, int]) -> str:
    """For example ``2 unavailable, 1 expired``."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if count)


def promise(epsilon: float | None, delta: float, unit: str) -> str:
    """For example ``epsilon 8.00 at delta 1e-05, per record``."""
    if epsilon is None or not math.isfinite(epsilon):
        return "none: this run had no privacy"
    return f"epsilon {rounded_up(epsilon, digits=2)} at delta {delta:g}, per {unit}"


def summary_rows(summary: Mapping[str, Any]) -> list[SummaryRow]:
    """The final table. Keys that a summary lacks are left out."""
    scores = {"accuracy": summary.get("accuracy"), **summary.get("comparison", {})}
    scores |= {"commonest label": summary.get("majority_accuracy")}
    rows: list[SummaryRow] = [(name, f"{score:.4f}", score) for name, score in scores.items() if score is not None]
    return rows + [(label, figure, None) for label, figure in _facts(summary) if figure]


def _facts(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    known = {key: value for key, value in summary.items() if value is not None}
    yield "macro F1", f"{known['macro_f1']:.4f}" if "macro_f1" in known else ""
    yield "privacy", promise(known.get("epsilon"), known["delta"], str(known["unit"])) if "delta" in known else ""
    yield "rounds", f"{known['rounds']} over {counted(known['sites'], 'site', 'sites')}" if "rounds" in known else ""
    yield "traffic", f"up {size(known['bytes_up'])}, down {size(known['bytes_down'])}" if "bytes_up" in known else ""
    yield "time", duration(known["seconds"]) if "seconds" in known else ""
    yield "memory", f"{size(known['peak_bytes']['host'])} at most" if "peak_bytes" in known else ""
    yield "base model", str(known.get("base_fingerprint", ""))[:DIGITS]
    yield "adapter", str(known.get("adapter_digest", ""))[:DIGITS]
    yield "seed", str(known.get("seed", ""))
    yield "result", str(known.get("out", ""))


def caveats(summary: Mapping[str, Any]) -> list[str]:
    """What the person should know before using the result."""
    accuracy, floor = summary.get("accuracy"), summary.get("majority_accuracy")
    if accuracy is None or floor is None or accuracy > floor:
        return []
    return ["accuracy is no better than always guessing the commonest label; more rounds, units or epsilon may help"]


def duration(seconds: float) -> str:
    """For example ``42 s``, ``1 min 12 s`` or ``2 h 05 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about(seconds: float) -> str:
    """A guessed duration, rounded up so that it stays calm: to 5 s, 10 s from a minute on, a minute from five on.

    Example:
        >>> about(3), about(61), about(1234)
        ('5 s', '1 min 10 s', '21 min')
    """
    step = 5 if seconds <= 60 else 10 if seconds <= 300 else 60
    whole = max(math.ceil(seconds / step), 1) * step
    return f"{whole // 60} min" if whole % 60 == 0 and 60 <= whole < 3600 else duration(whole)


def size(count: float) -> str:
    """Bytes in decimal units, for example ``12.0 kB``; from 100 kB on in MB."""
    power = 9 if count >= 1e9 else 6 if count >= 1e5 else 3 if count >= 1e3 else 0
    return f"{count / 10**power:.1f} {UNITS[power]}" if power else f"{count:.0f} B"
