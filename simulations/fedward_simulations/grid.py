"""A Flower Grid in one process: it hands each message to the ClientApp when its answer is pulled, one at a time.

So answers arrive one by one, as over a network, and memory holds one update whatever the number of sites. Pinned to
flwr 1.41.0: a few private names of Flower are set here, and nowhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["InProcessGrid", "node_ids"]

_FIRST_NODE = 1000  # 0 and 1 are Flower's own
_SERVER_NODE = 1
_CLIENT_APP_RAISED = 2


def node_ids(sites: Iterable[str]) -> dict[int, str]:
    """Flower's node id of each virtual site, in order."""
    return {_FIRST_NODE + index: site for index, site in enumerate(sites)}


class InProcessGrid(Grid):
    """The Grid of one simulated run.

    Guarantees:
      - A site that raises gives an error reply without the exception's text; the others go on.
      - A site never sees another's message object.
    """

    def __init__(self, app: ClientApp, nodes: Mapping[int, str], *, run_id: int = 1) -> None:
        """Keep the app and one Flower context a site.

        Flower keeps the identity of the running task in process-wide variables, so one process runs one Grid at a time.
        """
        self._app = app
        self._run = Run.create_empty(run_id)
        self._contexts = {node: _context(run_id, node, site) for node, site in nodes.items()}
        self._waiting: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE, 1

    def drive(self, app: ServerApp) -> None:
        """Run a ServerApp over this Grid until it returns."""
        app(self, Context(run_id=1, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))

    def set_run(self, run: Run) -> None:
        """Replace Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All virtual sites are always connected."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All virtual sites as Flower describes nodes."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; nothing runs yet."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first of the queued messages among ``message_ids`` and return its answer alone."""
        for identifier in message_ids:
            if identifier in self._waiting:
                return [self._deliver(self._waiting.pop(identifier))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull every answer. A site in this process cannot be late: ``timeout`` has no effect."""
        identifiers = self.push_messages(messages)
        return [reply for identifier in identifiers for reply in self.pull_messages([identifier])]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            reply = self._app(message=message, context=self._contexts[node])
        except Exception as error:  # what a ClientApp raises must not end the run, nor carry its text to the server
            reply = Message(Error(code=_CLIENT_APP_RAISED, reason=type(error).__name__), reply_to=message)
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        reply.metadata.__dict__["_src_node_id"] = node
        return reply


def _context(run_id: int, node: int, site: str) -> Context:
    return Context(run_id=run_id, node_id=node, node_config={"site": site}, state=RecordDict(), run_config={})
