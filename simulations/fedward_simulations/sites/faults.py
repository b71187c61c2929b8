"""What goes wrong at which virtual site, and when: pure functions of a seed, never of data or of what happened before.

A fault is drawn for each (site, round, attempt) by hashing, so a resumed run meets the same faults, whatever order
sites are served in. This module knows no messages, models or ledgers; ``behaviour`` carries out what is drawn here.

Example:
    >>> plan = FaultPlan(settings=SimulationConfig(dropout=0.5), seed=0, deadline_s=60.0)
    >>> [plan.fault("site-1", round=1, attempt=attempt).fate.value for attempt in (1, 2, 3)]
    ['silence', 'answer', 'answer']
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

from fedward_client.data import Records
from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError
from fedward_common.simulated import Poison, SimulationConfig

__all__ = ["Fate", "Fault", "FaultPlan", "Temper", "flipped", "tempers", "with_flipped_labels"]

BITS = 52  # that a float keeps apart, also close to 1


class Fate(StrEnum):
    """What becomes of one question to one site."""

    ANSWER = "answer"  # a reply in time
    SILENCE = "silence"  # the site was away: it did nothing and says nothing
    LATE = "late"  # it did the work, and its reply comes after the deadline
    CORRUPT = "corrupt"  # it did the work, and its reply is damaged on the way


class Temper(StrEnum):
    """What a site is like, for a whole run."""

    WILLING = "willing"  # allows what the run file asks for
    STRICT = "strict"  # allows half the run's epsilon, so it refuses
    SPENT = "spent"  # has spent its budget on an earlier run, so it is unavailable
    OTHER_UNIT = "other unit"  # protects another unit than the run does, so it refuses
    POISONED = "poisoned"  # sends bad updates under its own, good key


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fate, and the seconds from the plan's arrival to the reply's; infinite where there is none."""

    fate: Fate
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """Every fault of a run.

    Guarantees:
      - A pure function of seed, site, round and attempt.
      - A reply is late exactly when its seconds exceed the deadline.
      - Compute times are log-normal over sites, with median ``compute_s``.
    """

    settings: SimulationConfig
    seed: int
    deadline_s: float

    def fault(self, site: str, *, round: int, attempt: int) -> Fault:
        """What becomes of this attempt to ask this site."""
        about = (site, round, attempt)
        if self._happens("dropout", self.settings.dropout, *about):
            return Fault(fate=Fate.SILENCE, seconds=math.inf)
        seconds = self._seconds(*about)
        if seconds > self.deadline_s:
            return Fault(fate=Fate.LATE, seconds=seconds)
        if self._happens("late", self.settings.late, *about):
            return Fault(fate=Fate.LATE, seconds=self.deadline_s + max(seconds, 1.0))
        if self._happens("corrupt", self.settings.corrupt, *about):
            return Fault(fate=Fate.CORRUPT, seconds=seconds)
        return Fault(fate=Fate.ANSWER, seconds=seconds)

    def damaged(self, data: bytes, site: str, *, round: int, attempt: int) -> bytes:
        """The bytes as a bad line would deliver them: one bit turned over, or the end cut off.

        Guarantees:
          - The result differs from ``data``, unless that is empty.
        """
        if not data:
            return data
        place = int(self._uniform("place", site, round, attempt) * len(data))
        if self._happens("cut", 0.5, site, round, attempt):
            return data[:place]
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    def _seconds(self, site: str, round: int, attempt: int) -> float:
        own = self.settings.straggle_sigma * self._normal("speed", site)
        now = self.settings.jitter_sigma * self._normal("jitter", site, round, attempt)
        return self.settings.compute_s * math.exp(own + now)

    def _happens(self, what: str, chance: float, *about: str | int) -> bool:
        return self._uniform(what, *about) < chance

    def _normal(self, *about: str | int) -> float:
        return NormalDist().inv_cdf(self._uniform(*about))

    def _uniform(self, *about: str | int) -> float:
        return _uniform(self.seed, *about)


def tempers(settings: SimulationConfig | None, *, seed: int, sites: Iterable[str]) -> dict[str, Temper]:
    """What each site is like: so many of each kind as the settings ask for, chosen by seed.

    Args:
      settings: shares, rounded to whole sites; None: everyone is willing.
      seed: decides who.
      sites: their names.

    Returns:
      The temper of each site, in the order of ``sites``.

    Guarantees:
      - The order of the sites does not matter.
      - A poisoned site is otherwise willing, and at least one site is neither poisoned nor unwilling.

    Raises:
      ConfigError: there are too few sites.
    """
    names = list(sites)
    kinds = [] if settings is None else _kinds(settings, len(names))
    if kinds and len(kinds) >= len(names):
        raise ConfigError(
            "[simulation] leaves no site that is willing", hint="lower strict, spent, other_unit or poisoned"
        )
    drawn = sorted(names, key=lambda name: (_uniform(seed, "temper", name), name))
    chosen = dict(zip(drawn, kinds, strict=False))
    return {name: chosen.get(name, Temper.WILLING) for name in names}


def _kinds(settings: SimulationConfig, sites: int) -> list[Temper]:
    shares = {Temper.STRICT: settings.strict, Temper.SPENT: settings.spent, Temper.OTHER_UNIT: settings.other_unit}
    kinds = [temper for temper, share in shares.items() for _ in range(round(share * sites))]
    return [*kinds, *[Temper.POISONED] * settings.poisoned]


def with_flipped_labels(config: RunConfig, sites: dict[str, Records]) -> dict[str, Records]:
    """The sites' records as they train on them: those of a site poisoned by ``flip`` have wrong labels.

    Raises:
      ConfigError: no willing site would be left, whatever the poison.
    """
    settings, labels = config.simulation, len(config.task.labels)
    kinds = tempers(settings, seed=config.seed, sites=sites)
    if settings is None or settings.poison is not Poison.FLIP:
        return sites
    return {
        name: flipped(records, labels=labels) if kinds[name] is Temper.POISONED else records
        for name, records in sites.items()
    }


def flipped(records: Records, *, labels: int) -> Records:
    """The same records, each with the label after its own; after the last comes the first."""
    return replace(records, labels=(records.labels + 1) % labels)


def _uniform(*about: str | int) -> float:
    """A number between 0 and 1, neither included, that depends on the arguments alone."""
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8, person=b"fedward-faults").digest()
    drawn = int.from_bytes(digest, "big") >> (64 - BITS)
    return float((drawn + 0.5) / 2**BITS)
