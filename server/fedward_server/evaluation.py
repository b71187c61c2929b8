"""The coordinator's own evaluation, as the round loop sees it: a function of the adapter. No torch here.

The data is the coordinator's, outside every guarantee. A simulation passes an evaluator with a model; a server without
one passes :class:`NoEvaluation` and its rounds report the sites' noisy metrics alone.

Example:
    >>> NoEvaluation().evaluate(None, round=1) is None
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fedward_common.adapter import Adapter

__all__ = ["Evaluator", "NoEvaluation"]


class Evaluator(Protocol):
    """Whoever measures the global adapter."""

    def evaluate(self, adapter: Adapter, *, round: int) -> Mapping[str, float] | None:
        """Metrics after a finished round ('accuracy', 'loss'), or None where this round is not measured."""
        ...


class NoEvaluation:
    """A coordinator without evaluation data."""

    def evaluate(self, adapter: Adapter | None, *, round: int) -> None:
        """Measure nothing."""
        return None
