"""Which engine computes the sites' data work in a simulated run, and where. No torch here: the command line reads it.

Example:
    >>> Computing().engine.value, Computing(clients=50).clients
    ('cohort', 50)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedward_common.checks import at_least
from fedward_common.errors import ConfigError, InputError
from fedward_simulations.device import check_name, chosen
from fedward_simulations.ray.cluster import RayCluster, on_ray

if TYPE_CHECKING:
    import torch

    from fedward_common.config import RunConfig

__all__ = ["BY_DEFAULT", "Computing", "Engine", "Precision"]

RAY_OPTIONS = tuple(option.name for option in fields(RayCluster))


class Engine(StrEnum):
    """All give the same results within rounding."""

    COHORT = "cohort"  # many clients in one batched forward and backward
    SEQUENTIAL = "sequential"  # one client after the other, as a real site computes
    RAY = "ray"  # Flower's own engine: one client after the other on each processor of a machine or a cluster


class Precision(StrEnum):
    """What the frozen base computes in; gradients of records, norms, factors and sums are float32 or better in both."""

    FLOAT32 = "float32"  # equal to the sequential path within rounding
    BFLOAT16 = "bfloat16"  # autocast, on CUDA


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a run is computed, and nothing that it computes.

    Args:
      engine: which one.
      clients: computed together by the cohort engine, at most; 0 chooses by the machine's memory.
      processes: of one job, which share the memory.
      device: auto, cpu, cuda, cuda:N or mps.
      precision: of the frozen base in the cohort engine; bfloat16 on CUDA alone.
      profiled: whether a round of each stage is measured.
      ray: where the Ray engine runs.
      room: of one of its workers, while Ray runs: see ``started``.
    """

    engine: Engine = Engine.COHORT
    clients: int = 0
    processes: int = 1
    device: str = "auto"
    precision: Precision = Precision.FLOAT32
    profiled: bool = False
    ray: RayCluster = field(default_factory=RayCluster)
    room: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the range."""
        at_least("clients per batch", self.clients, 0)
        at_least("processes", self.processes, 1)
        check_name(self.device)
        if self.precision is Precision.BFLOAT16 and self.engine is not Engine.COHORT:
            raise InputError("bfloat16 goes with the cohort engine", hint="leave --engine out")
        if self.engine is Engine.RAY and self.profiled:
            raise InputError(
                "--profile measures one process, and Ray's engine has several", hint="profile --engine sequential"
            )
        if self.engine is Engine.RAY and self.device != "auto":
            raise InputError("with Ray's engine each worker has its own device", hint="say --client-gpus, or leave it")
        if self.engine is not Engine.RAY and self.ray != RayCluster():
            raise InputError("Ray's options go with Ray's engine", hint="add --engine ray")

    @classmethod
    def of(cls, named: Mapping[str, Any], *, before: Mapping[str, Any] = MappingProxyType({})) -> Computing:
        """What a person asked for.

        Args:
          named: by the names of ``remembered``; None is the same as left out.
          before: what a stopped run remembers. It holds where nothing else is named, and for its own engine alone.
        """
        asked = {name: value for name, value in named.items() if value is not None}
        engine = Engine(asked.get("engine", before.get("engine", Engine.COHORT)))
        values = {**(before if before.get("engine") == engine.value else {}), **asked, "engine": engine}
        cluster = RayCluster(**{name: values.pop(name) for name in list(values) if name in RAY_OPTIONS})
        return cls(**{**values, "precision": Precision(values.get("precision", Precision.FLOAT32))}, ray=cluster)

    @property
    def remembered(self) -> dict[str, Any]:
        """What a stopped run goes on with, as a JSON object."""
        own = {"engine": self.engine.value, "clients": self.clients, "device": self.device}
        return {**own, "precision": self.precision.value, **{name: getattr(self.ray, name) for name in RAY_OPTIONS}}

    def check(self, config: RunConfig) -> None:
        """Say at once what this engine cannot do; ``ConfigError`` then."""
        if self.engine is not Engine.RAY:
            return
        if config.simulation is not None:
            raise ConfigError(
                "[simulation] does not go with Ray's engine", hint="leave --engine ray, or the table, out"
            )
        if config.rounds.goal:  # its workers race: who is not needed may have worked, and spent, or not
            raise ConfigError("rounds.goal does not go with Ray's engine", hint="leave --engine ray, or the key, out")

    def place(self, *, turn: int = 0) -> torch.device:
        """Where the model goes. ``turn`` numbers this process among those of one job, which share the GPUs.

        Raises:
          InputError: the device is not there, or does not compute in this precision.
        """
        device = chosen(self.device, turn=turn)
        if self.precision is Precision.BFLOAT16 and device.type != "cuda":
            raise InputError(f"{device} does not compute in bfloat16 here", hint="leave --precision out")
        return device

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
