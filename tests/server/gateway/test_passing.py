"""What passing decides for itself; what both doors do is in test_process.py."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h11
import pytest

from fedward_server.gateway import passing
from fedward_server.gateway.limits import Limits, Pace
from fedward_server.gateway.passing import Exchange, Passing, Refused
from fedward_server.gateway.peer import Peer
from fedward_server.gateway.roll import Roll
from fedward_server.gateway.visits import Visit
from support.doors import reply


class Sender:
    """A peer that sends this body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.http = SimpleNamespace(they_are_waiting_for_100_continue=False)

    async def body(self, pace: Pace) -> AsyncIterator[bytes]:
        for at in range(0, len(self._body), 100):
            yield self._body[at : at + 100]


def sender(body: bytes) -> Peer:
    return cast(Peer, Sender(body))


def exchange(route: str, node: str = "a") -> Exchange:
    request = h11.Request(method="POST", target=f"/v1/fleet/{route}", headers=[("host", "x")])
    return Exchange(request=request, route=route, node=node)


def made(tmp_path: Path, **limits: Any) -> Passing:
    def nowhere() -> Any:
        pytest.fail("nothing goes up")

    return Passing(Limits(**limits), Roll(tmp_path), nowhere, io.StringIO(), lambda *_: None)


async def _sent(made: Passing, body: bytes, route: str, node: str = "a") -> bytes:
    return b"".join([piece async for piece in made._pieces(sender(body), exchange(route, node))])


def test_a_node_sends_no_faster_than_its_budget_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(passing.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    passes = made(tmp_path, max_body_bytes=1000, bytes_per_s=0.5)
    body = bytes(1000)
    for _ in range(2):  # an update, and that once again
        assert asyncio.run(_sent(passes, body, "push-object")) == body
    assert not slept
    asyncio.run(_sent(passes, bytes(100), "push-object"))
    assert slept == [pytest.approx(200, rel=0.05)]
    asyncio.run(_sent(passes, body, "push-object", node="b"))
    assert len(slept) == 1


@pytest.mark.parametrize(("route", "most"), [("push-object", 3000), ("push-messages", 1000), ("pull-messages", 2000)])
def test_only_objects_may_be_large(tmp_path: Path, route: str, most: int) -> None:
    passes = made(tmp_path, max_body_bytes=3000, max_reply_bytes=1000, max_small_bytes=2000)
    assert asyncio.run(_sent(passes, bytes(most), route)) == bytes(most)
    with pytest.raises(Refused) as refused:
        asyncio.run(_sent(passes, bytes(most + 1), route))
    assert refused.value.status == 413


def test_replies_have_a_rate_of_their_own(tmp_path: Path) -> None:
    passes = made(tmp_path, replies_per_s=0.001, replies_burst=3)

    def pushed(node: str) -> bytes:
        async def read() -> bytes:
            return b"".join(
                [piece async for piece in await passes._reply(sender(reply()), exchange("push-messages", node))]
            )

        return asyncio.run(read())

    assert [pushed("a") for _ in range(3)] == [reply()] * 3
    with pytest.raises(Refused) as refused:
        pushed("a")
    assert refused.value.status == 503  # it is sent again; anything else would be the reply's end
    assert pushed("b") == reply()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Caller:
    """A peer that asks and takes the answer."""

    def __init__(self) -> None:
        self.http, self.bodyless, self.answered = SimpleNamespace(their_state=h11.DONE), False, False
        self.statuses: list[int] = []

    async def send(self, response: h11.Response, *rest: object, within_s: float) -> None:
        self.statuses.append(response.status_code)

    def reuse(self) -> bool:
        return True


def test_a_disk_that_takes_no_log_cuts_no_connection(tmp_path: Path) -> None:
    passes, caller = made(tmp_path), Caller()
    passes._log = FullDisk()
    request = h11.Request(method="POST", target="/v1/fleet/pull-messages", headers=[("host", "x")])
    visit = Visit(address="192.0.2.7")
    assert asyncio.run(passes._request(cast(Peer, caller), request, visit)) is True
    assert caller.statuses == [403]
