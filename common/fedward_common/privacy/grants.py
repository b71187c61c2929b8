"""What a site may spend, and what it promised a run: budget, quote, grant.

A quote is computed from terms alone, before data is opened; a grant is a quote that a ledger reserved. Nothing here
keeps a record: that is the ledger's.

Example:
    >>> from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=0.5, rounds=20, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=8.0, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> quote = Quote.of(terms)
    >>> 7.98 < quote.epsilon <= 8.0
    True
    >>> Budget(epsilon=10.0, delta=1e-4).bears([quote]), Budget(epsilon=10.0, delta=1e-4).bears([quote, quote])
    (True, False)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from fedward_common.errors import BudgetError
from fedward_common.privacy import accounting, calibration, checks
from fedward_common.privacy.calibration import Calibration
from fedward_common.privacy.events import GaussianSum, events_from_json, merged
from fedward_common.privacy.guarantee import PrivacyTerms, Unit

__all__ = ["Budget", "Filter", "Grant", "Quote", "check_id"]

SLACK = 1 + 1e-9  # ten grants of delta 1e-5 fill a budget of 1e-4, also in floating point
HIGHEST_ORDER = 512


class Filter(StrEnum):
    """How grants add up. Later plans are chosen after seeing earlier outputs, so the rule must be a privacy filter."""

    SUM = "sum"  # of the grants' (epsilon, delta): Rogers et al. 2016, arXiv:1605.08294, theorem 5.1
    RENYI = "rdp"  # Renyi losses at one order, fixed beforehand: Feldman and Zrnic 2021, arXiv:2008.11193


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """What a whole run will do to the data: fixed before the first byte of it is read.

    Guarantees:
      - The events are those of the terms under the calibration.

    Raises:
      BudgetError: they are not.
    """

    terms: PrivacyTerms
    calibration: Calibration
    events: tuple[GaussianSum, ...]

    def __post_init__(self) -> None:
        """Check that terms, noise and events agree; whoever made them."""
        if self.events != merged(self.calibration.events(self.terms)):
            raise BudgetError("a quote's events are not those of its terms", hint="ask the ledger for a quote")

    @classmethod
    def of(cls, terms: PrivacyTerms) -> Self:
        """The quote of these terms, or ``BudgetError`` when no noise meets them."""
        return cls._with(terms, calibration.calibrate(terms))

    @classmethod
    def _with(cls, terms: PrivacyTerms, noise: Calibration) -> Self:
        return cls(terms=terms, calibration=noise, events=merged(noise.events(terms)))

    @property
    def epsilon(self) -> float:
        """Of the whole run at the terms' delta, computed from the events."""
        return accounting.epsilon(self.events, delta=self.terms.delta)

    def check(self) -> None:
        """Run the accountant: a ledger reserves no quote that costs more than its terms promise.

        Raises:
          BudgetError: it does.
        """
        if self.epsilon > self.terms.epsilon * SLACK:
            raise BudgetError("a quote costs more than its terms promise", hint="ask the ledger for a quote")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; there is no computed epsilon in it."""
        return {
            "calibration": self.calibration.to_json(),
            "events": [event.to_json() for event in self.events],
            "terms": self.terms.to_json(),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The quote of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("calibration", "events", "terms"), where="a quote")
        return cls(
            terms=PrivacyTerms.from_json(row["terms"]),
            calibration=Calibration.from_json(row["calibration"]),
            events=events_from_json(row["events"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """A reserved quote: the right to start the quote's events in this run, and no others."""

    run_id: str
    quote: Quote

    def __post_init__(self) -> None:
        """Check the run id."""
        check_id("run_id", self.run_id)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"quote": self.quote.to_json(), "run_id": self.run_id}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The grant of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("quote", "run_id"), where="a grant")
        return cls(run_id=checks.text(row["run_id"], where="run_id"), quote=Quote.from_json(row["quote"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What all runs together may cost a unit; fixed when a ledger is opened for the first time.

    Args:
      epsilon: for life, > 0.
      delta: for life, in (0, 1].
      unit: the only unit that grants may protect; None: the unit of the first grant.
      run_epsilon: most that one run may promise; None: no other limit than the budget's.
      run_delta: the same for delta.
      renyi_order: None: grants add up by ``Filter.SUM``. An integer order of 2 to 512: by ``Filter.RENYI`` there.

    Guarantees:
      - ``bears`` is a privacy filter: grants that it admitted one after another, each chosen after seeing the outputs
        of those before, are together (epsilon, delta)-differentially private.

    Raises:
      PrivacyError: a number is out of range, or at this order not even an empty list of grants fits.
    """

    epsilon: float
    delta: float
    unit: Unit | None = None
    run_epsilon: float | None = None
    run_delta: float | None = None
    renyi_order: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.positive("the budget's epsilon", self.epsilon)
        checks.within("the budget's delta", self.delta, 1e-300, 1.0)
        checks.positive("the budget's run_epsilon", self.epsilon if self.run_epsilon is None else self.run_epsilon)
        checks.within("run_delta", self.delta if self.run_delta is None else self.run_delta, 1e-300, 1.0)
        if self.renyi_order is not None:
            checks.at_least("the budget's order", self.renyi_order, 2)
            checks.within("the budget's order", self.renyi_order, 2, HIGHEST_ORDER)
            least = _converted(0.0, self.renyi_order, self.delta)
            checks.within("the least epsilon of this order at this delta", least, 0.0, self.epsilon)

    @property
    def filter(self) -> Filter:
        """The rule by which grants add up."""
        return Filter.SUM if self.renyi_order is None else Filter.RENYI

    def check_run(self, terms: PrivacyTerms) -> None:
        """Refuse terms of another unit, or beyond what one run may promise.

        Raises:
          BudgetError: they are.
        """
        if self.unit is not None and terms.unit is not self.unit:
            raise BudgetError(
                f"the budget is for each {self.unit.value}, the run for each {terms.unit.value}",
                hint="ask for a run that protects the budget's unit",
            )
        for name, asked, most in (
            ("epsilon", terms.epsilon, self.run_epsilon),
            ("delta", terms.delta, self.run_delta),
        ):
            if most is not None and asked > most * SLACK:
                raise BudgetError(f"the run's {name} is {asked:g}, above {most:g}", hint="ask for a smaller run")

    def bears(self, quotes: Sequence[Quote]) -> bool:
        """Say whether one unit may bear all of these. Arithmetic on what they promise; under ``SUM`` no accountant."""
        if self.renyi_order is not None:
            return _converted(self._loss(quotes), self.renyi_order, self.delta) <= self.epsilon * SLACK
        epsilon = math.fsum(quote.terms.epsilon for quote in quotes)
        delta = math.fsum(quote.terms.delta for quote in quotes)
        return epsilon <= self.epsilon * SLACK and delta <= self.delta * SLACK

    def spent(self, quotes: Sequence[Quote], *, delta: float) -> float:
        """The epsilon at ``delta`` of a unit that bore all of these, computed from their events.

        Raises:
          BudgetError: under ``SUM``, ``delta`` is below the sum of the grants' deltas, where it says nothing.
        """
        if not quotes:
            return 0.0
        if self.renyi_order is not None:
            return _converted(self._loss(quotes), self.renyi_order, delta)
        if math.fsum(quote.terms.delta for quote in quotes) > delta * SLACK:
            raise BudgetError(f"delta {delta:g} is below the sum of the grants' deltas", hint="ask at the budget's")
        return math.fsum(quote.epsilon for quote in quotes)

    def _loss(self, quotes: Sequence[Quote]) -> float:
        order = self.renyi_order or 0
        return math.fsum(accounting.renyi_loss(quote.events, order=order) for quote in quotes)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "delta": float(self.delta),
            "epsilon": float(self.epsilon),
            "filter": self.filter.value,
            "order": self.renyi_order,
            "run_delta": None if self.run_delta is None else float(self.run_delta),
            "run_epsilon": None if self.run_epsilon is None else float(self.run_epsilon),
            "unit": None if self.unit is None else self.unit.value,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The budget of a JSON object, or ``MalformedMessage``."""
        keys = ("delta", "epsilon", "filter", "order", "run_delta", "run_epsilon", "unit")
        row = checks.table(value, keys, where="a budget")
        rule = checks.member(Filter, row["filter"], where="filter")
        with checks.decoding("a budget"):
            return cls(
                epsilon=checks.number(row["epsilon"], where="epsilon"),
                delta=checks.number(row["delta"], where="delta"),
                unit=None if row["unit"] is None else checks.member(Unit, row["unit"], where="unit"),
                run_epsilon=_optional(row["run_epsilon"], where="run_epsilon"),
                run_delta=_optional(row["run_delta"], where="run_delta"),
                renyi_order=None if rule is Filter.SUM else checks.integer(row["order"], where="order"),
            )


def check_id(name: str, value: str) -> None:
    """Refuse an id that is empty or longer than 256 characters."""
    if not 1 <= len(value) <= 256:
        raise BudgetError(f"{name} has {len(value)} characters", hint=f"give {name} 1 to 256 characters")


def _optional(value: object, *, where: str) -> float | None:
    return None if value is None else checks.number(value, where=where)


def _converted(loss: float, order: int, delta: float) -> float:
    """Epsilon at ``delta`` of a Renyi loss: Canonne et al. 2020 (arXiv:2004.00010), proposition 12."""
    return max(0.0, loss + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
