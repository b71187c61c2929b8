"""The driver's side: Flower's Grid in memory, and its simulation engine in a thread beside the running ServerApp.

Flower keeps its nodes, messages and contexts as in any simulation, and its Ray backend runs the ClientApp; what is
added is about the end of things: answers in the order in which they were asked for, so that sums are the same as in one
process; no text of an exception in a log; and, when it is over, no worker that goes on. Pinned to flwr 1.41.0.

    with on_ray(cluster) as room, RaySites.open(description, room=room, note=print) as sites:
        sites.drive(server_app(coordinator, state, done=...))
        sites.exports["site-1"](0)
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import ray
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.serverapp import ServerApp
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedward_common.privacy.grants import Budget
from fedward_common.privacy.ledger import Ledger
from fedward_simulations.ray.cluster import undisturbed
from fedward_simulations.ray.sites import ON_PURPOSE, Description, Kept, SiteApp
from fedward_simulations.sites.ledgers import Export

__all__ = ["RaySites"]

RUN, TASK, SERVER_NODE = 1, 1, 1
LOOK_S = 0.01
PATIENCE = 0.9  # of a message's time to live; what is left is for all others that have answered
END_S = 5.0
ROUNDS = (b'"entry":"start"', b'"entry":"settle"')
RETRIES = 3  # of one message whose worker died; an answer is a function of message and context


class RaySites(InMemoryGrid):
    """The virtual sites of one run on Ray, as a Flower Grid. One at a time in a process.

    Guarantees:
      - Answers are handed over in the order in which they are asked for, whoever was done first. After nine tenths of a
        message's time to live the others do not wait for its answer any longer.
      - A site's ledger and newest reply outlive every worker; nothing else of a site outlives a message.
      - A worker that dies is replaced, and its message given to another one.
      - A site that raises gives an error without the exception's text, but what fedward says on purpose.
      - Messages of a round that was closed without them are forgotten with the next round's first message.
    """

    def __init__(
        self, description: Description, *, room: Mapping[str, float], note: Callable[[str], None], app: SiteApp
    ) -> None:
        """Register a node for each site; ``app`` answers on a worker. See ``open``."""
        state_factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        super().__init__(state_factory)
        self._factory, self._note = state_factory, note
        self._config = description.config
        self._said: set[str] = set()
        self._epsilons: dict[str, tuple[object, float]] = {}
        self._unanswered: dict[str, float] = {}  # until when to wait for each, in time.time()
        self._group = ""
        self._register_run()
        self.nodes: Mapping[int, str] = self._register_nodes(list(description.records))
        self._by_name = {name: node for node, name in self.nodes.items()}
        self._stores = {node: self._store(node, number) for number, node in enumerate(self.nodes)}
        self._stop = threading.Event()
        self._backend = _Backend(room, self._stores)
        self._app_fn = _Loaded(app)
        self._engine = threading.Thread(target=self._serve, daemon=True)

    @classmethod
    @contextmanager
    def open(
        cls,
        description: Description,
        *,
        room: Mapping[str, float],
        note: Callable[[str], None],
        entries: Mapping[str, list[dict[str, Any]]] | None = None,
    ) -> Iterator[RaySites]:
        """Start workers, and end them afterwards.

        Args:
          description: of the run.
          room: what a worker takes, as ``on_ray`` yields it.
          note: hears true reasons of refusals and failures.
          entries: ledger entries of a checkpoint, to go on from.
        """
        with _silence():
            app = SiteApp(described=ray.put(description))
            sites = cls(description, room=room, note=note, app=app)
            for name, rows in (entries or {}).items():
                sites._remember(name, Kept.from_entries(rows))
            sites._engine.start()
            try:
                yield sites
            finally:
                sites.close()

    def close(self) -> None:
        """End all workers at once, whatever they do."""
        with undisturbed():
            self._stop.set()
            self._backend.kill()
            self._engine.join(END_S)

    def drive(self, app: ServerApp) -> None:
        """Run a ServerApp over this Grid until it returns."""
        app(self, Context(run_id=RUN, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))

    @property
    def ended(self) -> bool:
        """Whether Flower's engine is gone, so that nobody will answer any more."""
        return not self._engine.is_alive()

    # ---- messages ------------------------------------------------------------------------
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to workers."""
        identifiers: list[str] = []
        for message in messages:
            if message.metadata.group_id != self._group:  # a round's group; nobody pulls those of an earlier one
                self._group = message.metadata.group_id
                self.state.delete_messages(message_ins_ids=set(self._unanswered))
                self._unanswered.clear()
            sent = list(super().push_messages([message]))
            self._unanswered.update(dict.fromkeys(sent, time.time() + PATIENCE * message.metadata.ttl))
            identifiers.extend(sent)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the answer to the first of these that has none yet, for nine tenths of its time to live."""
        for identifier in message_ids:
            if identifier in self._unanswered:
                return self._awaited(identifier)
        return []

    def _awaited(self, identifier: str) -> list[Message]:
        while True:
            found = list(super().pull_messages([identifier]))
            if found:
                del self._unanswered[identifier]
                return [self._tidied(message) for message in found]
            if self.ended or time.time() >= self._unanswered[identifier]:
                return []
            time.sleep(LOOK_S)

    def _tidied(self, reply: Message) -> Message:
        name = self.nodes.get(reply.metadata.src_node_id)
        if name is None:  # Flower's own word that nobody answered
            return reply
        if reply.has_error():
            self._say_once(f"{name}: {_said(reply.error.reason or '')}")
            reply.error = Error(code=reply.error.code, reason="")
        else:
            for line in self._kept(name).notes:
                self._note(line)
        return reply

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._note(line)

    # ---- what Flower keeps of the sites --------------------------------------------------
    @property
    def exports(self) -> dict[str, Export]:
        """Every site's ledger entries as JSON, from a number on."""
        return {name: self._kept(name).entries for name in self._by_name}

    def epsilon_by_site(self, run_id: str, *, delta: float) -> dict[str, float]:
        """What the run cost at each site, computed from its ledger's events."""
        return {name: self._spent(name, run_id, delta) for name in self._by_name}

    def _spent(self, name: str, run_id: str, delta: float) -> float:
        # what a run costs is that of its grant: a ledger is read again only where more than rounds were added to it
        ledger = self._kept(name).ledger
        key = run_id, delta, sum(not any(kind in entry for kind in ROUNDS) for entry in ledger)
        known, epsilon = self._epsilons.get(name, (None, 0.0))
        if known != key:
            epsilon = self._ledger(name).spent(run_id, delta=delta)
            self._epsilons[name] = key, epsilon
        return epsilon

    def _ledger(self, name: str) -> Ledger:
        privacy = self._config.privacy
        return Ledger.restore(self._kept(name).entries(), budget=Budget(epsilon=privacy.epsilon, delta=privacy.delta))

    def _kept(self, name: str) -> Kept:
        return Kept.of(self._stores[self._by_name[name]].retrieve_context(RUN).state)

    def _remember(self, name: str, kept: Kept) -> None:
        kept.put(self._stores[self._by_name[name]].retrieve_context(RUN).state)

    # ---- Flower's engine -----------------------------------------------------------------
    def _register_run(self) -> None:
        run = Run.create_empty(RUN)
        run.primary_task_id, run.federation_id = TASK, NOOP_FEDERATION_ID
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER_NODE, TASK
        state = self.state
        if not isinstance(state, InMemoryLinkState):
            raise TypeError("Flower keeps its state elsewhere than in memory")
        state.run_ids[RUN] = RunRecord(run=run)
        state.task_store[TASK] = Task(task_id=TASK, run_id=RUN)
        self.set_run(run)

    def _register_nodes(self, names: list[str]) -> dict[int, str]:
        # Flower draws the ids; given out in order, whoever sorts nodes finds the sites as in one process
        drawn = [
            self.state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, secrets.token_bytes(32), heartbeat_interval=HEARTBEAT_INTERVAL_INF
            )
            for _ in names
        ]
        for node in drawn:
            self.state.acknowledge_node_heartbeat(node_id=node, heartbeat_interval=HEARTBEAT_INTERVAL_INF)
        return dict(zip(sorted(drawn), names, strict=True))

    def _store(self, node: int, number: int) -> _Store:
        about: UserConfig = {"site": self.nodes[node], "partition-id": number, "num-partitions": len(self.nodes)}
        store = _Store(node_id=node, node_config=about)
        store.register_context(run_id=RUN)
        return store

    def _serve(self) -> None:
        with suppress(RuntimeError):  # see ``ended``
            run_api(
                app_fn=self._app_fn,
                backend_fn=lambda: self._backend,
                nodes_mapping={node: number for number, node in enumerate(self.nodes)},
                state_factory=self._factory,
                node_info_stores=dict(self._stores),
                f_stop=self._stop,
                metrics=VceMetrics(),
            )


class _Store(DeprecatedRunInfoStore):
    """What Flower keeps of one site. A site answers one message at a time, each after what the last one left."""

    def __init__(self, node_id: int, node_config: UserConfig) -> None:
        super().__init__(node_id, node_config)
        self.lock = threading.Lock()

    def update_context(self, run_id: int, context: Context) -> None:
        """Nothing: Flower would do it some time after the next message began."""

    def keep(self, context: Context) -> None:
        """What the site's next message begins with; under the lock."""
        super().update_context(RUN, context)


class _Backend(RayBackend):
    """Flower's Ray backend: workers that are replaced when they die, and that can be ended whatever they do."""

    def __init__(self, room: Mapping[str, float], stores: Mapping[int, _Store]) -> None:
        super().__init__({"client_resources": {**room, "max_restarts": -1, "max_task_retries": RETRIES}})
        self._stores = stores
        self._workers: list[Any] = []

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        # a message that nobody waits for any more may still be at work when the site's next one comes
        store = self._stores[message.metadata.dst_node_id]
        with store.lock:
            reply, after = super().process_message(message, store.retrieve_context(RUN))
            store.keep(after)
        return reply, after

    def build(self, app_fn: Callable[[], Any]) -> None:
        super().build(app_fn)
        self._workers = list(self.pool.pool) if self.pool else []

    def kill(self) -> None:
        """End the workers; whoever waits for one is told so."""
        for worker in self._workers:
            with suppress(Exception):  # it, or Ray, is gone already
                ray.kill(worker, no_restart=True)

    def terminate(self) -> None:
        """Nothing: who started Ray ends it, after ``kill``."""


@dataclass(frozen=True)
class _Loaded:
    """What Flower asks on a worker for its app; small, for it is sent with each message."""

    app: SiteApp

    def __call__(self) -> ClientApp:
        return cast(ClientApp, self.app)  # Flower calls it, and does nothing else with it


def _said(reason: str) -> str:
    if reason.startswith(ON_PURPOSE):
        return reason.removeprefix(ON_PURPOSE)
    found = re.match(r"<class '(?:\w+\.)*(\w+)", reason)
    return f"a worker failed ({found[1] if found else 'for no stated reason'})"


@contextmanager
def _silence() -> Iterator[None]:
    # Flower logs the text of what clients raise
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
