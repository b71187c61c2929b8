from __future__ import annotations

from pathlib import Path

from fedward_simulations.bench import cohort
from support.tiny import tiny_base


def test_every_shape_is_timed_in_turn(tmp_path: Path) -> None:
    table = cohort.measure(repeats=1, clients=3, model=tiny_base(tmp_path / "base"))
    assert len(table.rows) == 4 * len(cohort.SHAPES) + len(cohort.WIDTHS)
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "4,162 numbers" in table.rows[-2][0]
