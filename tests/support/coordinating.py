"""A prepared run without torch, and a Grid whose sites are small functions: what the coordinator's tests are about.

Example:
    grid = FakeGrid({1000: honest(KEY)})
    coordinator_of(tmp_path, bundle_of(), sites=1).run(grid, State.initial(START))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedward_common.adapter import Adapter
from fedward_common.codec import decode_plan, encode_reply
from fedward_common.config import RunConfig
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import RoundPlan, RoundRecord
from fedward_common.wire import pack, unpack
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoints
from fedward_server.evaluation import NoEvaluation
from fedward_server.loop import Coordinator, EnrolledSite
from fedward_server.records import RoundLog
from support.nouns import KEY, SPEC, START, update_for

FIRST_NODE = 1000
SUPERLINK = 1
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))

Answer = RecordDict | Error | None  # None: silence


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a site saw: the plan, the adapter, and how often its node was asked before."""

    node: int
    plan: RoundPlan
    adapter: Adapter
    before: int


Site = Callable[[Asked], list[Answer]]


def config_of(**tables: Any) -> RunConfig:
    """Two head rounds and two adapter rounds over :data:`support.nouns.SPEC`; ``tables`` are replaced or added."""
    table: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "task": {"labels": ["yes", "no"]},
        "adapter": {"method": "lora", "rank": 1, "alpha": 2.0, "target_modules": ["query"], "freeze_a": True},
        "data": {"train": "memory"},
        "stages": [
            {"name": "head", "train": ["head"], "rounds": 2, "evaluate_every": 2},
            {"name": "adapter", "train": ["adapter"], "rounds": 2, "local_steps": 3, "server_learning_rate": 0.5},
        ],
        "rounds": {"retries": 2, "deadline_s": 100.0},
        "server": {"optimiser": "sgd", "learning_rate": 1.0, "weights": "equal"},
    }
    return RunConfig.model_validate({**table, **tables})


def bundle_of(**tables: Any) -> Bundle:
    """The bundle of ``config_of``, from :data:`support.nouns.START`."""
    frozen = {"layer.lora_A": START.tensors["layer.lora_B"].T.copy()}
    return Bundle(run_id="cd" * 32, config=config_of(**tables), initial=START, frozen=frozen, base_name="x/y")


def delta_for(plan: RoundPlan, value: float) -> Adapter:
    """The update with one value everywhere, over the groups that a plan trains."""
    spec = SPEC.subset(plan.training.groups)
    return Adapter.from_tensors(spec, {name: t * 0 + value for name, t in Adapter.zeros(spec).tensors.items()})


def reply_bytes(asked: Asked, *, key: Ed25519PrivateKey = KEY, value: float = 1.0, **changes: Any) -> bytes:
    """A signed update that answers what was asked."""
    metrics = MetricSums(correct=3.0, units=4.0, loss=2.0) if asked.plan.evaluate else None
    update = update_for(asked.plan, delta=delta_for(asked.plan, value), metrics=metrics, **changes)
    return encode_reply(update, key=key)


def honest(key: Ed25519PrivateKey = KEY, *, value: float = 1.0) -> Site:
    """A site that always sends a good update."""
    return lambda asked: [pack(reply_bytes(asked, key=key, value=value))]


def silent(asked: Asked) -> list[Answer]:
    """A site that never answers."""
    return []


@dataclass
class Clock:
    """Time that passes only in ``sleep``."""

    now: float = 1000.0
    slept: int = 0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept += 1
        self.now += seconds


@dataclass
class Notes:
    """An Observer that keeps all it sees."""

    started: list[tuple[int, int, int]] = field(default_factory=list)
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """Keep round, attempt and cohort."""
        self.started.append((round, attempt, cohort))

    def answered(self, site: str, outcome: str) -> None:
        """Keep site and outcome."""
        self.outcomes.append((site, outcome))

    def round_finished(self, record: RoundRecord) -> None:
        """Keep the record."""
        self.records.append(record)

    def note(self, text: str) -> None:
        """Keep the sentence."""
        self.notes.append(text)


class FakeGrid(Grid):
    """A Grid in one process: a site is a function from what it was asked to its answers."""

    def __init__(self, sites: Mapping[int, Site]) -> None:
        """Flower reads the identity of the running task from process-wide variables."""
        self.sites = dict(sites)
        self.plans: list[tuple[int, RoundPlan, Adapter]] = []
        self.polls = 0
        self._run = Run.create_empty(1)
        self._waiting: dict[str, list[Message]] = {}
        self._sent = 0
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK, 1

    def set_run(self, run: Run) -> None:
        """Part of the interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """Part of the interface."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of the interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every site, in no order."""
        return list(self.sites)[::-1]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Part of the interface."""
        return [NodeInfo(node_id=node) for node in self.sites]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let each site answer at once; the answers wait to be pulled."""
        identifiers = []
        for message in messages:
            self._sent += 1
            identifier = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = self._answers(message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Everything that waits under these identifiers."""
        self.polls += 1
        return [reply for identifier in message_ids for reply in self._waiting.pop(identifier, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Part of the interface."""
        return self.pull_messages(self.push_messages(messages))

    def _answers(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        plan, adapter = decode_plan(unpack(message.content), public_key=OPERATOR.public_key())
        before = sum(1 for asked, _, _ in self.plans if asked == node)
        self.plans.append((node, plan, adapter))
        answers = self.sites[node](Asked(node=node, plan=plan, adapter=adapter, before=before))
        return [_reply(message, answer, node) for answer in answers if answer is not None]


def _reply(message: Message, answer: RecordDict | Error, node: int) -> Message:
    reply = Message(answer, reply_to=message)
    # an error is invented by the SuperLink, which names itself as its source
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK if isinstance(answer, Error) else node
    return reply


def coordinator_of(folder: Path, bundle: Bundle, *, nodes: Iterable[int], **changes: Any) -> Coordinator:
    """A coordinator with every node enrolled under :data:`support.nouns.KEY`, on a clock that does not tick."""
    clock = changes.pop("clock", Clock())
    fields: dict[str, Any] = {
        "bundle": bundle,
        "key": OPERATOR,
        "sites": {node: EnrolledSite(name=f"site-{node}", key=KEY.public_key()) for node in nodes},
        "evaluator": NoEvaluation(),
        "observer": Notes(),
        "checkpoints": Checkpoints(folder / "checkpoints"),
        "log": RoundLog(folder / "rounds.jsonl"),
        "clock": clock,
        "sleep": clock.sleep,
    }
    return Coordinator(**{**fields, **changes})
