"""Flower's Fleet API as the courier speaks it: the one module of the client that makes private Flower calls.

Flower's own messages, client and signatures; our own rules of failing. Flower's retrying would send SIGINT to this
process on a 401 and go deaf on a 500, so nothing here retries: every failure is a ``Fault`` (the caller tries again)
or a ``Dropped`` (this message is given up). Pinned to flwr 1.41.0. No code and no configuration is ever asked for.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.common.serde_utils import record_value_dict_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import (
    RuntimeVersionMetadata,
    get_runtime_version_incompatibility_exit_message,
)
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedward_client.courier.faults import (
    Away,
    Dropped,
    Fault,
    NotActivated,
    NotEnrolled,
    OtherVersion,
    RunOver,
    TooLarge,
    Unusable,
    WrongCertificate,
    WrongClock,
)
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.link import OverLimit, Watch, certificate_error, certificate_words, open_link, tls_context
from fedward_common.sealed import field_head, seal

__all__ = ["Fleet", "NotYet", "Parcel", "Unreadable", "expires_at", "pack_up"]

MOST_OBJECTS = 1000
RECORD = f"{ConfigRecord.__qualname__}{HEAD_VALUE_DIVIDER}".encode()
FASTEST_AHEAD_S, SLOWEST_BEHIND_S = 4.0, 295.0  # Flower takes 5 s ahead and 305 s behind
LATER = {408, 425, 429}
ELSEWHERE = {404, 405, 407, 421}

T = TypeVar("T")


class NotYet(Fault):
    """The operator is still writing the message: part of it is not there yet."""

    soonest_s, latest_s = 0.1, 1.0


class Oversized(Away):
    """An answer was larger than what is taken: of an object, it makes its message unreadable."""


class Unreadable(Unusable):
    """A message that cannot be handed on; its sender can be told."""

    def __init__(self, what: str, *, hint: str, head: Message) -> None:
        """Keep what a reply needs."""
        super().__init__(what, hint=hint)
        self.head = head


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A reply, ready to be pushed as often as it takes: the bytes of its objects and nothing else of it."""

    head: Message
    tree: ObjectTree
    contents: dict[str, bytes]


@dataclass(kw_only=True)
class _Incoming:
    """A message that has been pulled and whose objects are being pulled."""

    head: Message
    root: str
    wanted: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(content) for content in self.contents.values())


class Fleet:
    """One connection to the operator, under one key.

    Guarantees:
      - Every failure is a ``Fault`` or a ``Dropped``; no signal is sent, the process is never ended.
      - What was pulled of a message before a fault is kept; the next ``pull`` goes on there.
      - A reply may be pushed any number of times and counts once.
    """

    def __init__(self, folder: CourierFolder, watch: Watch) -> None:
        """Connect to nothing yet."""
        self._file, self._watch = folder.file, watch
        self._client = _client(folder, watch)
        self._key = public_key_to_bytes(folder.node_public_key)
        self._incoming: _Incoming | None = None
        self.node_id: int | None = None

    def activate(self) -> int:
        """Come online under the number that the operator's Flower gave this key.

        Raises:
          Fault: it did not work.
        """
        request = ActivateNodeRequest(public_key=self._key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        self.node_id = self._insist(lambda: self._client.ActivateNode(request)).node_id
        return self.node_id

    def resume(self, node_id: int) -> bool:
        """Go on under a number from before a crash. False: it is no longer ours, activate.

        Raises:
          Fault: it cannot be known.
        """
        self.node_id = node_id
        try:
            self.heartbeat()
        except NotEnrolled:
            self.node_id = None
        return self.node_id is not None

    def heartbeat(self) -> None:
        """Say that this node is there.

        Raises:
          Fault: it did not work.
        """
        request = SendNodeHeartbeatRequest(node=self._node(), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        if not self._insist(lambda: self._client.SendNodeHeartbeat(request)).success:
            raise _not_enrolled(self._file.server)

    def pull(self) -> Message | None:
        """The next message, whole and confirmed; None when there is none.

        Raises:
          Fault: it did not work; call again.
          Unreadable: the message is no message of ours; its sender can be told.
          Dropped: the message is given up.
        """
        try:
            if self._incoming is None:
                request = PullMessagesRequest(node=self._node())
                self._incoming = _first(self._call(lambda: self._client.PullMessages(request)))
            if self._incoming is None:
                return None
            self._fetch(self._incoming)
            message = _inflated(self._incoming)
        except Dropped:
            self._incoming = None
            raise
        self._incoming = None
        return message

    def push(self, parcel: Parcel) -> None:
        """Deliver a reply.

        Raises:
          Fault: it did not work; push the same parcel again.
          Dropped: nobody wants it any more.
        """
        request = PushMessagesRequest(
            node=self._node(),
            messages_list=[message_to_proto(parcel.head)],
            message_object_trees=[parcel.tree],
            # how long it took depends on the data, so it is not said
            clientapp_runtime_list=[0.0],
        )
        answer = self._call(lambda: self._client.PushMessages(request))
        missing = set(answer.objects_to_push)
        for object_id, content in parcel.contents.items():
            if object_id in missing:
                self._push_object(parcel.head.metadata.run_id, answer.session_id, object_id, content)

    def deactivate(self) -> None:
        """Go offline, so that the same key can come online again at once.

        Raises:
          Fault: it did not work.
        """
        request = DeactivateNodeRequest(node_id=self._node().node_id)
        self._insist(lambda: self._client.DeactivateNode(request))
        self.node_id = None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _node(self) -> Node:
        if self.node_id is None:
            raise _not_enrolled(self._file.server)
        return Node(node_id=self.node_id)

    def _fetch(self, incoming: _Incoming) -> None:
        run_id = incoming.head.metadata.run_id
        for object_id in incoming.wanted:
            try:
                if object_id not in incoming.contents:
                    incoming.contents[object_id] = self._pull_object(run_id, object_id)
                small = incoming.size <= self._file.largest_mb << 20
            except Oversized:  # asked for again it would be as large
                small = False
            if not small:
                what = f"a message is larger than largest_mb = {self._file.largest_mb}"
                raise Unreadable(what, hint="raise largest_mb in courier.toml", head=incoming.head)
        request = ConfirmMessageReceivedRequest(node=self._node(), run_id=run_id, message_object_id=incoming.root)
        self._call(lambda: self._client.ConfirmMessageReceived(request))

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        request = PullObjectRequest(node=self._node(), run_id=run_id, object_id=object_id)
        answer = self._call(lambda: self._client.PullObject(request))
        if not answer.object_found:
            raise RunOver("a message is no longer there", hint="its run has ended, or it was given up meanwhile")
        if not answer.object_available:
            raise NotYet("a message is not whole yet", hint="the operator is still writing it")
        return answer.object_content

    def _push_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> None:
        head = PushObjectRequest(node=self._node(), run_id=run_id, object_id=object_id, session_id=session_id)
        request: Any = _WithContent(head, content)
        if not self._call(lambda: self._client.PushObject(request)).stored:
            raise Away("the operator did not keep a part of a reply", hint="it is sent again, as a whole")

    def _call(self, call: Callable[[], T]) -> T:
        with self._as_faults():
            return call()

    def _insist(self, call: Callable[[], T]) -> T:
        """For what is no message: there is nothing to give up, so every failure is tried again."""
        try:
            return self._call(call)
        except Dropped as dropped:
            raise Away(str(dropped), hint=dropped.hint) from None

    @contextmanager
    def _as_faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            fault = _of_status(error.response, self._file.server, self._watch.ahead_s)
            if isinstance(fault, NotEnrolled):
                self.node_id = None
            raise fault from None
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError, OSError) as error:
            raise _of_link(error, self._file.server, self._file.proxy) from None
        except (ValueError, httpx.InvalidURL):  # an answer that is no protobuf
            raise _no_flower(self._file.server) from None


def expires_at(message: Message) -> float:
    """The time, in seconds of UTC, after which nobody wants a reply."""
    return message.metadata.created_at + message.metadata.ttl


def pack_up(reply: Message) -> Parcel:
    """Turn a reply into the bytes of its objects, and use its content up meanwhile.

    Guarantees:
      - What is pushed is byte for byte what Flower would push.
      - The bytes of a large record exist at most three times meanwhile, and once afterwards.
    """
    if reply.has_content():
        for name in reply.content:
            seal(reply.content, name)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree = get_object_tree(reply)
        contents = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    head = remove_content_from_message(reply) if reply.has_content() else reply
    return Parcel(head=head, tree=tree, contents=contents)


class _WithContent:
    """A request whose content is added on the wire."""

    def __init__(self, head: PushObjectRequest, content: bytes) -> None:
        self._head, self._content = head, content

    def SerializeToString(self, *, deterministic: bool) -> bytes:
        field = field_head(PushObjectRequest, "object_content", len(self._content))
        return b"".join((self._head.SerializeToString(deterministic=deterministic), field, self._content))


def _open_records(contents: dict[str, bytes]) -> dict[str, InflatableObject]:
    """What Flower's ``inflate`` does for records, which would hold the bytes five times."""
    opened: dict[str, InflatableObject] = {}
    for name in list(contents):
        if contents[name].startswith(RECORD):
            _, _, body = contents.pop(name).partition(HEAD_BODY_DIVIDER)
            proto = ProtoConfigRecord.FromString(body)
            del body
            values = record_value_dict_from_proto({item.key: item.value for item in proto.items})
            opened[name] = ConfigRecord(values, keep_input=False)
    return opened


class _Versions:
    """Says which Flower this is. Flower's own interceptor would end the process where versions differ."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._ours = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._ours)
        response = call_next(context)
        if response.is_error and get_runtime_version_incompatibility_exit_message(response.text):
            raise OtherVersion(
                f"{self._server} runs another version of Flower",
                hint="install the fedward version that the operator names",
            )
        return response


def _client(folder: CourierFolder, watch: Watch) -> FleetHttpClient:
    context, key = tls_context(folder.ca_pem), folder.node_key
    client = FleetHttpClient(
        f"https://{folder.file.address}",
        interceptors=[_Versions(folder.file.server), NodeAuthHttpInterceptor(key, key.public_key())],
        verify=context,
    )
    client._client.close()  # it would follow redirects and the environment's proxies
    client._client = open_link(context, proxy=folder.file.proxy, watch=watch)
    return client


def _first(answer: PullMessagesResponse) -> _Incoming | None:
    if not answer.messages_list:
        return None
    try:
        head = message_from_proto(answer.messages_list[0])
        tree = answer.message_object_trees[0]
        wanted = list(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))
    except Exception:
        raise Unusable("a message cannot be read", hint="the operator runs something else than fedward") from None
    if len(wanted) > MOST_OBJECTS:
        raise Unreadable("a message has too many parts", hint="the operator runs another app", head=head)
    return _Incoming(head=head, root=tree.object_id, wanted=wanted)


def _inflated(incoming: _Incoming) -> Message:
    """The message, under the header that Flower sent: the one inside is not looked at."""
    try:
        opened = _open_records(incoming.contents)
        inner = inflate_object_from_contents(incoming.root, incoming.contents, objects=opened)
        content = inner.content if isinstance(inner, Message) else None
    except Exception:  # whatever the bytes of a stranger do to Flower's reader
        content = None
    if not isinstance(content, RecordDict):
        raise Unreadable("a message cannot be read", hint="the operator runs another app", head=incoming.head)
    return make_message(metadata=incoming.head.metadata, content=content)


def _of_status(response: httpx.Response, server: str, ahead_s: float | None) -> Fault | Dropped:
    status, known = response.status_code, FlowerError.from_json(response.text)
    code = known.code if known else None
    if code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        return RunOver("the run is not running any more", hint="nothing to do; the trainer keeps the reply")
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return _not_activated(server)
    if status == 413:
        return TooLarge(
            f"{server} takes no message of this size",
            hint="the operator's limit is gateway.max_body_bytes in server.toml",
        )
    if status in (401, 403):
        return _of_clocks(server, ahead_s) or _not_enrolled(server)
    if status in ELSEWHERE or status < 400:
        return _no_flower(server)
    if status in LATER or status >= 500:
        return Away(f"{server} answers {status}: later", hint="the operator's server is starting, or busy; just wait")
    return Unusable(f"{server} answers {status}", hint="the operator runs something else than this version of fedward")


def _of_clocks(server: str, ahead_s: float | None) -> WrongClock | None:
    if ahead_s is None or -SLOWEST_BEHIND_S < ahead_s < FASTEST_AHEAD_S:
        return None
    way = "ahead of" if ahead_s > 0 else "behind"
    return WrongClock(
        f"this machine's clock is {abs(ahead_s):.0f} s {way} that of {server}, which refuses such signatures",
        hint="set the clock, best by NTP (timedatectl set-ntp true); if it is right, ask the operator to set theirs",
    )


def _not_enrolled(server: str) -> NotEnrolled:
    return NotEnrolled(
        f"{server} does not know this site's node key",
        hint="send the enrolment (NAME.pub) to the operator; or ask whether the site was revoked",
    )


def _not_activated(server: str) -> NotActivated:
    return NotActivated(
        f"{server} does not let this node key come online",
        hint="it goes by itself within a minute after a crash; else another courier runs with a copy of this key, "
        "or the operator has not enrolled it yet",
    )


def _no_flower(server: str) -> Away:
    return Away(f"what answers at {server} is no fedward gateway", hint="check server in courier.toml")


def _of_link(error: Exception, server: str, proxy: str) -> Fault:
    if refused := certificate_error(error):
        why, hint = certificate_words(refused)
        return WrongCertificate(f"{server} has no certificate that the CA file vouches for: {why}", hint=hint)
    if isinstance(error, OverLimit):
        return Oversized(f"an answer of {server} is over the limit", hint="raise largest_mb in courier.toml")
    if isinstance(error, httpx.ProxyError):
        return Away("the proxy refuses to connect", hint=f"allow CONNECT to {server} at the proxy, or check proxy")
    if proxy:
        return Away(f"no answer from {server} through the proxy", hint="check the network and proxy in courier.toml")
    return Away(f"no answer from {server}", hint="check the network; a firewall must let this machine connect there")
