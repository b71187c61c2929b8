from __future__ import annotations

import uuid

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward_client.app import client_app
from fedward_common.errors import MalformedMessage
from fedward_common.wire import pack, unpack


class Shout:
    def answer(self, data: bytes) -> bytes:
        return data.upper()


def send(content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(content, 1000, "train")
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    context = Context(run_id=1, node_id=1000, node_config={"site": "b"}, state=RecordDict(), run_config={})
    return client_app({"b": Shout()}.__getitem__)(message=message, context=context)


def test_bytes_go_through_the_sites_door_and_back() -> None:
    assert unpack(send(pack(b"plan")).content) == b"PLAN"


def test_other_content_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        send(RecordDict({}))
