"""The coordinator's state and its one transition: ``advance(state, aggregate) -> state``. Pure; no I/O, no clock.

Source: FedAvg arXiv:1602.05629; FedAdam, Reddi et al. 2021, arXiv:2003.00295, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedward_common.adapter import Adapter
from fedward_common.config import ServerOptimiser
from fedward_common.errors import SpecMismatch
from fedward_common.round import Aggregate

__all__ = ["Moments", "State", "advance"]

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
TINY = 1e-12  # far below any noised update, so that the step does not depend on an update's scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Adam's running means over the whole adapter, float64, and how often each tensor has moved."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    steps: Mapping[str, int]

    @classmethod
    def zeros(cls, adapter: Adapter) -> Moments:
        """Before the first round."""
        size = adapter.spec.size
        return cls(first=np.zeros(size), second=np.zeros(size), steps=dict.fromkeys(adapter.spec.slices, 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """Everything that the next round depends on: rounds finished so far, the adapter, the optimiser's memory."""

    finished: int
    adapter: Adapter
    moments: Moments

    @classmethod
    def initial(cls, adapter: Adapter) -> State:
        """Before the first round."""
        return cls(finished=0, adapter=adapter, moments=Moments.zeros(adapter))


def advance(state: State, aggregate: Aggregate, *, optimiser: ServerOptimiser, learning_rate: float) -> State:
    """Move the adapter by one finished round.

    Args:
      state: after the round before.
      aggregate: the round's weighted sum of deltas over the groups that were trained.
      optimiser: SGD adds ``learning_rate`` times the mean delta; Adam treats minus the mean delta as a gradient.
      learning_rate: of the server, in units of adapter weights for Adam.

    Returns:
      The next state; tensors outside the aggregate's spec are unchanged, and nothing passed in is changed.

    Raises:
      SpecMismatch: the aggregate is of another adapter.
    """
    if state.adapter.spec.subset(aggregate.spec.groups).digest != aggregate.spec.digest:
        raise SpecMismatch("the aggregate belongs to another adapter", hint="compare both spec digests")
    mean, moments = aggregate.mean(), state.moments
    if optimiser is ServerOptimiser.ADAM:
        moments = _moved_on(moments, state.adapter, mean)
    vector = state.adapter.vector.copy()
    for name, part in mean.spec.slices.items():  # a tensor at a time, so that float64 stays small
        whole = state.adapter.spec.slices[name]
        step = mean.vector[part].astype(np.float64)
        if optimiser is ServerOptimiser.ADAM:
            step = _adam_step(moments, name, whole)
        vector[whole] = (vector[whole] + learning_rate * step).astype(np.float32)
    adapter = Adapter(spec=state.adapter.spec, vector=vector)
    return replace(state, finished=state.finished + 1, adapter=adapter, moments=moments)


def _moved_on(moments: Moments, adapter: Adapter, mean: Adapter) -> Moments:
    first, second, steps = moments.first.copy(), moments.second.copy(), dict(moments.steps)
    for name, part in mean.spec.slices.items():
        whole = adapter.spec.slices[name]
        delta = mean.vector[part].astype(np.float64)
        steps[name] += 1
        first[whole] = FIRST_DECAY * first[whole] + (1 - FIRST_DECAY) * delta
        second[whole] = SECOND_DECAY * second[whole] + (1 - SECOND_DECAY) * delta**2
    return Moments(first=first, second=second, steps=steps)


def _adam_step(moments: Moments, name: str, whole: slice) -> NDArray[np.float64]:
    unbiased = moments.first[whole] / (1 - FIRST_DECAY ** moments.steps[name])
    scale = np.sqrt(moments.second[whole] / (1 - SECOND_DECAY ** moments.steps[name]))
    step: NDArray[np.float64] = unbiased / (scale + TINY)
    return step
