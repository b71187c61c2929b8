"""The gateway's process as ``fedward-server start`` begins it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedward_server.deployment.folder import OperatorFolder
from support.doors import PULL
from support.fronting import Front, Site, StandIn, operator, request_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> OperatorFolder:
    return operator(tmp_path_factory.mktemp("operator") / "op")


def test_on_a_socket_that_listens_already_it_says_when_it_is_ready_whatever_became_of_the_server_file(
    tmp_path: Path, upstream: StandIn, site: Site, folder: OperatorFolder
) -> None:
    """As `start` does it: the port is taken from the first instant, and the server file is a copy."""
    kept, ready, broken = tmp_path / "kept.toml", tmp_path / "ready", tmp_path / "broken"
    kept.write_bytes(folder.server_file.read_bytes())
    broken.mkdir(mode=0o700)
    for name in ("keys", "sites", "state"):
        (broken / name).symlink_to(folder.root / name)
    (broken / "server.toml").write_text("a slip of the pen")
    with socket.create_server(("127.0.0.1", 0)) as bound, (tmp_path / "log").open("wb") as log:
        fd, port = bound.fileno(), bound.getsockname()[1]
        places = ("--upstream", f"127.0.0.1:{upstream.port}", "--server", str(kept), "--ready", str(ready))
        command = (sys.executable, "-m", "fedward_server.gateway", str(broken), "--fd", str(fd), *places)
        process = subprocess.Popen(command, pass_fds=(fd,), stdout=log, stderr=subprocess.STDOUT)
    front = Front("gateway", port, folder, tmp_path / "log", process)
    try:
        end = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert ready.exists(), front.log.read_text()
        assert front.ask(request_bytes(PULL, site.headers(), b"body"))[0] == 200
    finally:
        process.terminate()
    assert process.wait(timeout=10) == 0
