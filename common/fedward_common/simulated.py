"""``[simulation]``: how virtual sites misbehave. A deployment never reads it: there, sites misbehave by themselves.

What these numbers mean to a run is decided in ``fedward_simulations.sites.faults``, as a pure function of seed, site,
round and attempt. Nothing here can affect privacy.

Example:
    >>> SimulationConfig(dropout=0.1, compute_s=60.0, straggle_sigma=0.8).dropout
    0.1
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from fedward_common.strict import Section

__all__ = ["Poison", "SimulationConfig"]

Chance = Annotated[StrictFloat, Field(ge=0, le=1)]
Spread = Annotated[StrictFloat, Field(ge=0, le=5)]


class Poison(StrEnum):
    """What a poisoned site does to its updates."""

    SCALE = "scale"  # multiplies what its gate released by ``poison_factor``, and signs it with its own key
    FLIP = "flip"  # trains honestly, on records each of which has the next label


class SimulationConfig(Section):
    """``[simulation]``: seeded faults of virtual sites, under a simulated clock.

    ``dropout``, ``late`` and ``corrupt`` are chances of each site in each attempt. ``strict``, ``spent`` and
    ``other_unit`` are shares of the sites, ``poisoned`` is a number of sites; nobody is two of these.
    """

    dropout: Chance = 0.0
    late: Chance = 0.0
    corrupt: Chance = 0.0
    compute_s: Annotated[StrictFloat, Field(ge=0, le=1e9)] = 0.0
    straggle_sigma: Spread = 0.0
    jitter_sigma: Spread = 0.0
    strict: Chance = 0.0
    spent: Chance = 0.0
    other_unit: Chance = 0.0
    poisoned: Annotated[StrictInt, Field(ge=0, le=10_000)] = 0
    poison: Poison = Poison.SCALE
    poison_factor: Annotated[StrictFloat, Field(ge=-1e6, le=1e6)] = -10.0

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if not self.compute_s and (self.straggle_sigma or self.jitter_sigma):
            raise ValueError("straggle_sigma and jitter_sigma spread compute_s, which is 0")
        if self.strict + self.spent + self.other_unit > 1:
            raise ValueError("strict, spent and other_unit together exceed 1: nobody would be left")
        return self
