from __future__ import annotations

import socket
from itertools import pairwise
from pathlib import Path

from fedward_server.deployment.superlink import HOST, Upstream, flower_environment, healthy, superlink_arguments
from support.operating import new_operator


def test_it_listens_on_loopback_alone_and_runs_no_bundles_code(tmp_path: Path) -> None:
    argv = superlink_arguments(new_operator(tmp_path / "op"), port=8123)
    said = dict(pairwise(argv))
    assert (said["--host"], said["--port"], said["--isolation"]) == (HOST, "8123", "process")
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(argv)


def test_no_secret_is_on_the_command_line(tmp_path: Path) -> None:
    folder = new_operator(tmp_path / "op")
    secret = folder.authority().executor_secret()
    argv = superlink_arguments(folder, port=8123)
    assert not any(secret in part.encode() or secret.hex() in part for part in argv)
    assert repr(secret)[2:-1] not in repr(argv)


def test_flower_calls_nobody(tmp_path: Path) -> None:
    environment = flower_environment(new_operator(tmp_path / "op"))
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_HOME"].endswith("state/superlink")


def test_the_probe_never_raises(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as busy:
        upstream = Upstream.of(new_operator(tmp_path / "op"), port=busy.getsockname()[1])
    assert healthy(upstream) is False
