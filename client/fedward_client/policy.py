"""What a site allows: its policy outranks every plan. Strict ranges, no accounting, no data.

A plan may be stricter than the policy, never looser. ``admit`` only compares public numbers, so its answer and its time
say nothing about data.

Example:
    >>> Hours.parse("22:00-06:00").hold(23 * 60), Hours.parse("22:00-06:00").hold(12 * 60)
    (True, False)
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Self

from fedward_common.adapter import AdapterSpec
from fedward_common.config import Method
from fedward_common.errors import ConfigError
from fedward_common.privacy.guarantee import PrivacyTerms, Unit
from fedward_common.round import Code, RoundPlan

__all__ = ["SEEDED_RANDOMNESS", "Admitted", "Denied", "Hours", "SitePolicy"]

SEEDED_RANDOMNESS = "seeded_randomness"  # the waiver that lets a simulator repeat a run; written into every guarantee
MINUTES_IN_A_DAY = 24 * 60


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The policy allows the plan."""


@dataclass(frozen=True, kw_only=True)
class Denied:
    """The policy says no: the code for the wire, and the reason for the site's own log."""

    code: Code
    reason: str


@dataclass(frozen=True, kw_only=True)
class Hours:
    """A part of every day, in minutes after local midnight: from ``start`` up to, not including, ``end``.

    Where ``end`` is not after ``start`` the part wraps midnight.
    """

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"HH:MM-HH:MM"``; ``24:00`` may end it.

        Raises:
          ConfigError: another form, no such time, or both times equal.
        """
        found = re.fullmatch(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", text, flags=re.ASCII)
        start, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
        if start >= MINUTES_IN_A_DAY or end > MINUTES_IN_A_DAY or start == end:
            raise ConfigError(f"{text!r} is no part of a day", hint='for example "19:00-06:30", or "00:00-24:00"')
        return cls(start=start, end=end)

    def hold(self, minute: int) -> bool:
        """Say whether a minute after midnight lies inside."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """Limits that hold whatever a plan asks. Every number here is public to the coordinator's guesses, none is data.

    ``max_epsilon`` and ``max_delta`` bound one run; the ledger's budget bounds the site's life. ``minimum_units`` is
    checked locally once data is open and never answered truthfully. ``hours`` are local time; none means always.
    ``validation_fraction`` is the site's own: it puts units on their side for the life of the data, so a plan with
    another one is refused; None leaves it to the plan. ``coordinator_states_min_sites`` is the least that a plan must
    state about how many sites answer: signed evidence of what the coordinator said, on which no privacy rests. The
    defaults of later fields restrict nothing.
    """

    unit: Unit
    base_fingerprints: frozenset[str]
    methods: frozenset[Method] = frozenset(Method)
    target_modules: frozenset[str] = frozenset({"query", "key", "value"})
    max_rank: int = 64
    max_epsilon: float = 8.0
    max_delta: float = 1e-5
    max_steps: int = 10_000
    max_sampling_rate: float = 1.0
    max_clip_norm: float = 100.0
    max_records_per_unit: int = 64
    max_update_bytes: int = 256 * 2**20
    max_magnitude: float = 1e4
    minimum_units: int = 1
    validation_fraction: float | None = None
    hours: tuple[Hours, ...] = ()
    metrics_may_leave: bool = True
    coordinator_states_min_sites: int = 1
    waivers: frozenset[str] = frozenset()

    def admit(self, plan: RoundPlan, spec: AdapterSpec, *, now: float) -> Admitted | Denied:
        """Compare a verified plan with the policy.

        Args:
          plan: decoded and signed by the enrolled operator.
          spec: the adapter spec that came with it.
          now: seconds since the epoch.

        Guarantees:
          - The answer depends on plan, policy and clock alone.
          - Outside the hours a plan that is allowed otherwise is ``unavailable``, as for any affair of the site's own.
          - At most 1 ms: comparisons only.
        """
        if now >= plan.expires_at:
            return Denied(code=Code.EXPIRED, reason="the plan has expired")
        if spec.base_fingerprint not in self.base_fingerprints:
            return Denied(code=Code.UNKNOWN_MODEL, reason="the base model is not on this site's list")
        for reason in (*self._against_spec(spec), *self._against_terms(plan.terms), *self._against_plan(plan)):
            return Denied(code=Code.TERMS_NOT_ALLOWED, reason=reason)
        if not self.open_at(now):
            return Denied(code=Code.UNAVAILABLE, reason="outside the hours in which training may run")
        return Admitted()

    def open_at(self, now: float) -> bool:
        """Say whether training may run at this time of the local day."""
        local = time.localtime(now)
        minute = local.tm_hour * 60 + local.tm_min
        return not self.hours or any(hours.hold(minute) for hours in self.hours)

    def _against_spec(self, spec: AdapterSpec) -> list[str]:
        rows = [
            (spec.method in {m.value for m in self.methods}, f"adapter method {spec.method} is not allowed"),
            (set(spec.target_modules) <= self.target_modules, "a target module is not allowed"),
            (spec.rank <= self.max_rank, f"rank {spec.rank} exceeds {self.max_rank}"),
            (4 * spec.size <= self.max_update_bytes, "an update would be larger than allowed"),
        ]
        return [reason for allowed, reason in rows if not allowed]

    def _against_terms(self, terms: PrivacyTerms) -> list[str]:
        steps = sum(stage.steps for stage in terms.stages)
        rate = max(stage.sampling_rate for stage in terms.stages)
        looks, aside = terms.metrics.evaluations, terms.metrics.validation_fraction
        own = aside if self.validation_fraction is None else self.validation_fraction
        rows = [
            (terms.unit is self.unit, f"the plan protects each {terms.unit}, the policy each {self.unit}"),
            (terms.epsilon <= self.max_epsilon, f"epsilon {terms.epsilon:g} exceeds {self.max_epsilon:g}"),
            (terms.delta <= self.max_delta, f"delta {terms.delta:g} exceeds {self.max_delta:g}"),
            (steps <= self.max_steps, f"{steps} steps exceed {self.max_steps}"),
            (looks <= self.max_steps, f"{looks} evaluations exceed {self.max_steps}"),
            (aside == own, f"the plan sets {aside:g} of the units aside for validation, this site {own:g}"),
            (rate <= self.max_sampling_rate, f"sampling rate {rate:g} exceeds {self.max_sampling_rate:g}"),
            (terms.clip_norm <= self.max_clip_norm, f"clip norm {terms.clip_norm:g} exceeds {self.max_clip_norm:g}"),
            (terms.max_records_per_unit <= self.max_records_per_unit, "too many records of one unit in a step"),
        ]
        return [reason for allowed, reason in rows if not allowed]

    def _against_plan(self, plan: RoundPlan) -> list[str]:
        stated, wanted = plan.states_min_sites, self.coordinator_states_min_sites
        rows = [
            (not plan.evaluate or self.metrics_may_leave, "metrics may not leave this site"),
            (stated >= wanted, f"the coordinator states {stated} sites at least, this site wants {wanted}"),
        ]
        return [reason for allowed, reason in rows if not allowed]
