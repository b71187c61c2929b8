"""Events: what was done to the data, never what it costs.

An event outlives every accountant: epsilon is computed from events and stored nowhere. This module knows no accountant.

Example:
    >>> step = GaussianSum(side=Side.TRAINING, sampling_rate=0.5, noise_multiplier=2.0, count=1)
    >>> merged([step, step])[0].count
    2
    >>> GaussianSum.from_json(step.to_json()) == step
    True
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from fedward_common.errors import MalformedMessage
from fedward_common.privacy import checks

__all__ = ["GaussianSum", "Side", "events_from_json", "merged"]

KIND = "gaussian_sum"


class Side(StrEnum):
    """Which part of a site's data an event touched; a unit is on one side for the life of the data."""

    TRAINING = "training"  # units that gradients are computed from
    VALIDATION = "validation"  # units that only metrics are computed from


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianSum:
    """``count`` noisy sums over Poisson-sampled units, neighbours differing by one unit.

    Each released ``sum_{i in S} x_i + N(0, (sigma C)^2 I)`` with ``|x_i| <= C`` and every unit in S independently with
    probability ``sampling_rate``.

    Args:
      side: the units it was computed from.
      sampling_rate: q in (0, 1].
      noise_multiplier: sigma > 0, the noise's standard deviation over C.
      count: how many such sums, at least 1.

    Raises:
      PrivacyError: a number is out of range.
    """

    side: Side
    sampling_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        checks.rate("sampling_rate", self.sampling_rate)
        checks.positive("noise_multiplier", self.noise_multiplier)
        checks.at_least("count", self.count, 1)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "count": self.count,
            "kind": KIND,
            "noise_multiplier": float(self.noise_multiplier),
            "sampling_rate": float(self.sampling_rate),
            "side": self.side.value,
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The event of a JSON object.

        Raises:
          MalformedMessage: an unknown or missing key, a wrong type, or a number out of range.
        """
        row = checks.table(
            value, ("count", "kind", "noise_multiplier", "sampling_rate", "side"), where="a privacy event"
        )
        if row["kind"] != KIND:
            raise MalformedMessage("a privacy event of an unknown kind", hint=f"this version knows {KIND}")
        with checks.decoding("a privacy event"):
            return cls(
                side=checks.member(Side, row["side"], where="side"),
                sampling_rate=checks.number(row["sampling_rate"], where="sampling_rate"),
                noise_multiplier=checks.number(row["noise_multiplier"], where="noise_multiplier"),
                count=checks.integer(row["count"], where="count"),
            )


def events_from_json(value: object) -> tuple[GaussianSum, ...]:
    """The events of a JSON list, or ``MalformedMessage``."""
    return tuple(GaussianSum.from_json(item) for item in checks.rows(value, where="the list of privacy events"))


def merged(events: Iterable[GaussianSum]) -> tuple[GaussianSum, ...]:
    """Like events added up, in the order in which each kind was first seen.

    Guarantees:
      - The total count of each (side, sampling rate, noise multiplier) is unchanged.
      - Merging twice changes nothing.
    """
    counts: dict[tuple[Side, float, float], int] = {}  # a ledger merges every round's events in every round
    for event in events:
        kind = (event.side, event.sampling_rate, event.noise_multiplier)
        counts[kind] = counts.get(kind, 0) + event.count
    return tuple(
        GaussianSum(side=side, sampling_rate=rate, noise_multiplier=noise, count=count)
        for (side, rate, noise), count in counts.items()
    )
