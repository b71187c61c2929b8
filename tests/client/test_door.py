from __future__ import annotations

from pathlib import Path

from fedward_client.door import Door
from fedward_common.codec import new_key
from support.federation import population_of, site_of, small_bench


def test_a_site_is_a_door(tmp_path: Path) -> None:
    door: Door = site_of(population_of(small_bench(tmp_path, sites=1), new_key()))
    assert isinstance(door.answer(b"no plan"), bytes)
