from __future__ import annotations

import io
import os
import socket
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.cli.config_utils import get_fab_metadata
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.proto.run_pb2 import Run, RunStatus

from fedward_server.deployment.flower import (
    Acquired,
    Control,
    FlowerAway,
    FlowerRefused,
    Tasks,
    node_key_pem,
    pointer_bundle,
    typed,
)
from fedward_server.deployment.superlink import HOST, Upstream
from support.operating import new_operator, node_key

QUOTED = "patient John Doe"
TOKEN = "very-secret-token"  # noqa: S105 - of a fake


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://127.0.0.1/")
    return httpx.HTTPStatusError(QUOTED, request=request, response=httpx.Response(code, text=QUOTED, request=request))


@pytest.fixture
def nobody(tmp_path: Path) -> Upstream:
    with socket.create_server((HOST, 0)) as busy:
        port = busy.getsockname()[1]
    return Upstream.of(new_operator(tmp_path / "op"), port=port)


def test_the_bundle_holds_no_code_and_is_always_the_same() -> None:
    with zipfile.ZipFile(io.BytesIO(pointer_bundle())) as bundle:
        assert bundle.namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert pointer_bundle() == pointer_bundle()
    assert get_fab_metadata(pointer_bundle()) == ("fedward/fedward", "1.0.0")


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_a_server_that_cannot_now_is_away(code: int) -> None:
    assert isinstance(typed(status(code)), FlowerAway)


@pytest.mark.parametrize(("code", "void"), [(401, True), (403, True), (404, False), (412, False), (413, False)])
def test_a_no_is_refused_and_says_whether_the_token_is_void(code: int, void: bool) -> None:
    error = typed(status(code))
    assert isinstance(error, FlowerRefused)
    assert error.token_is_void is void


@pytest.mark.parametrize("error", [httpx.ConnectError(QUOTED), httpx.ReadTimeout(QUOTED), httpx.ReadError(QUOTED)])
def test_a_silent_server_is_away(error: httpx.TransportError) -> None:
    assert isinstance(typed(error), FlowerAway)


def test_another_authoritys_certificate_is_refused() -> None:
    error = typed(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"))
    assert isinstance(error, FlowerRefused)
    assert "renew" in error.hint


@pytest.mark.parametrize("error", [status(500), status(404), httpx.ReadError(QUOTED), ValueError(QUOTED)])
def test_flowers_texts_are_not_repeated(error: Exception) -> None:
    found = typed(error)
    assert QUOTED not in f"{found} {found.hint}"


def test_every_call_ends_with_away_where_nobody_listens(nobody: Upstream) -> None:
    control, tasks = Control(nobody), Tasks(nobody)
    calls = (
        control.nodes,
        control.unfinished_runs,
        tasks.acquire,
        lambda: control.start_run(pointer_bundle()),
        lambda: control.stop_run(1),
        lambda: control.unregister_node(1),
        lambda: control.register_node(node_key(1), name="a"),
    )
    for call in calls:
        with pytest.raises(FlowerAway):
            call()
    control.close()
    tasks.close()


@pytest.mark.parametrize("runs", [0, 1, 100, 250])
def test_flower_runs_that_are_not_over_are_found_however_many_came_later(nobody: Upstream, runs: int) -> None:
    states = {number: "running" if number in (0, 130) else "finished" for number in range(runs)}
    asked: list[int] = []

    def page(request: httpx.Request) -> httpx.Response:
        question = ListRunsRequest.FromString(request.content)
        asked.append(question.skip)
        newest_first = sorted(states, reverse=True)[question.skip :][: question.limit]
        rows = {number: Run(run_id=number, status=RunStatus(status=states[number])) for number in newest_first}
        return httpx.Response(200, content=ListRunsResponse(run_dict=rows).SerializeToString())

    control = Control(nobody)
    client: Any = control._client
    client._client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(page))
    assert control.unfinished_runs() == {number for number, state in states.items() if state == "running"}
    assert len(asked) == runs // 100 + 1
    control.close()


def test_a_token_is_never_shown() -> None:
    assert TOKEN not in repr(Acquired(flower_run=1, token=TOKEN))


def test_a_key_reads_as_flower_stores_it() -> None:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    assert node_key_pem(node_key(3)) == public_key_to_bytes(node_key(3))


def test_no_signal_is_sent_on_a_void_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    assert isinstance(typed(status(401)), FlowerRefused)
