"""Flower's own SuperLink state and handlers behind a TaskGrid, in one process: what a site does to it, a test does.

Example:
    link = Link(tmp_path)
    grid, site = link.grid(), link.node("a")
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flwr.supercore.constant as constants
import httpx
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers as fleet
from flwr.superlink.servicer.runtime import runtime_handlers as runtime
from sqlalchemy import text

from fedward_server.deployment.superlink import Upstream
from fedward_server.deployment.task import TaskGrid
from support.operating import new_operator

SUPERLINK = 1
Handler = Callable[[Any, SqlLinkState, Any], Any]
HANDLERS: dict[str, tuple[Any, Handler]] = {
    "get-nodes": (runtime_pb2.GetNodesRequest, runtime.get_nodes),
    "push-messages": (runtime_pb2.PushAppMessagesRequest, runtime.push_messages),
    "pull-messages": (runtime_pb2.PullAppMessagesRequest, runtime.pull_messages),
    "push-object": (message_pb2.PushObjectRequest, runtime.push_object),
    "pull-object": (message_pb2.PullObjectRequest, runtime.pull_object),
    "confirm-message-received": (message_pb2.ConfirmMessageReceivedRequest, runtime.confirm_message_received),
    "push-task-output": (runtime_pb2.PushTaskOutputRequest, runtime.push_task_output),
}


class Link:
    """A SuperLink with one running run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        path = str(root / "state.db")
        self.store = SqlObjectStore(path)
        self.store.initialize()
        manager = NoOpFederationManager()
        self.state = SqlLinkState(path, manager, self.store)
        self.state.initialize()
        manager.linkstate = self.state
        federation = next(getattr(constants, name) for name in vars(constants) if name.startswith("NOOP_FEDERATION_ID"))
        self.run = self.state.create_run("p/a", "1", None, {}, federation, None, "flwr", TaskType.SERVER_APP)
        task = self.state.get_run_info(run_ids=[self.run])[0].primary_task_id
        assert task is not None
        self.state.claim_task(task)
        assert self.state.activate_task(task)
        self.task = self.state.get_tasks(task_ids=[task])[0]
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, SUPERLINK, task

    def grid(self, **more: Any) -> TaskGrid:
        """As a conductor's."""
        upstream = Upstream.of(new_operator(self.root / "op"), port=1)
        grid = TaskGrid(upstream, "token", stopping=lambda: False, seen=lambda _: None, **more)
        client: Any = grid._runtime_client
        hooks = client._client.event_hooks
        client._client.close()
        client._client = httpx.Client(transport=httpx.MockTransport(self._answer), event_hooks=hooks)
        grid.set_run(Run.create_empty(self.run))
        return grid

    def _answer(self, request: httpx.Request) -> httpx.Response:
        kind, handler = HANDLERS[request.url.path.rpartition("/")[2]]
        try:
            answer = handler(kind.FromString(request.content), self.state, self.task)
        except ValueError as error:
            return httpx.Response(500, text=str(error))
        return httpx.Response(200, content=answer.SerializeToString())

    def node(self, name: str) -> Site:
        """A site that is online."""
        node = self.state.create_node("flwr", name, name.encode(), 60)
        self.state.activate_node(node, 60)
        return Site(self, node)

    def held(self) -> int:
        """Bytes of all objects."""
        with self.store.session() as session:
            return int(session.execute(text("select coalesce(sum(length(content)), 0) from objects")).scalar_one())


class Site:
    """A site as the SuperLink sees it."""

    def __init__(self, link: Link, node: int) -> None:
        self.link, self.node = link, node

    def pull(self) -> tuple[Any, ObjectTree] | None:
        """The next plan's header and parts' names."""
        request = fleet_pb2.PullMessagesRequest(node=Node(node_id=self.node))
        got = fleet.pull_messages(request, self.link.state, self.link.store)
        return (got.messages_list[0], got.message_object_trees[0]) if got.messages_list else None

    def part(self, name: str) -> bytes | None:
        """One object."""
        return self.link.state.get_object(self.link.run, name)

    def confirm(self, name: str) -> None:
        """Say that a message arrived."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=Node(node_id=self.node), run_id=self.link.run, message_object_id=name
        )
        fleet.confirm_message_received(request, self.link.state, self.link.store)

    def reply(
        self, header: Any, content: RecordDict, *, tree: ObjectTree | None = None, inside: str | None = None
    ) -> None:
        """Answer a plan; with a ``tree`` announce that one, and send nothing. ``inside`` names another plan."""
        message = make_message(
            metadata=Metadata(
                run_id=self.link.run,
                message_id="",
                src_node_id=self.node,
                dst_node_id=SUPERLINK,
                reply_to_message_id=inside or header.metadata.message_id,
                group_id="1",
                created_at=time.time(),
                ttl=header.metadata.ttl / 2,
                message_type="train",
            ),
            content=content,
        )
        name = message.object_id if tree is None else tree.object_id
        message.metadata.__dict__["_message_id"] = name
        objects = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        head = message_to_proto(_bare(message))
        head.metadata.reply_to_message_id = header.metadata.message_id
        request = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=self.node),
            messages_list=[head],
            message_object_trees=[get_object_tree(message) if tree is None else tree],
        )
        answer = fleet.push_messages(request, self.link.state)
        for key in answer.objects_to_push if tree is None else ():
            assert self.link.state.store_object(self.link.run, answer.session_id, key, objects[key])


def _bare(message: Message) -> Message:
    from flwr.app.message import remove_content_from_message

    return remove_content_from_message(message)
