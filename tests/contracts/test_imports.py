"""The server and the courier's half of the client run without torch, also not through somebody else's import."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import fedward_server

SERVER = [found.name for found in pkgutil.walk_packages(fedward_server.__path__, "fedward_server.")]
HEAVY = ("torch", "transformers", "peft", "opacus")
PROGRAM = """
import importlib, json, os, sys
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps([sorted(set(name.partition(".")[0] for name in sys.modules)), dict(os.environ)]))
"""


def loaded_by(names: list[str]) -> tuple[set[str], dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(names=names)], capture_output=True, text=True, check=True, timeout=60
    )
    modules, environment = json.loads(done.stdout.splitlines()[-1])
    return set(modules), environment


@pytest.fixture(scope="module")
def loaded() -> tuple[set[str], dict[str, str]]:
    return loaded_by([*SERVER, "fedward_client.app", "fedward_client.door"])


def test_server_app_and_door_load_nothing_heavy(loaded: tuple[set[str], dict[str, str]]) -> None:
    assert len(SERVER) >= 9
    assert not loaded[0] & set(HEAVY)
    assert {"fedward_server", "fedward_client", "flwr"} <= loaded[0]  # they were indeed imported


def test_importing_turns_telemetry_and_run_time_installs_off(loaded: tuple[set[str], dict[str, str]]) -> None:
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        assert loaded[1][name] == value


def test_the_check_itself_would_see_torch() -> None:
    assert "torch" in loaded_by(["fedward_common.modeling.adapters"])[0]
