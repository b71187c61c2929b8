"""Which engine computes the sites' data work in a simulated run. No torch here: the command line reads it.

Example:
    >>> Computing().engine.value, Computing(clients=50).clients
    ('cohort', 50)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fedward_common.checks import at_least
from fedward_common.errors import InputError
from fedward_simulations.ray.cluster import RayCluster, on_ray

__all__ = ["BY_DEFAULT", "Computing", "Engine"]


class Engine(StrEnum):
    """All give the same results within rounding."""

    COHORT = "cohort"  # many clients in one batched forward and backward
    SEQUENTIAL = "sequential"  # one client after the other, as a real site computes
    RAY = "ray"  # Flower's own engine: one client after the other on each processor of a machine or a cluster


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a run is computed, and nothing that it computes.

    Args:
      engine: which one.
      clients: computed together by the cohort engine, at most; 0 chooses by the memory that is there.
      ray: where the Ray engine runs.
      room: of one of its workers, while Ray runs: see ``started``.
    """

    engine: Engine = Engine.COHORT
    clients: int = 0
    ray: RayCluster = field(default_factory=RayCluster)
    room: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the range."""
        at_least("clients per batch", self.clients, 0)
        if self.engine is not Engine.RAY and self.ray != RayCluster():
            raise InputError("Ray's options go with Ray's engine", hint="add --engine ray")

    @contextmanager
    def started(self) -> Iterator[Computing]:
        """Whatever the engine needs besides this process runs within; before data is read, so that faults show early.

        Raises:
          InputError: Ray is not there.
        """
        if self.engine is not Engine.RAY or self.room is not None:
            yield self
            return
        with on_ray(self.ray) as room:
            yield replace(self, room=room)


BY_DEFAULT = Computing()
