"""Who took part in which step, heard at the optimiser's door: tests about sampling see what reached the sum.

Example:
    with heard_steps() as steps:
        trainer.train(...)
    drawn = [set(data.records.units[records]) for records in steps]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedward_client.training import PhysicalBatch, UnitOptimizer


@contextmanager
def heard_steps() -> Iterator[list[NDArray[np.int64]]]:
    """The numbers of the records of each step that is taken inside, in no order; none for an empty draw."""
    steps: list[NDArray[np.int64]] = []
    open_step: list[NDArray[np.int64]] = []
    accumulate, release = UnitOptimizer.accumulate, UnitOptimizer.release

    def heard(self: UnitOptimizer, batch: PhysicalBatch) -> None:
        open_step.append(batch.records)
        accumulate(self, batch)

    def ended(self: UnitOptimizer, stream: Any) -> None:
        steps.append(np.concatenate([np.zeros(0, np.int64), *open_step]))
        open_step.clear()
        release(self, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitOptimizer, "accumulate", heard)
        patch.setattr(UnitOptimizer, "release", ended)
        yield steps
