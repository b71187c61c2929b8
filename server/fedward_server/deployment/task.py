"""The Grid of one task, as a conductor uses it: Flower's own, with our heartbeat and our rule of when to go on asking.

Private calls of Flower again, apart from ``flower`` because HttpGrid brings half of the SuperLink's imports, which the
desk does without. It must not know what a site or a fedward run is.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, TypeVar, cast

import httpx
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import InflatableObject, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, inflate_object_from_contents
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedward_common.errors import FedwardError
from fedward_common.sealed import seal
from fedward_common.wire import body_of, reply_record, salted, with_body
from fedward_server.deployment.arriving import Sieve, Unfit
from fedward_server.deployment.flower import FlowerAway, FlowerRefused, call, runtime_client, translated, typed
from fedward_server.deployment.superlink import Upstream

__all__ = ["Outcome", "TaskGrid"]

PATIENCE_S = 0.5  # between two tries while the SuperLink is away
AWAY_S = 90.0  # then a call gives up: by then Flower has given the task up as well
HEARTBEAT_S = 10.0  # Flower gives a task up after 60 s of silence
PULL_S = 0.15  # all answers are asked for in one call, at most this often
MOST_PARTS = 8  # of an answer: ours have three
AROUND = 4096  # what surrounds an object on the wire
MOST_BYTES = 272 << 20  # of an answer, where nobody says how large one is

Answer = TypeVar("Answer")


class Outcome(StrEnum):
    """How a task ended, in Flower's words. No text goes with it: Flower would keep and show it."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class TaskGrid(HttpGrid):
    """Flower's Grid for one claimed task, with a heartbeat, and with our rule of when to go on asking.

    ``stopping`` is asked between two tries, so that a stopped run does not wait for a SuperLink that is away. ``seen``
    gets the public keys (PEM) of the nodes that are online, by node id, whenever they are asked for. ``most_bytes`` is
    the largest answer that is taken.

    The SuperLink names an object by its content, forgets it once nothing refers to it, and lets every node announce
    and release names. So what plans share goes out under a name that nobody can foresee, and a message of ours to
    ourselves holds it there until the next attempt.

    Guarantees:
      - While the SuperLink is away for a moment, a call waits; the run is not lost.
      - A task that the SuperLink gave up raises FlowerRefused and is ``lost``; no signal is sent.
      - However many answers are awaited, one call asks for all of them.
      - An answer that was begun and not ended holds nobody up.
      - No site can make another site's plan unsendable, or take from the SuperLink what the others still need.
      - An answer over ``most_bytes``, or of many parts, is lost; memory holds at most what it may be.
      - An update exists once in memory from its first byte on, and the plans' body no longer once answers are fetched.
      - What an attempt left in the SuperLink is gone when the next one begins, or the task ends.
    """

    def __init__(
        self,
        upstream: Upstream,
        token: str,
        *,
        stopping: Callable[[], bool],
        seen: Callable[[Mapping[int, bytes]], None],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Nothing is sent before ``begin``."""
        super().__init__(upstream.address, root_certificates=upstream.ca, token=token)
        self._upstream, self._seen, self._most_bytes = upstream, seen, most_bytes
        self._arriving: list[tuple[Any, Any]] = []
        self._shared: _Shared | None = None
        self._owed: set[str] = set()  # messages whose objects the SuperLink may still hold because of us
        self._unanswered: set[str] = set()  # messages of ours
        self._lost = threading.Event()
        self._ended = threading.Event()
        # in place of the helper that ends in SIGINT; everything of HttpGrid goes through it
        self._retry_invoker = _patient(lambda: stopping() or self._lost.is_set())
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self) -> Context:
        """Take the task up: what it belongs to becomes this process's identity in Flower; the heartbeat starts."""
        answer = call(self._runtime_client.PullTaskInput, PullTaskInputRequest())
        context = context_from_proto(answer.context)
        TaskIdentity.task_id, TaskIdentity.run_id = answer.task_id, answer.run.run_id
        TaskIdentity.node_id = context.node_id
        self.set_run(run_from_proto(answer.run))
        self._heartbeat.start()
        return context

    @property
    def lost(self) -> bool:
        """Whether the SuperLink gave the task up: stopped, or without a sign of life for too long."""
        return self._lost.is_set()

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online. A new attempt begins with it: what is left of the last one is let go."""
        self._told(self._let_go)
        answer = self._told(lambda: self._runtime_client.GetNodes(GetNodesRequest()))
        keys = {int(info.node_id): bytes(info.public_key) for info in answer.nodes}
        self._seen(keys)
        return list(keys)

    def finish(self, outcome: Outcome) -> None:
        """Say how the task ended, once and without retries: the desk stops the Flower run in any case."""
        self._ended.set()
        self._retry_invoker.max_tries = 1
        with suppress(FedwardError):
            self._told(self._let_go)  # Flower keeps the objects of a run that is over until somebody looks at it
        with suppress(FedwardError):
            call(self._runtime_client.PushTaskOutput, PushTaskOutputRequest(sub_status=outcome.value, details=""))
        self.close()

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        """As Flower's; every failure is one of the two errors. Plans of one body share one record of it."""
        return self._told(lambda: self._push([self._sharing(message) for message in messages]))

    def _push(self, messages: list[Message]) -> list[str]:
        try:
            return list(super().push_messages(messages))
        except ObjectPushError:
            raise FlowerAway("the SuperLink did not keep a message", hint="it is sent again") from None

    def _try_push_messages(self, run_id: int, messages: Iterable[Any]) -> list[str]:
        # noted before they are sent: half a message may lie there although the call failed
        for metadata in [message.metadata for message in messages]:
            self._owed.add(metadata.message_id)
            if metadata.dst_node_id != SUPERLINK_NODE_ID:
                self._unanswered.add(metadata.message_id)
        return super()._try_push_messages(run_id, messages)

    def _sharing(self, message: Message) -> Message:
        body = body_of(message.content) if message.has_content() else None
        if body is None:
            return message
        if self._shared is None or self._shared.body is not body:
            self._shared = _Shared(body=body, content=_sealed(salted(body)))
        if not self._shared.held:
            self._hold(message, self._shared)
        metadata, content = message.metadata, with_body(message.content, self._shared.content)
        return _like(message, content, node=metadata.dst_node_id, group=metadata.group_id)

    def _hold(self, message: Message, shared: _Shared) -> None:
        # to ourselves, and under a name that nobody else can know: so nobody else can release it
        pin = _like(message, shared.content, node=SUPERLINK_NODE_ID, group=secrets.token_hex(16))
        shared.held = any(self._push([pin]))
        if not shared.held:
            raise FlowerRefused("the SuperLink took no plan", hint="read state/logs/superlink.log")

    def _let_go(self) -> None:
        """Release what the last attempt left: plans that nobody fetched, answers that nobody waits for."""
        self._shared = None
        self._mailbox.ask(self._unanswered)
        left = [header for header, _ in [*self._arriving, *self._mailbox.drain()]]
        self._arriving.clear()
        self._owed |= {header.metadata.message_id for header in left}
        self._unanswered -= {header.metadata.reply_to_message_id for header in left}
        for name in sorted(self._owed):
            self._release(name)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        """The answers that are whole; every failure is one of the two errors.

        Flower's own waits up to two hours for an answer whose sender stopped in the middle, and would let one site stop
        a run: here such an answer is not there yet, and the loop's deadline decides.
        """
        return self._told(lambda: list(self._whole(frozenset(message_ids))))

    def _whole(self, wanted: frozenset[str]) -> Iterator[Message]:
        fresh = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=sorted(wanted)))
        self._arriving += zip(fresh.messages_list, fresh.message_object_trees, strict=True)
        for header, tree in [pair for pair in self._arriving if pair[0].metadata.reply_to_message_id in wanted]:
            with suppress(_NotYet):
                message = self._one(header, tree)
                self._arriving.remove((header, tree))
                self._unanswered.discard(header.metadata.reply_to_message_id)
                yield message

    def _one(self, header: Any, tree: Any) -> Message:
        self._shared = None  # all plans are out; one that has to be sent again brings its own
        try:
            parts = self._parts(tree)
        except Unfit:
            parts = _Parts()
        self._release(header.metadata.message_id)
        return _inflated(header, parts) or _lost(header)

    def _parts(self, tree: Any) -> _Parts:
        """Fetch an answer's parts, the last that its sender pushes first: what is cut off costs one small question."""
        names = [part.object_id for part in islice(iterate_object_tree(tree), MOST_PARTS + 1)]
        if len(names) > MOST_PARTS:
            raise Unfit
        parts = _Parts()
        for name in dict.fromkeys(reversed(names)):
            self._part(name, parts, self._most_bytes - parts.size)
        return parts

    def _part(self, name: str, parts: _Parts, most: int) -> None:
        request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=name)
        with self._mailbox.at_most(most) as taken:
            answer = self._runtime_client.PullObject(request)
        content = answer.object_content  # each look at it is a copy
        if not answer.object_found or len(content) > most:  # not found: what was announced never comes
            raise Unfit
        if not answer.object_available:
            raise _NotYet
        parts.add(name, content, taken)

    def _release(self, name: str) -> None:
        """Let the SuperLink forget a message's objects; one that is not there any more is left alone."""
        self._owed.add(name)
        request = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=name)
        self._runtime_client.ConfirmMessageReceived(request)
        self._owed.discard(name)

    @property
    def _mailbox(self) -> _Mailbox:
        return cast(_Mailbox, self._runtime_client)

    def _told(self, function: Callable[[], Answer]) -> Answer:
        try:
            return translated(function)
        except FlowerRefused as refused:
            if refused.token_is_void:
                self._lost.set()
            raise

    def _connect(self) -> None:
        token = RuntimeTokenHttpInterceptor(token=self._token)
        self._client = runtime_client(self._upstream, _Mailbox, token, retry=self._retry_invoker)

    def _beat(self) -> None:
        client = runtime_client(self._upstream, RuntimeHttpClient, RuntimeTokenHttpInterceptor(token=self._token))
        while not self._ended.wait(HEARTBEAT_S):
            try:
                known = bool(call(client.SendTaskHeartbeat, SendTaskHeartbeatRequest()).success)
            except FlowerRefused:
                known = False
            except FlowerAway:
                continue
            if not known:
                return self._lost.set()
        return client.close()


class _NotYet(Exception):
    """A part of an answer was announced and has not arrived."""


@dataclass(kw_only=True)
class _Parts:
    """What was fetched of an answer: a reply's record as such, of every other object its content."""

    contents: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, InflatableObject] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, content: bytes, taken: list[bytes]) -> None:
        self.size += len(content) + sum(map(len, taken))
        if taken:
            self.records[name] = reply_record(taken.pop())
        else:
            self.contents[name] = content


@dataclass(kw_only=True)
class _Shared:
    """The body of an attempt's plans; ``held`` once the SuperLink has it."""

    body: bytes
    content: RecordDict
    held: bool = False


def _sealed(content: RecordDict) -> RecordDict:
    for name in content:
        seal(content, name)
    return content


def _like(message: Message, content: RecordDict, *, node: int, group: str) -> Message:
    metadata = message.metadata
    return Message(content, node, metadata.message_type, ttl=metadata.ttl, group_id=group)


def _inflated(header: Any, parts: _Parts) -> Message | None:
    """The message in these bytes of a stranger's; None where they are none, or one that answers something else."""
    name = header.metadata.message_id
    try:
        message = cast(Message, inflate_object_from_contents(name, parts.contents, objects=parts.records))
        if message.metadata.reply_to_message_id != header.metadata.reply_to_message_id:
            return None
    except Exception:  # whatever Flower's own parsing raises
        return None
    message.metadata.__dict__["_message_id"] = name
    return message


def _lost(header: Any) -> Message:
    """An error in place of an answer that cannot be had any more: Flower's own form of it, without its text."""
    metadata = Metadata(
        run_id=header.metadata.run_id,
        message_id="",
        src_node_id=header.metadata.src_node_id,
        dst_node_id=header.metadata.dst_node_id,
        reply_to_message_id=header.metadata.reply_to_message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    error = Error(code=ErrorCode.MESSAGE_UNAVAILABLE, reason="the answer was not sent to its end")
    return make_message(metadata=metadata, error=error)


class _Mailbox(RuntimeHttpClient):
    """Asks for all awaited answers in one call and hands each to whoever asks for it.

    The loop asks for one message at a time, so that one update is in memory at a time; what is kept here are headers.
    An answer's body stays in the SuperLink until the answer is asked for. The SuperLink hands a header out once and
    then knows nothing of the message: asked again, while the body is still on its way, it would say that there is none.
    """

    _awaited: set[str]
    _here: dict[str, list[tuple[Any, Any]]]
    _come: set[str]
    _asked_at: float
    _most: int | None
    _taken: list[bytes]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self._taken = None, []
        self._client.event_hooks = {"response": [self._measure]}
        self._awaited, self._here, self._come, self._asked_at = set(), {}, set(), 0.0

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        """As Flower's, tried once: the SuperLink may have taken what it did not answer, and takes no id twice."""
        retry, self._retry_invoker = self._retry_invoker, None
        try:
            answer = super().PushMessages(request)
        finally:
            self._retry_invoker = retry
        for name, message in zip(answer.message_ids, request.messages_list, strict=False):
            if name and message.metadata.dst_node_id != SUPERLINK_NODE_ID:
                self._awaited.add(name)
        return answer

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """As Flower's, from what the last call brought where that is fresh."""
        wanted = set(request.message_ids)
        missing = wanted - self._come
        self._awaited |= missing
        now = time.monotonic()
        if missing and not wanted & set(self._here) and now - self._asked_at >= PULL_S:
            # whoever is no longer asked for is no longer awaited: what the last round left behind stays away
            asked, self._awaited, self._asked_at = self._awaited, missing, now
            self.ask(asked)
        found = [pair for name in wanted for pair in self._here.pop(name, [])]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def ask(self, names: Collection[str]) -> None:
        """Ask now for the answers to these messages that have not come."""
        if missing := set(names) - self._come:
            self._keep(super().PullMessages(PullAppMessagesRequest(message_ids=sorted(missing))))

    def drain(self) -> list[tuple[Any, Any]]:
        """Every answer that nobody fetched; nothing is awaited any more."""
        left = [pair for pairs in self._here.values() for pair in pairs]
        for names in (self._awaited, self._here, self._come):
            names.clear()
        return left

    @contextmanager
    def at_most(self, size: int) -> Iterator[list[bytes]]:
        """Within it, an answer with a larger object raises, before it is read; a reply's bytes go into the list."""
        self._most, self._taken = size, []
        try:
            yield self._taken
        finally:
            self._most, self._taken = None, []

    def _measure(self, response: httpx.Response) -> None:
        said = response.headers.get("content-length", "")
        if self._most is None or not said.isdecimal():
            return
        if int(said) > self._most + AROUND:
            raise Unfit
        response.stream = Sieve(cast(httpx.SyncByteStream, response.stream), int(said), self._taken)

    def _keep(self, answer: PullAppMessagesResponse) -> None:
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            answered = message.metadata.reply_to_message_id
            if not answered:
                continue  # the SuperLink hands us back what we hold there, and what others call ours
            self._here.setdefault(answered, []).append((message, tree))
            self._come.add(answered)
        self._awaited -= self._come


def _patient(ended: Callable[[], bool]) -> RetryInvoker:
    def wait(seconds: float) -> None:
        time.sleep(seconds)
        if ended():
            raise FlowerAway("the run ends while the SuperLink is away", hint="`fedward-server resume` goes on")

    def every() -> Any:
        while True:
            yield PATIENCE_S

    return RetryInvoker(
        every,
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=AWAY_S,
        jitter=None,
        should_giveup=lambda error: isinstance(typed(error), FlowerRefused),
        wait_function=wait,
    )
