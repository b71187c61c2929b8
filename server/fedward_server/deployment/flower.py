"""The operator's private calls of Flower: nodes, runs, tasks. The Grid of one task is in ``task``.

flwr is pinned to 1.41.0 because of these two modules (and of the courier's at the sites); another version is tried by
tests/deployment. Whatever goes wrong is one of two errors: :class:`FlowerAway` (wait and ask again) or
:class:`FlowerRefused` (asking again is of no use). Flower's own retry helper sends SIGINT to its process when a token
is no longer valid and waits without end otherwise; none of that is used here. This module must not know what a site or
a fedward run is.

Example:
    >>> pointer_bundle() == pointer_bundle()
    True
"""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient

from fedward_common.errors import FedwardError
from fedward_server.deployment.superlink import Upstream

__all__ = [
    "Acquired",
    "Control",
    "FlowerAway",
    "FlowerRefused",
    "Node",
    "Tasks",
    "call",
    "node_key_pem",
    "pointer_bundle",
    "runtime_client",
    "translated",
    "typed",
]

_COMPONENT = "flwr-serverapp"
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_UNFINISHED = frozenset({"pending", "starting", "running"})
_CALL_S = 10.0  # one call of the Control or Runtime API
_BODY_S = 60.0  # the same with a message's body
_PAGE = 100
_VOID = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_POINTER = """\
[project]
name = "fedward"
version = "1.0.0"
description = "A pointer to installed code. Nothing in this bundle is imported, by anybody."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedward"

[tool.flwr.app.components]
serverapp = "fedward_server.app:server_app"
clientapp = "fedward_client.app:client_app"
"""

Answer = TypeVar("Answer")


class FlowerAway(FedwardError):
    """The SuperLink does not answer, or answers that it cannot now: ask again later."""


class FlowerRefused(FedwardError):
    """The SuperLink understood and said no: a stopped run, a token that is no longer valid, an unknown node."""

    token_is_void = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node as the SuperLink knows it; ``key`` is its public key, PEM."""

    node_id: int
    key: bytes
    online: bool
    last_seen: float | None


@dataclass(frozen=True, kw_only=True)
class Acquired:
    """A claimed task: the Flower run that it belongs to, and the token that acts for it. The token is never shown."""

    flower_run: int
    token: str

    def __repr__(self) -> str:
        """Without the token."""
        return f"Acquired(flower_run={self.flower_run})"


def node_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A node's public key as Flower stores and compares it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def pointer_bundle() -> bytes:
    """Flower's bundle of a run: a zip whose two text files point to installed code, the same bytes every time.

    Guarantees:
      - It holds no code.
    """
    text = _POINTER.encode()
    manifest = f"pyproject.toml,{hashlib.sha256(text).hexdigest()},{len(text) * 8}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in (("pyproject.toml", text), (".info/CONTENT", manifest)):
            bundle.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


class Control:
    """Nodes and runs, through the Control API. Every call ends within seconds, with an answer or one of two errors."""

    def __init__(self, upstream: Upstream) -> None:
        """Nothing is sent yet."""
        self._client = ControlHttpClient(
            f"https://{upstream.address}",
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr")],
            verify=upstream.context(),
            timeout=_CALL_S,
        )

    def register_node(self, key: ec.EllipticCurvePublicKey, *, name: str) -> int:
        """Let a node in and return its id.

        Raises:
          FlowerRefused: the key is registered already, or was.
        """
        request = RegisterNodeRequest(public_key=node_key_pem(key), name=name)
        return int(call(self._client.RegisterNode, request).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out."""
        call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[Node]:
        """All registered nodes."""
        answer = call(self._client.ListNodes, ListNodesRequest())
        return [_node(info) for info in answer.nodes_info if info.status != "unregistered"]

    def start_run(self, bundle: bytes) -> int:
        """Make a new Flower run and return its id."""
        fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
        answer = call(self._client.StartRun, StartRunRequest(fab=fab))
        if not answer.HasField("run_id"):
            raise FlowerRefused("the SuperLink started no run", hint="read state/logs/superlink.log")
        return int(answer.run_id)

    def stop_run(self, flower_run: int) -> None:
        """End a Flower run: nodes drop its messages. One that is over already, or unknown, is left as it is."""
        with suppress(FlowerRefused):
            call(self._client.StopRun, StopRunRequest(run_id=flower_run))

    def unfinished_runs(self) -> set[int]:
        """Flower runs that are not over; the SuperLink forgets what the others left behind."""
        found: dict[int, bool] = {}
        for skip in itertools.count(step=_PAGE):
            runs = call(self._client.ListRuns, ListRunsRequest(limit=_PAGE, skip=skip)).run_dict
            fresh = {int(key): run.status.status in _UNFINISHED for key, run in runs.items() if int(key) not in found}
            found |= fresh
            if len(runs) < _PAGE or not fresh:
                break
        return {key for key, unfinished in found.items() if unfinished}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Tasks:
    """Claims the ServerApp tasks of our runs, and no other kind, with the executor secret."""

    def __init__(self, upstream: Upstream) -> None:
        """Nothing is sent yet."""
        auth = SuperExecAuthHttpInterceptor(master_secret=upstream.secret, protected_methods=_ACQUIRE)
        self._client = runtime_client(upstream, RuntimeHttpClient, auth)

    def acquire(self) -> Acquired | None:
        """Claim the oldest waiting task, or None where none waits."""
        answer = call(self._client.AcquireTask, AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        if not answer.HasField("task") or not answer.token:
            return None
        return Acquired(flower_run=int(answer.task.run_id), token=str(answer.token))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


Client = TypeVar("Client", bound=RuntimeHttpClient)


def runtime_client(
    upstream: Upstream, kind: type[Client], interceptor: Any, *, retry: RetryInvoker | None = None
) -> Client:
    """A client of the Runtime API; ``interceptor`` authenticates. Without ``retry`` a call is short, and tried once."""
    return kind(
        f"https://{upstream.address}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name=_COMPONENT), interceptor],
        verify=upstream.context(),
        timeout=_CALL_S if retry is None else _BODY_S,
        retry_invoker=retry,
    )


def call(function: Callable[[Any], Answer], request: Any) -> Answer:
    """Ask once.

    Raises:
      FlowerAway: nobody answers.
      FlowerRefused: the answer is no.
    """
    return translated(lambda: function(request))


def translated(function: Callable[[], Answer]) -> Answer:
    """What ``function`` returns; whatever goes wrong in it is one of the two errors."""
    try:
        return function()
    except (httpx.HTTPError, ValueError) as error:
        raise typed(error) from None


def typed(error: Exception) -> FlowerAway | FlowerRefused:
    """Which of the two an error of Flower's client is.

    Guarantees:
      - Flower's texts, which may quote what was sent, are not repeated.
    """
    if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
        status = error.response.status_code
        refused = FlowerRefused(f"the SuperLink refused a call ({status})", hint="read state/logs/superlink.log")
        refused.token_is_void = status in _VOID
        return refused
    if isinstance(error, httpx.HTTPError) and "certificate" not in str(error).lower():
        return FlowerAway("the SuperLink does not answer", hint="`fedward-server start` restarts it; wait")
    if isinstance(error, httpx.HTTPError):
        return FlowerRefused(
            "the SuperLink's certificate is not one of our CA", hint="run `fedward-server renew`, then start again"
        )
    return FlowerRefused("the SuperLink's answer is not Flower's", hint="install flwr 1.41.0")


def _node(info: Any) -> Node:
    moments = [_seconds(text) for text in (info.last_activated_at, info.last_deactivated_at) if text]
    seen = [moment for moment in moments if moment is not None]
    if info.online_until:
        # the node promised a sign of life by then, twice a heartbeat after its last one
        seen.append(info.online_until - 2 * info.heartbeat_interval)
    return Node(
        node_id=int(info.node_id),
        key=bytes(info.public_key),
        online=info.status == "online",
        last_seen=max(seen, default=None),
    )


def _seconds(text: str) -> float | None:
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None
