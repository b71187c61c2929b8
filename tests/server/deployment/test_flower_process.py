from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_server.deployment.flower import Control, FlowerAway
from fedward_server.deployment.superlink import HOST, Upstream, flower_environment, healthy, superlink_arguments
from support.operating import new_operator


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[Upstream, Path]]:
    """A running one, and its folder; its log is superlink.log there."""
    folder = new_operator(tmp_path / "op")
    folder.superlink.mkdir(parents=True, exist_ok=True)
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        port = bound.getsockname()[1]
    upstream = Upstream.of(folder, port=port)
    with (folder.superlink / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            superlink_arguments(folder, port=port),
            env=os.environ | flower_environment(folder),
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 60
        while not healthy(upstream):
            assert process.poll() is None, (folder.superlink / "superlink.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield upstream, folder.superlink
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_each_line_is_one_json_object_and_holds_no_text_of_an_error(superlink: tuple[Upstream, Path]) -> None:
    upstream, folder = superlink
    control = Control(upstream)
    assert control.nodes() == []
    with sqlite3.connect(folder / "state.db") as database:
        database.execute("DROP TABLE node")
    with pytest.raises(FlowerAway):
        control.nodes()
    connection = http.client.HTTPSConnection(HOST, upstream.port, context=upstream.context())
    connection.request("POST", "/v1/runtime/no-such-thing", body=b"\xff")
    assert connection.getresponse().status in (401, 404)
    connection.close()
    control.close()
    text = (folder / "superlink.log").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {"superlink"} == {row["process"] for row in rows}
    failed = [row for row in rows if row.get("error")]
    assert failed, text
    assert "no such table" not in text
    assert "SELECT" not in text
