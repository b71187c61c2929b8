"""What a site allows: its policy outranks every plan. Strict ranges, no accounting, no data.

A plan may be stricter than the policy, never looser. ``admit`` only compares public numbers, so its answer and its time
say nothing about data.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedward_common.adapter import AdapterSpec
from fedward_common.config import Method
from fedward_common.privacy.guarantee import PrivacyTerms, Unit
from fedward_common.round import Code, RoundPlan

__all__ = ["SEEDED_RANDOMNESS", "Admitted", "Denied", "SitePolicy"]

SEEDED_RANDOMNESS = "seeded_randomness"  # the waiver that lets a simulator repeat a run; written into every guarantee


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The policy allows the plan."""


@dataclass(frozen=True, kw_only=True)
class Denied:
    """The policy says no: the code for the wire, and the reason for the site's own log."""

    code: Code
    reason: str


@dataclass(frozen=True, kw_only=True)
class SitePolicy:
    """Limits that hold whatever a plan asks. Every number here is public to the coordinator's guesses, none is data.

    ``max_epsilon`` and ``max_delta`` bound one run; the ledger's budget bounds the site's life. ``minimum_units`` is
    checked locally once data is open and never answered truthfully.
    """

    unit: Unit
    base_fingerprints: frozenset[str]
    methods: frozenset[Method] = frozenset(Method)
    target_modules: frozenset[str] = frozenset({"query", "key", "value"})
    max_rank: int = 64
    max_epsilon: float = 8.0
    max_delta: float = 1e-5
    max_steps: int = 10_000
    max_clip_norm: float = 100.0
    max_records_per_unit: int = 64
    max_update_bytes: int = 256 * 2**20
    max_magnitude: float = 1e4
    minimum_units: int = 1
    metrics_may_leave: bool = True
    waivers: frozenset[str] = frozenset()

    def admit(self, plan: RoundPlan, spec: AdapterSpec, *, now: float) -> Admitted | Denied:
        """Compare a verified plan with the policy.

        Args:
          plan: decoded and signed by the enrolled operator.
          spec: the adapter spec that came with it.
          now: seconds since the epoch.

        Guarantees:
          - The answer depends on plan, policy and clock alone.
          - At most 1 ms: comparisons only.
        """
        if now >= plan.expires_at:
            return Denied(code=Code.EXPIRED, reason="the plan has expired")
        if spec.base_fingerprint not in self.base_fingerprints:
            return Denied(code=Code.UNKNOWN_MODEL, reason="the base model is not on this site's list")
        for reason in (*self._against_spec(spec), *self._against_terms(plan.terms)):
            return Denied(code=Code.TERMS_NOT_ALLOWED, reason=reason)
        if plan.evaluate and not self.metrics_may_leave:
            return Denied(code=Code.TERMS_NOT_ALLOWED, reason="metrics may not leave this site")
        return Admitted()

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
        rows = [
            (terms.unit is self.unit, f"the plan protects each {terms.unit}, the policy each {self.unit}"),
            (terms.epsilon <= self.max_epsilon, f"epsilon {terms.epsilon:g} exceeds {self.max_epsilon:g}"),
            (terms.delta <= self.max_delta, f"delta {terms.delta:g} exceeds {self.max_delta:g}"),
            (steps <= self.max_steps, f"{steps} steps exceed {self.max_steps}"),
            (terms.clip_norm <= self.max_clip_norm, f"clip norm {terms.clip_norm:g} exceeds {self.max_clip_norm:g}"),
            (terms.max_records_per_unit <= self.max_records_per_unit, "too many records of one unit in a step"),
        ]
        return [reason for allowed, reason in rows if not allowed]
