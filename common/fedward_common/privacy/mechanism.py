"""The mechanism: sampler, clip, noise and the event that describes them come out of one constructor.

Numbers enter a ``PrivateSum`` once; what it draws, clips and adds, and what it tells the ledger, cannot disagree. It
does not know how gradients are computed, and it imports no training framework.

Example:
    >>> import numpy as np
    >>> from fedward_common.privacy.randomness import Stream
    >>> step = PrivateSum(sampling_rate=0.5, noise_multiplier=2.0, clip_norm=1.0, nominal_units=100,
    ...                   max_records_per_unit=1)
    >>> step.event.noise_multiplier, step.clip_factors(np.array([0.5, np.nan])).tolist()
    (2.0, [1.0, 0.0])
    >>> step.release(np.zeros(3), Stream(bytes(32))).shape
    (3,)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedward_common.errors import PrivacyError
from fedward_common.privacy import checks, noise
from fedward_common.privacy.calibration import Calibration
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.privacy.randomness import Stream

__all__ = ["MetricSums", "PrivateMetric", "PrivateSum", "clip_factors", "clipped_sum"]

Floats: TypeAlias = NDArray[np.floating[Any]]

MARGIN = 1 + 1e-5  # float32 norms and factors are exact to about 1e-6; without it a clipped norm could exceed C


def clip_factors(norms: Floats, *, clip_norm: float) -> NDArray[np.float32]:
    """What to multiply each unit's vector by, so that its L2 norm is at most C.

    Args:
      norms: L2 norm of each unit's vector, computed in float32 or better, over all trained tensors jointly.
      clip_norm: C > 0.

    Returns:
      float32 of the same shape: min(1, C / (norm (1 + 1e-5))).

    Guarantees:
      - ``factor * norm <= clip_norm`` wherever the norm is finite.
      - Exactly 0 where the norm is NaN or infinite. Such a vector has to be set to zero, because 0 x NaN is NaN.
      - A norm of 0 gives 1.
    """
    wide = norms.astype(np.float64)
    finite = np.isfinite(wide)
    scaled = clip_norm / np.maximum(np.where(finite, wide, 0.0) * MARGIN, clip_norm)
    # Below the normal range float32 rounds by more than the margin; such a factor is as good as 0.
    usable = finite & (scaled >= np.finfo(np.float32).tiny)
    return np.where(usable, scaled, 0.0).astype(np.float32)


def clipped_sum(vectors: Floats, *, clip_norm: float) -> NDArray[np.float64]:
    """The sum of the rows, each clipped to L2 norm C.

    Args:
      vectors: one row a unit, shape ``(n, d)``; ``n`` may be 0.
      clip_norm: C > 0.

    Returns:
      float64, shape ``(d,)``.

    Guarantees:
      - Adding or removing one row moves the sum by at most ``clip_norm`` (1e-12 relative, from summation).
      - A row with NaN or infinity contributes zero.
    """
    wide = vectors.astype(np.float64)
    finite = np.isfinite(wide).all(axis=1, keepdims=True)
    clean = np.where(finite, wide, 0.0)
    with np.errstate(over="ignore"):
        factors = clip_factors(np.linalg.norm(clean, axis=1), clip_norm=clip_norm)
    return np.asarray((clean * factors[:, None].astype(np.float64)).sum(axis=0), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateSum:
    """One local step: Poisson-sample units, clip each, sum, add noise, divide by a public number.

    Args:
      sampling_rate: q in (0, 1].
      noise_multiplier: sigma > 0.
      clip_norm: C > 0.
      nominal_units: the round, public number that the site declares; the true number is never used.
      max_records_per_unit: at least 1.

    Guarantees:
      - ``event`` describes exactly what ``draw_units``, ``clip_factors`` and ``release`` do.
      - The divisor is ``sampling_rate x nominal_units``, whatever the number of units.

    Raises:
      PrivacyError: a number is out of range.
    """

    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    nominal_units: int
    max_records_per_unit: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.rate("sampling_rate", self.sampling_rate)
        checks.positive("noise_multiplier", self.noise_multiplier)
        checks.within("clip_norm", self.clip_norm, 1e-9, 1e9)
        checks.at_least("nominal_units", self.nominal_units, 1)
        checks.at_least("max_records_per_unit", self.max_records_per_unit, 1)

    @classmethod
    def for_stage(cls, terms: PrivacyTerms, calibration: Calibration, *, stage_index: int, nominal_units: int) -> Self:
        """The mechanism of every local step of a stage."""
        event = calibration.stage_event(terms, stage_index, 1)
        return cls(
            sampling_rate=event.sampling_rate,
            noise_multiplier=event.noise_multiplier,
            clip_norm=terms.clip_norm,
            nominal_units=nominal_units,
            max_records_per_unit=terms.max_records_per_unit,
        )

    @property
    def event(self) -> GaussianSum:
        """What one step does."""
        return GaussianSum(
            side=Side.TRAINING, sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, count=1
        )

    @property
    def divisor(self) -> float:
        """Public: q x nominal units."""
        return self.sampling_rate * self.nominal_units

    def draw_units(self, population: int, stream: Stream) -> NDArray[np.int64]:
        """The units of a step, sorted; each of ``range(population)`` independently with probability q."""
        return np.flatnonzero(stream.bernoulli(population, probability=self.sampling_rate)).astype(np.int64)

    def choose_records(self, records: NDArray[np.int64], stream: Stream) -> NDArray[np.int64]:
        """At most ``max_records_per_unit`` records of a drawn unit, uniformly, in their given order."""
        chosen = stream.choose(len(records), size=self.max_records_per_unit)
        return np.asarray(records[chosen], dtype=np.int64)

    def clip_factors(self, norms: Floats) -> NDArray[np.float32]:
        """``clip_factors`` with this clip norm."""
        return clip_factors(norms, clip_norm=self.clip_norm)

    def clipped_sum(self, vectors: Floats) -> NDArray[np.float64]:
        """``clipped_sum`` with this clip norm."""
        return clipped_sum(vectors, clip_norm=self.clip_norm)

    def release(self, total: Floats, stream: Stream) -> NDArray[np.float64]:
        """The noisy mean gradient of a step.

        Args:
          total: the sum of the clipped vectors of the drawn units, shape ``(d,)``; zeros for an empty draw.
          stream: for noise, used for nothing else.

        Returns:
          float64, shape ``(d,)``: ``noise.add_noise`` over the divisor. See there for what is proven.

        Raises:
          PrivacyError: the total is not finite or impossibly large. Nothing is released.

        Source: Abadi et al. 2016, arXiv:1607.00133, with the divisor of McMahan et al. 2018, arXiv:1710.06963.
        """
        noised = noise.add_noise(
            total, sensitivity=self.clip_norm, noise_multiplier=self.noise_multiplier, stream=stream
        )
        noised /= self.divisor
        return noised


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSums:
    """Noisy sums over validation units; sums of several sites add up before ratios are taken.

    Args:
      correct: sum of the units' accuracies.
      units: number of units.
      loss: sum of the units' losses, each clipped to [0, loss cap].
    """

    correct: float
    units: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateMetric:
    """One evaluation on the validation side: every unit contributes (accuracy, 1, loss / loss cap).

    Each of the three lies in [0, 1], so the clip norm sqrt(3) never shortens a contribution and bounds every one.

    Args:
      noise_multiplier: sigma > 0.
      loss_cap: losses are clipped to [0, loss cap]; log(classes) for classification.

    Guarantees:
      - ``event`` describes exactly what ``measure`` does.
      - A unit with a value that is not finite contributes zero, to the number of units as well.

    Raises:
      PrivacyError: a number is out of range.
    """

    noise_multiplier: float
    loss_cap: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.positive("noise_multiplier", self.noise_multiplier)
        checks.positive("loss_cap", self.loss_cap)

    @classmethod
    def for_run(cls, calibration: Calibration, *, loss_cap: float) -> Self:
        """The mechanism of every evaluation of a run."""
        return cls(noise_multiplier=calibration.metric_noise, loss_cap=loss_cap)

    @property
    def event(self) -> GaussianSum:
        """What one evaluation does."""
        return GaussianSum(side=Side.VALIDATION, sampling_rate=1.0, noise_multiplier=self.noise_multiplier, count=1)

    @property
    def clip_norm(self) -> float:
        """C of the contribution of one unit."""
        return math.sqrt(3.0)

    def contributions(self, correct: Floats, loss: Floats) -> NDArray[np.float64]:
        """One row a unit, before clipping.

        Args:
          correct: accuracy of each unit, averaged over its capped records, shape ``(n,)``.
          loss: likewise the loss.
        """
        if correct.shape != loss.shape or correct.ndim != 1:
            raise PrivacyError("metrics of unlike shapes", hint="pass one accuracy and one loss for each unit")
        rows = np.stack([correct, np.ones(correct.shape), loss], axis=1, dtype=np.float64)
        finite = np.isfinite(rows).all(axis=1, keepdims=True)
        capped = np.clip(np.where(finite, rows, 0.0) / [1.0, 1.0, self.loss_cap], 0.0, 1.0)
        return np.asarray(capped, dtype=np.float64)

    def measure(self, correct: Floats, loss: Floats, stream: Stream) -> MetricSums:
        """The noisy sums over all validation units; arguments as in ``contributions``."""
        total = clipped_sum(self.contributions(correct, loss), clip_norm=self.clip_norm)
        # Clipping shortens a full contribution by the margin 1e-5, far below the noise.
        noised = noise.add_noise(
            total, sensitivity=self.clip_norm, noise_multiplier=self.noise_multiplier, stream=stream
        )
        return MetricSums(correct=float(noised[0]), units=float(noised[1]), loss=float(noised[2]) * self.loss_cap)
