"""The Grid of one task, as a conductor uses it: Flower's own, with our heartbeat and our rule of when to go on asking.

Private calls of Flower again, apart from ``flower`` because HttpGrid brings half of the SuperLink's imports, which the
desk does without. It must not know what a site or a fedward run is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeVar, cast

import httpx
from flwr.app import Context, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
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
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedward_common.errors import FedwardError
from fedward_server.deployment.flower import FlowerAway, FlowerRefused, call, runtime_client, translated, typed
from fedward_server.deployment.superlink import Upstream

__all__ = ["Outcome", "TaskGrid"]

PATIENCE_S = 0.5  # between two tries while the SuperLink is away
AWAY_S = 90.0  # then a call gives up: by then Flower has given the task up as well
HEARTBEAT_S = 10.0  # Flower gives a task up after 60 s of silence
PULL_S = 0.15  # all answers are asked for in one call, at most this often

Answer = TypeVar("Answer")


class Outcome(StrEnum):
    """How a task ended, in Flower's words. No text goes with it: Flower would keep and show it."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class TaskGrid(HttpGrid):
    """Flower's Grid for one claimed task, with a heartbeat, and with our rule of when to go on asking.

    ``stopping`` is asked between two tries, so that a stopped run does not wait for a SuperLink that is away. ``seen``
    gets the public keys (PEM) of the nodes that are online, by node id, whenever they are asked for.

    Guarantees:
      - While the SuperLink is away for a moment, a call waits; the run is not lost.
      - A task that the SuperLink gave up raises FlowerRefused and is ``lost``; no signal is sent.
      - However many answers are awaited, one call asks for all of them.
      - An answer that was begun and not ended holds nobody up.
    """

    def __init__(
        self,
        upstream: Upstream,
        token: str,
        *,
        stopping: Callable[[], bool],
        seen: Callable[[Mapping[int, bytes]], None],
    ) -> None:
        """Nothing is sent before ``begin``."""
        super().__init__(upstream.address, root_certificates=upstream.ca, token=token)
        self._upstream, self._seen = upstream, seen
        self._arriving: list[tuple[Any, Any]] = []
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
        self._arriving.clear()
        answer = self._told(lambda: self._runtime_client.GetNodes(GetNodesRequest()))
        keys = {int(info.node_id): bytes(info.public_key) for info in answer.nodes}
        self._seen(keys)
        return list(keys)

    def finish(self, outcome: Outcome) -> None:
        """Say how the task ended, once and without retries: the desk stops the Flower run in any case."""
        self._ended.set()
        self._retry_invoker.max_tries = 1
        with suppress(FedwardError):
            call(self._runtime_client.PushTaskOutput, PushTaskOutputRequest(sub_status=outcome.value, details=""))
        self.close()

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        """As Flower's; every failure is one of the two errors."""
        return self._told(lambda: super(TaskGrid, self).push_messages(messages))

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
                yield message

    def _one(self, header: Any, tree: Any) -> Message:
        """Fetch an answer's parts, the last that its sender pushes first: what is cut off costs one small question."""
        identifier = header.metadata.message_id
        names = [part.object_id for part in iterate_object_tree(tree)]
        try:
            parts = pull_objects(names[::-1], self._part, max_tries_per_object=1)
        except ObjectPullError:  # what was announced will never come
            return _lost(header)
        confirmation = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=identifier
        )
        self._runtime_client.ConfirmMessageReceived(confirmation)
        message = cast(Message, inflate_object_from_contents(identifier, parts))
        message.metadata.__dict__["_message_id"] = identifier
        return message

    def _part(self, name: str) -> bytes:
        request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=name)
        answer = self._runtime_client.PullObject(request)
        if not answer.object_found:
            raise ObjectPullError(name, "the object could not be found.")
        if not answer.object_available:
            raise _NotYet
        return bytes(answer.object_content)

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
    An answer's body stays in the SuperLink until the answer is asked for.
    """

    _awaited: set[str]
    _here: dict[str, list[tuple[Any, Any]]]
    _asked_at: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaited, self._here, self._asked_at = set(), {}, 0.0

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        """As Flower's, tried once: the SuperLink may have taken what it did not answer, and takes no id twice."""
        retry, self._retry_invoker = self._retry_invoker, None
        try:
            answer = super().PushMessages(request)
        finally:
            self._retry_invoker = retry
        self._awaited.update(name for name in answer.message_ids if name)
        return answer

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """As Flower's, from what the last call brought where that is fresh."""
        wanted = set(request.message_ids)
        self._awaited |= wanted
        now = time.monotonic()
        if not wanted & set(self._here) and now - self._asked_at >= PULL_S:
            # whoever is no longer asked for is no longer awaited: what the last round left behind stays away
            asked, self._awaited, self._asked_at = self._awaited, set(wanted), now
            self._keep(super().PullMessages(PullAppMessagesRequest(message_ids=sorted(asked))))
        found = [pair for name in wanted for pair in self._here.pop(name, [])]
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def _keep(self, answer: PullAppMessagesResponse) -> None:
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            self._here.setdefault(message.metadata.reply_to_message_id, []).append((message, tree))


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
