"""A run of many rounds needs the memory of a few."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from fedward_common.round import RoundRecord
from fedward_simulations.run import run
from support.federation import small_bench
from support.watch import Recorder

ROUNDS, WARM = 100, 30
PER_ENTRY = 2_000  # bytes of an entry in a ledger in memory; a round makes two at each site


class Gauge(Recorder):
    """Reads memory after each of the later rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.resident: list[float] = []
        self.traced: list[int] = []

    def round_finished(self, record: RoundRecord) -> None:
        if record.round == WARM:
            tracemalloc.start()
        if record.round > WARM and record.round % 10 == 0:
            gc.collect()
            self.traced.append(tracemalloc.get_traced_memory()[0])
            self.resident.append(4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]))


@pytest.mark.slow
def test_two_hundred_rounds_do_not_grow(tmp_path: Path) -> None:
    stages = [
        {"name": "head", "train": ["head"], "rounds": ROUNDS},
        {"name": "adapter", "train": ["adapter"], "rounds": ROUNDS, "sampling_rate": 0.5, "noise_ratio": 0.5},
    ]
    bench, gauge = small_bench(tmp_path, units=20, stages=stages), Gauge()
    try:
        run(bench, out=tmp_path / "run", view=gauge)
    finally:
        tracemalloc.stop()
    rounds = 2 * ROUNDS - WARM
    booked = PER_ENTRY * 2 * len(bench.data) * rounds
    assert gauge.traced[-1] - gauge.traced[0] <= booked
    assert gauge.resident[-1] - gauge.resident[0] <= booked + 30e6
