from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fedward_client.door import Door
from fedward_client.door.credentials import Pair
from fedward_client.door.stub import RemoteDoor
from fedward_common.codec import new_key
from support.federation import population_of, site_of, small_bench

PROGRAM = """
import json, sys
import fedward_client.door.credentials, fedward_client.door.place, fedward_client.door.stub
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} | set(sys.modules))))
"""


def test_a_site_is_a_door(tmp_path: Path) -> None:
    door: Door = site_of(population_of(small_bench(tmp_path, sites=1), new_key()))
    assert isinstance(door.answer(b"no plan"), bytes)


def test_a_stub_is_a_door() -> None:
    door: Door = RemoteDoor(Path("/nowhere/door.sock"), Pair.make().courier)
    assert callable(door.answer)


def test_the_couriers_end_loads_nothing_of_the_site() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert "grpc" in loaded
    assert not loaded & {"torch", "transformers", "peft", "opacus", "numpy", "flwr"}
    ours = {name for name in loaded if name.startswith("fedward_client.")}
    assert all(name.startswith("fedward_client.door") for name in ours), ours
