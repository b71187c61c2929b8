from __future__ import annotations

from pathlib import Path

from fedward_client.door.generate import HERE, MODULES, generate


def test_the_generated_modules_are_those_of_the_proto_file(tmp_path: Path) -> None:
    generate(tmp_path)
    for name in MODULES:
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes(), f"python -m {generate.__module__}"
