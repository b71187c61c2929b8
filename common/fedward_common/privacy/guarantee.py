"""What is promised (terms) and what was given (guarantee).

Terms are public and travel in a plan: target epsilon, rates, steps, ratios, and no sigma, which the site finds itself.
A guarantee is a list of events and the waivers under which they happened; its epsilon is computed, never stored.
This module knows no data and no messages beyond plain JSON values.

Example:
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=0.5, rounds=20, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=8.0, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> PrivacyTerms.from_json(terms.to_json()) == terms
    True
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from fedward_common.canonical import canonical
from fedward_common.errors import PrivacyError
from fedward_common.privacy import accounting, checks
from fedward_common.privacy.events import GaussianSum, events_from_json
from fedward_common.report import rounded_up

__all__ = ["Guarantee", "MetricTerms", "PrivacyTerms", "StageTerms", "Unit"]

MOST_STAGES = 32


class Unit(StrEnum):
    """What privacy protects: what a neighbouring data set has one more or one less of."""

    RECORD = "record"  # one row
    PATIENT = "patient"  # all rows with one value in the unit column, whatever that column holds


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTerms:
    """Consecutive rounds with one sampling rate and one noise level.

    Args:
      name: of the stage.
      sampling_rate: q in (0, 1], for each local step.
      rounds: at least 1.
      local_steps: noisy sums a round, at least 1.
      noise_ratio: sigma of this stage over the run's noise scale, > 0.

    Raises:
      PrivacyError: a number is out of range.
    """

    name: str
    sampling_rate: float
    rounds: int
    local_steps: int
    noise_ratio: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.rate("sampling_rate", self.sampling_rate)
        checks.at_least("rounds", self.rounds, 1)
        checks.at_least("local_steps", self.local_steps, 1)
        checks.within("noise_ratio", self.noise_ratio, 1e-3, 1e3)

    @property
    def steps(self) -> int:
        """Noisy sums of the whole stage."""
        return self.rounds * self.local_steps

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "local_steps": self.local_steps,
            "name": self.name,
            "noise_ratio": float(self.noise_ratio),
            "rounds": self.rounds,
            "sampling_rate": float(self.sampling_rate),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The stage of a JSON object, or ``MalformedMessage``."""
        row = checks.table(
            value, ("local_steps", "name", "noise_ratio", "rounds", "sampling_rate"), where="a stage of the terms"
        )
        with checks.decoding("a stage of the terms"):
            return cls(
                name=checks.text(row["name"], where="stage name"),
                sampling_rate=checks.number(row["sampling_rate"], where="sampling_rate"),
                rounds=checks.integer(row["rounds"], where="rounds"),
                local_steps=checks.integer(row["local_steps"], where="local_steps"),
                noise_ratio=checks.number(row["noise_ratio"], where="noise_ratio"),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricTerms:
    """Noisy evaluations on units that are never trained on.

    Args:
      evaluations: of the whole run, at least 0.
      share: part of the target epsilon that the validation side may spend, in (0, 1]; 1 costs nobody anything more,
        because a unit pays for its own side only.
      validation_fraction: chance that a unit is on the validation side, in [0, 0.5].

    Raises:
      PrivacyError: a number is out of range, or there are evaluations and nothing to evaluate on.
    """

    evaluations: int
    share: float
    validation_fraction: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.at_least("evaluations", self.evaluations, 0)
        checks.rate("share", self.share)
        checks.within("validation_fraction", self.validation_fraction, 0.0, 0.5)
        if self.evaluations and not self.validation_fraction:
            raise PrivacyError(
                "there are evaluations but validation_fraction is 0",
                hint="set validation_fraction above 0, or evaluations to 0",
            )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "evaluations": self.evaluations,
            "share": float(self.share),
            "validation_fraction": float(self.validation_fraction),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The metric terms of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("evaluations", "share", "validation_fraction"), where="metrics of the terms")
        with checks.decoding("metrics of the terms"):
            return cls(
                evaluations=checks.integer(row["evaluations"], where="evaluations"),
                share=checks.number(row["share"], where="share"),
                validation_fraction=checks.number(row["validation_fraction"], where="validation_fraction"),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyTerms:
    """What a run promises to every unit of every site, and how it spends that promise. No sigma in it.

    Args:
      epsilon: target for the whole run, metrics included, > 0.
      delta: target, in (0, 1).
      unit: what is protected.
      clip_norm: C, between 1e-9 and 1e9.
      max_records_per_unit: records of a drawn unit used in a step, at least 1.
      stages: 1 to 32, in the order of the run, with distinct names.
      metrics: the evaluations.

    Guarantees:
      - ``digest`` is equal for equal terms, also after a trip through JSON, and differs when any number differs.

    Raises:
      PrivacyError: a number is out of range.
    """

    epsilon: float
    delta: float
    unit: Unit
    clip_norm: float
    max_records_per_unit: int
    stages: tuple[StageTerms, ...]
    metrics: MetricTerms

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.positive("epsilon", self.epsilon)
        _check_delta(self.delta)
        checks.within("clip_norm", self.clip_norm, 1e-9, 1e9)
        checks.at_least("max_records_per_unit", self.max_records_per_unit, 1)
        checks.within("the number of stages", len(self.stages), 1, MOST_STAGES)
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise PrivacyError("two stages share a name", hint="give each stage its own name")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "clip_norm": float(self.clip_norm),
            "delta": float(self.delta),
            "epsilon": float(self.epsilon),
            "max_records_per_unit": self.max_records_per_unit,
            "metrics": self.metrics.to_json(),
            "stages": [stage.to_json() for stage in self.stages],
            "unit": self.unit.value,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The terms of a JSON object.

        Raises:
          MalformedMessage: an unknown or missing key, a wrong type, NaN, infinity, or a number out of range.
        """
        keys = ("clip_norm", "delta", "epsilon", "max_records_per_unit", "metrics", "stages", "unit")
        row = checks.table(value, keys, where="the privacy terms")
        with checks.decoding("the privacy terms"):
            return cls(
                epsilon=checks.number(row["epsilon"], where="epsilon"),
                delta=checks.number(row["delta"], where="delta"),
                unit=checks.member(Unit, row["unit"], where="unit"),
                clip_norm=checks.number(row["clip_norm"], where="clip_norm"),
                max_records_per_unit=checks.integer(row["max_records_per_unit"], where="max_records_per_unit"),
                stages=tuple(StageTerms.from_json(stage) for stage in checks.rows(row["stages"], where="stages")),
                metrics=MetricTerms.from_json(row["metrics"]),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarantee:
    """What a site gives with an update: the events behind it, and the waivers under which they happened.

    Args:
      unit: what is protected.
      delta: at which ``epsilon()`` is computed, in (0, 1).
      events: what was done, or reserved to be done.
      waivers: names of the promises that the site's administrator waived.

    Raises:
      PrivacyError: delta is out of range.
    """

    unit: Unit
    delta: float
    events: tuple[GaussianSum, ...]
    waivers: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check delta."""
        _check_delta(self.delta)

    def epsilon(self) -> float:
        """Computed from the events, or ``BudgetError``."""
        return accounting.epsilon(self.events, delta=self.delta)

    def describe(self) -> str:
        """One sentence for a person; epsilon is rounded up, never down."""
        shown = rounded_up(self.epsilon(), digits=3)
        waived = f"; waived: {', '.join(self.waivers)}" if self.waivers else ""
        return (
            f"add or remove one {self.unit.value}: ({shown}, {self.delta:g})-differential privacy over "
            f"{sum(event.count for event in self.events)} noisy sums{waived}"
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; there is no epsilon in it."""
        return {
            "delta": float(self.delta),
            "events": [event.to_json() for event in self.events],
            "unit": self.unit.value,
            "waivers": list(self.waivers),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The guarantee of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("delta", "events", "unit", "waivers"), where="a guarantee")
        with checks.decoding("a guarantee"):
            return cls(
                unit=checks.member(Unit, row["unit"], where="unit"),
                delta=checks.number(row["delta"], where="delta"),
                events=events_from_json(row["events"]),
                waivers=tuple(checks.text(w, where="a waiver") for w in checks.rows(row["waivers"], where="waivers")),
            )


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}", hint="give delta between 0 and 1, well below one over the units")
