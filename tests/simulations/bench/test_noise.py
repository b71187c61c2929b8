from __future__ import annotations

from fedward_simulations.bench import noise


def test_noise_is_timed_part_by_part() -> None:
    table = noise.measure(times=3, size=1000)
    assert [row[0].split()[0] for row in table.rows] == ["keystream", "Gaussian", "finished"]
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "1,000 numbers" in table.title
