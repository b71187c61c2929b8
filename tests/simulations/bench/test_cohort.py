from __future__ import annotations

from pathlib import Path

from fedward_simulations.bench import cohort, memory
from support.tiny import tiny_base


def test_every_shape_is_timed_in_turn(tmp_path: Path) -> None:
    table = cohort.measure(repeats=1, clients=3, model=tiny_base(tmp_path / "base"))
    assert len(table.rows) == 4 * len(cohort.SHAPES) + len(cohort.WIDTHS)
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "4,162 numbers" in table.rows[-2][0]


def test_sites_of_either_number_are_simulated(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    one = memory.peak_of(1, 12, model)
    assert 0 < one <= memory.peak_of(6, 12, model)
