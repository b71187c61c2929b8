"""A Flower Grid in one process: it hands each message to the ClientApp when its answer is pulled, one at a time.

So answers arrive one by one, as over a network, and memory holds one update whatever the number of sites. Where an
:class:`Ahead` is given, it hears of the messages that come next before the first of them is handed over. Pinned to
flwr 1.41.0: a few private names of Flower are set here, and nowhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import dropwhile, islice
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedward_common.errors import MalformedMessage
from fedward_common.wire import unpack
from fedward_simulations.heap import give_back
from fedward_simulations.profiling import span

__all__ = ["Ahead", "InProcessGrid", "node_ids"]

_FIRST_NODE = 1000  # 0 and 1 are Flower's own
_SERVER_NODE = 1
_CLIENT_APP_RAISED = 2


def node_ids(sites: Iterable[str]) -> dict[int, str]:
    """Flower's node id of each virtual site, in order."""
    return {_FIRST_NODE + index: site for index, site in enumerate(sites)}


class Ahead(Protocol):
    """Whoever wants to see messages before the ClientApp does."""

    def room(self, opened: int) -> int:
        """How many it takes now, where it took so many of this round before."""
        ...

    def open(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Take the next messages: names of sites, one each, and what they are sent."""
        ...


class InProcessGrid(Grid):
    """The Grid of one simulated run.

    Guarantees:
      - A site that raises gives an error reply without the exception's text; the others go on.
      - A site never sees another's message object.
      - Messages of a round that was closed without them are forgotten with the next round's first message.
    """

    def __init__(
        self, app: ClientApp, nodes: Mapping[int, str], *, run_id: int = 1, ahead: Ahead | None = None
    ) -> None:
        """Keep the app and one Flower context a site. ``ahead`` sees the content of messages before the app does.

        Flower keeps the identity of the running task in process-wide variables, so one process runs one Grid at a time.
        """
        self._app = app
        self._run = Run.create_empty(run_id)
        self._contexts = {node: _context(run_id, node, site) for node, site in nodes.items()}
        self._waiting: dict[str, Message] = {}
        self._group = ""
        self._ahead, self._sites = ahead, dict(nodes)
        self._seen: set[str] = set()  # messages of this round that ``ahead`` was shown
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER_NODE, 1

    @property
    def ended(self) -> bool:
        """Whether nobody will answer any more: never, in this process."""
        return False

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
            if message.metadata.group_id != self._group:  # a round's group; nobody pulls those of an earlier one
                self._group = message.metadata.group_id
                self._waiting.clear()
                self._seen.clear()
                with span("memory given back"):
                    give_back()
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first of the queued messages among ``message_ids`` and return its answer alone."""
        for identifier in message_ids:
            if identifier in self._waiting:
                self._look_ahead(identifier)
                return [self._deliver(self._waiting.pop(identifier))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull every answer. A site in this process cannot be late: ``timeout`` has no effect."""
        identifiers = self.push_messages(messages)
        return [reply for identifier in identifiers for reply in self.pull_messages([identifier])]

    def _look_ahead(self, first: str) -> None:
        if self._ahead is None or first in self._seen:
            return
        after = dropwhile(lambda identifier: identifier != first, self._waiting)
        unseen = (identifier for identifier in after if identifier not in self._seen)
        chosen: dict[str, str] = {}  # one message a site: a site answers one at a time
        for identifier in islice(unseen, self._ahead.room(len(self._seen))):
            chosen.setdefault(self._sites.get(self._waiting[identifier].metadata.dst_node_id, ""), identifier)
        self._seen.update(chosen.values())
        self._ahead.open(self._contents(chosen))

    def _contents(self, chosen: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        for site, identifier in chosen.items():
            try:
                content = unpack(self._waiting[identifier].content)
            except MalformedMessage:  # the ClientApp will find the same
                continue
            yield site, content

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            with span("Flower's ClientApp, and a site that answers alone"):
                reply = self._app(message=message, context=self._contexts[node])
        except Exception as error:  # what a ClientApp raises must not end the run, nor carry its text to the server
            reply = Message(Error(code=_CLIENT_APP_RAISED, reason=type(error).__name__), reply_to=message)
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        reply.metadata.__dict__["_src_node_id"] = node
        return reply


def _context(run_id: int, node: int, site: str) -> Context:
    return Context(run_id=run_id, node_id=node, node_config={"site": site}, state=RecordDict(), run_config={})
