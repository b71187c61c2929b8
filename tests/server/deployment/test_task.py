from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.run import Run

import fedward_server.deployment.task as module
from fedward_server.deployment.flower import FlowerAway, FlowerRefused
from fedward_server.deployment.superlink import Upstream
from fedward_server.deployment.task import Outcome, TaskGrid
from support.operating import new_operator

TOKEN = "very-secret-token"  # noqa: S105 - of a fake
Answer = Callable[[httpx.Request], httpx.Response]


class Bench:
    """A grid whose SuperLink is a function."""

    def __init__(self, root: Path) -> None:
        self.stopping = False
        self.seen: list[dict[int, bytes]] = []
        self.paths: list[str] = []
        self.answer: Answer = lambda request: httpx.Response(200)
        self.grid = TaskGrid(
            Upstream.of(new_operator(root / "op"), port=1),
            TOKEN,
            stopping=lambda: self.stopping,
            seen=lambda keys: self.seen.append(dict(keys)),
        )
        client: Any = self.grid._runtime_client
        client._client.close()
        client._client = httpx.Client(transport=httpx.MockTransport(self._answered))

    def _answered(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path.rpartition("/")[2])
        return self.answer(request)

    @property
    def mailbox(self) -> Any:
        return self.grid._runtime_client


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(module, "PATIENCE_S", 0.001)
    made = Bench(tmp_path)
    yield made
    made.grid.close()


def nodes(**keys: bytes) -> httpx.Response:
    infos = [NodeInfo(node_id=int(name[1:]), public_key=key) for name, key in keys.items()]
    return httpx.Response(200, content=GetNodesResponse(nodes=infos).SerializeToString())


def letters(*answered: str) -> httpx.Response:
    made = [Message(metadata=Metadata(reply_to_message_id=name, message_id=f"reply-{name}")) for name in answered]
    trees = [ObjectTree(object_id=f"reply-{name}") for name in answered]
    answer = PullAppMessagesResponse(messages_list=made, message_object_trees=trees)
    return httpx.Response(200, content=answer.SerializeToString())


def test_while_the_superlink_is_away_for_a_moment_a_call_waits(bench: Bench) -> None:
    answers = iter([httpx.Response(503), httpx.Response(500), nodes(n7=b"key")])
    bench.answer = lambda request: next(answers)
    assert list(bench.grid.get_node_ids()) == [7]
    assert (bench.seen, len(bench.paths)) == ([{7: b"key"}], 3)


def test_a_stopped_run_does_not_wait_for_a_superlink_that_is_away(bench: Bench) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        bench.stopping = len(bench.paths) > 3
        raise httpx.ConnectError("down")

    bench.answer = down
    with pytest.raises(FlowerAway):
        bench.grid.get_node_ids()
    assert len(bench.paths) == 4


@pytest.mark.parametrize("code", [401, 403])
def test_a_task_that_the_superlink_gave_up_is_lost_and_no_signal_is_sent(bench: Bench, code: int) -> None:
    bench.answer = lambda request: httpx.Response(code, text="x")
    with pytest.raises(FlowerRefused):
        bench.grid.get_node_ids()
    assert bench.grid.lost
    assert len(bench.paths) == 1


def test_another_refusal_loses_nothing(bench: Bench) -> None:
    bench.answer = lambda request: httpx.Response(413)
    with pytest.raises(FlowerRefused):
        bench.grid.get_node_ids()
    assert not bench.grid.lost


def pulled(bench: Bench, name: str) -> list[str]:
    answer = bench.mailbox.PullMessages(PullAppMessagesRequest(message_ids=[name]))
    return [message.metadata.message_id for message in answer.messages_list]


def test_however_many_answers_are_awaited_one_call_asks_for_all_of_them(bench: Bench) -> None:
    bench.mailbox._awaited.update({"a", "b", "c"})  # as after a push
    bench.answer = lambda request: letters("a", "c")
    assert [pulled(bench, name) for name in "abc"] == [["reply-a"], [], ["reply-c"]]
    assert len(bench.paths) == 1


def test_an_answer_that_is_not_fetched_at_once_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mailbox._awaited.update({"a", "b", "c"})
    bench.answer = lambda request: letters("a", "c")
    assert pulled(bench, "a") == ["reply-a"]
    monkeypatch.setattr(module, "PULL_S", 0.0)  # as if the body of a had taken long
    bench.answer = lambda request: letters()
    assert pulled(bench, "b") == []
    assert pulled(bench, "c") == ["reply-c"]


def test_answers_are_asked_for_again_and_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULL_S", 0.0)
    bench.answer = lambda request: letters() if len(bench.paths) < 3 else letters("a")
    assert [pulled(bench, "a") for _ in range(3)] == [[], [], ["reply-a"]]


def test_an_answer_that_was_begun_and_not_ended_holds_nobody_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One site sends a header and no body; another's answer is lost: both are seen at once."""
    monkeypatch.setattr(module, "PULL_S", 0.0)
    bench.grid.set_run(Run.create_empty(3))
    found = {"reply-a": True, "reply-b": False}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("pull-object"):
            name = PullObjectRequest.FromString(request.content).object_id
            part = PullObjectResponse(object_found=found[name], object_available=False)
            return httpx.Response(200, content=part.SerializeToString())
        return letters("a", "b") if len(bench.paths) == 1 else letters()

    bench.mailbox._awaited.update({"a", "b"})
    bench.answer = answer
    began = time.monotonic()
    for _ in range(3):
        assert list(bench.grid.pull_messages(["a"])) == []
    lost = list(bench.grid.pull_messages(["b"]))
    assert [message.has_error() for message in lost] == [True]
    assert time.monotonic() - began < 5
    assert bench.paths.count("pull-object") == 4, "it is asked again each time, and never waited for"


def test_an_answer_whose_body_is_on_its_way_is_not_asked_for_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink hands a header out once; asked again it answers with an error, as if there were no such message."""
    monkeypatch.setattr(module, "PULL_S", 0.0)
    bench.grid.set_run(Run.create_empty(3))
    asked: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("pull-object"):
            part = PullObjectResponse(object_found=True, object_available=False)
            return httpx.Response(200, content=part.SerializeToString())
        asked.append(sorted(PullAppMessagesRequest.FromString(request.content).message_ids))
        return letters("a") if len(asked) == 1 else letters(*asked[-1])

    bench.mailbox._awaited.update({"a", "b"})
    bench.answer = answer
    for _ in range(3):
        assert list(bench.grid.pull_messages(["a"])) == []
    assert list(bench.grid.pull_messages(["b"])) == []
    assert asked == [["a", "b"], ["b"]]


def test_a_task_ends_without_a_text_and_without_retries(bench: Bench) -> None:
    bodies: list[bytes] = []

    def away(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(503)

    bench.answer = away
    began = time.monotonic()
    bench.grid.finish(Outcome.FAILED)
    assert len(bodies) == 1
    assert time.monotonic() - began < 1
    assert b"failed" in bodies[0]


def test_a_heartbeat_that_is_not_known_loses_the_task(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.001)
    answers = iter([FlowerAway("away", hint="wait"), SendTaskHeartbeatResponse(success=False)])

    def call(function: object, request: object) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "call", call)
    bench.grid._beat()
    assert bench.grid.lost


def test_a_push_output_is_understood(bench: Bench) -> None:
    bench.answer = lambda request: httpx.Response(200, content=PushTaskOutputResponse().SerializeToString())
    bench.grid.finish(Outcome.COMPLETED)
    assert bench.paths == ["push-task-output"]


def test_a_push_is_tried_once_and_what_follows_again(bench: Bench) -> None:
    bench.answer = lambda request: httpx.Response(503)
    with pytest.raises(httpx.HTTPStatusError):
        bench.mailbox.PushMessages(PushAppMessagesRequest())
    assert len(bench.paths) == 1
    answers = iter([httpx.Response(503), nodes(n7=b"key")])
    bench.answer = lambda request: next(answers)
    assert list(bench.grid.get_node_ids()) == [7]
