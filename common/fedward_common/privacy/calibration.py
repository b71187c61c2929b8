"""Calibration: the least noise that keeps a run's promise.

One number ``s`` scales the noise of all stages (sigma = s x noise ratio). It depends on the terms alone, so every site
finds the same one. This module never sees data, nor what a ledger has left: that decides yes or no, not the noise.

Example:
    >>> from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=1.0, rounds=1, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=4.378, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> round(calibrate(terms).noise_scale, 2)
    1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeAlias

from fedward_common.errors import BudgetError
from fedward_common.privacy import accounting, checks
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import PrivacyTerms

__all__ = ["Calibration", "calibrate"]

TOLERANCE = 2e-3
AIM = 7e-4  # part of the target left over where the search aims: inside the tolerance, nearer to its useful end
MOST_EVALUATIONS = 60

Pattern: TypeAlias = tuple[tuple[float, float, int], ...]  # (sampling rate, noise ratio, steps) of each stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The noise of a run.

    Args:
      noise_scale: s > 0; a stage's noise multiplier is s x its noise ratio.
      metric_noise: noise multiplier of an evaluation; 0.0 when the terms ask for none.
    """

    noise_scale: float
    metric_noise: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.positive("noise_scale", self.noise_scale)
        checks.within("metric_noise", self.metric_noise, 0.0, accounting.HIGHEST_NOISE)

    def stage_event(self, terms: PrivacyTerms, stage_index: int, count: int) -> GaussianSum:
        """``count`` local steps of a stage."""
        stage = terms.stages[stage_index]
        return _training(self.noise_scale, (stage.sampling_rate, stage.noise_ratio, count))

    def metric_event(self, count: int) -> GaussianSum:
        """``count`` evaluations."""
        return _evaluation(self.metric_noise, count)

    def events(self, terms: PrivacyTerms) -> tuple[GaussianSum, ...]:
        """All events of the whole run: the stages in order, then the evaluations if there are any."""
        stages = tuple(self.stage_event(terms, index, stage.steps) for index, stage in enumerate(terms.stages))
        count = terms.metrics.evaluations
        return (*stages, self.metric_event(count)) if count else stages

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"metric_noise": float(self.metric_noise), "noise_scale": float(self.noise_scale)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The calibration of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("metric_noise", "noise_scale"), where="a calibration")
        with checks.decoding("a calibration"):
            return cls(
                noise_scale=checks.number(row["noise_scale"], where="noise_scale"),
                metric_noise=checks.number(row["metric_noise"], where="metric_noise"),
            )


def calibrate(terms: PrivacyTerms) -> Calibration:
    """The least noise that keeps the terms, found once for each pattern of rates, ratios and steps.

    Guarantees:
      - The epsilon of all events of the run, computed anew, is at most the target.
      - It is at least the target x (1 - 2e-3), unless even the least noise that is ever used (a noise multiplier of
        0.3, an expected privacy loss of 1000) stays below the target; then that noise is used.
      - The validation side spends at most its share of the target.
      - Terms that differ in name, unit, clip norm or record cap only get the same noise.

    Raises:
      BudgetError: no noise that accounting accepts meets the target.
    """
    pattern = tuple((stage.sampling_rate, stage.noise_ratio, stage.steps) for stage in terms.stages)
    metrics = terms.metrics
    return Calibration(
        noise_scale=_noise_scale(pattern, terms.epsilon, terms.delta),
        metric_noise=_metric_noise(metrics.evaluations, terms.epsilon * metrics.share, terms.delta),
    )


@lru_cache(maxsize=1024)
def _noise_scale(pattern: Pattern, target: float, delta: float) -> float:
    ratios = [ratio for _, ratio, _ in pattern]
    low, high = accounting.LOWEST_NOISE / min(ratios), accounting.HIGHEST_NOISE / max(ratios)
    return _solve(lambda s: tuple(_training(s, stage) for stage in pattern), target, delta, low, high)


@lru_cache(maxsize=1024)
def _metric_noise(count: int, target: float, delta: float) -> float:
    if count == 0:
        return 0.0
    low, high = accounting.LOWEST_NOISE, accounting.HIGHEST_NOISE
    return _solve(lambda s: (_evaluation(s, count),), target, delta, low, high)


def _training(scale: float, stage: tuple[float, float, int]) -> GaussianSum:
    rate, ratio, count = stage
    return GaussianSum(side=Side.TRAINING, sampling_rate=rate, noise_multiplier=scale * ratio, count=count)


def _evaluation(noise: float, count: int) -> GaussianSum:
    return GaussianSum(side=Side.VALIDATION, sampling_rate=1.0, noise_multiplier=noise, count=count)


Events: TypeAlias = Callable[[float], tuple[GaussianSum, ...]]


def _solve(events: Events, target: float, delta: float, low: float, high: float) -> float:
    """The least scale in [low, high] whose epsilon, by PLD, lies within the tolerance below the target.

    A guess from the central limit theorem, then secant steps in log-log space inside a bracket, halving the bracket
    where a step leaves it. What is returned was itself evaluated.
    """
    low = high * (1 - 1e-9) if low > high else low * (1 + 1e-9)
    accounting.check_caps(events(high))
    low = _bisect(lambda s: accounting.order_two_loss(events(s)) <= accounting.MOST_LOSS, low, high)
    bottom, top, tried = low, high, dict[float, float]()
    scale = _guess(events, target, delta, low, high)
    for _ in range(MOST_EVALUATIONS):
        excess = math.log(max(accounting.epsilon(events(scale), delta=delta), 1e-300) / target)
        if math.log1p(-TOLERANCE) <= excess <= 0 or (excess < 0 and scale == bottom):
            return scale
        low, high = (scale, high) if excess > 0 else (low, scale)
        tried[scale] = excess
        if scale == top:
            break
        scale = min(max(_secant(tried), low), high)
        scale = math.sqrt(low * high) if scale in tried else scale
    raise BudgetError(
        f"no noise multiplier up to {accounting.HIGHEST_NOISE:g} meets epsilon {target:g} at delta {delta:g}",
        hint="raise epsilon or delta, or use fewer rounds",
    )


def _secant(tried: dict[float, float]) -> float:
    """The next scale from the last one or two points, as if epsilon were a power of the scale."""
    points = [(math.log(scale), excess) for scale, excess in tried.items()][-2:]
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 != x0 else -1.2  # near -1.2 in the range of use
    slope = min(-0.3, max(-20.0, slope))
    return math.exp(x1 + max(-5.0, min(5.0, (math.log1p(-AIM) - y1) / slope)))


def _guess(events: Events, target: float, delta: float, low: float, high: float) -> float:
    """Many small losses add up to one Gaussian mechanism: match its mu. Only a starting point."""
    mu = _bisect(lambda noise: _gaussian_delta(target, noise) <= delta, 1e-3, 1e6) ** -1
    return _bisect(lambda s: accounting.chi_square(events(s)) <= mu * mu, low, high)


def _gaussian_delta(epsilon: float, noise: float) -> float:
    """Balle and Wang 2018 (arXiv:1805.06083), theorem 8, without overflow."""
    lower, upper = epsilon * noise - 0.5 / noise, epsilon * noise + 0.5 / noise
    tail = math.exp(min(epsilon, 600.0)) * math.erfc(upper / math.sqrt(2))
    return 0.5 * (math.erfc(lower / math.sqrt(2)) - tail)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least of [low, high] where a condition holds that stays true once it is; ``high`` where it never does."""
    if holds(low):
        return low
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
