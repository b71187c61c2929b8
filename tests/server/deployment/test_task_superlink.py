"""The conductor's Grid on Flower's own state and handlers: what sites can do to each other there."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

import fedward_server.deployment.task as module
from fedward_common.codec import PlanParts
from fedward_common.wire import pack, unpack
from fedward_server.deployment.task import Outcome, TaskGrid
from support.linked import Link, Site

# Flower's migrations, of its dependency
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
ADAPTER = bytes(200_000)
SMALL = 20_000


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(module, "PULL_S", 0.0)
    return Link(tmp_path)


@pytest.fixture
def grid(link: Link) -> Iterator[TaskGrid]:
    made = link.grid(most_bytes=300_000)
    yield made
    made.close()


def send(grid: TaskGrid, site: Site, number: int = 1, *, body: bytes = ADAPTER) -> str:
    """One plan of an attempt; the parts are no real ones, and nobody here reads them."""
    parts = PlanParts(head=b"%d for %d" % (number, site.node), body=body, signature=b"s" * 64)
    plan = Message(content=pack(parts), dst_node_id=site.node, message_type="train", group_id="1", ttl=600.0)
    (sent,) = grid.push_messages([plan])
    return sent


def leaves(tree: ObjectTree) -> list[str]:
    return [name for child in tree.children for name in leaves(child)] or [tree.object_id]


def named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def answer(size: int = 10) -> RecordDict:
    return RecordDict({"fedward": ConfigRecord({"message": b"u" * size})})


def poison(site: Site) -> None:
    """Pull the plan, let go of it, and announce its parts with children that they do not have."""
    got = site.pull()
    assert got is not None
    header, tree = got
    site.confirm(tree.object_id)
    bogus = [ObjectTree(object_id=name, children=[ObjectTree(object_id=named(name))]) for name in leaves(tree)]
    with pytest.raises(ValueError, match="different children"):  # of what is held; no other part is anybody else's
        site.reply(header, answer(), tree=ObjectTree(object_id=named("root"), children=bogus))


def test_no_site_can_make_another_sites_plan_unsendable(link: Link, grid: TaskGrid) -> None:
    evil, good = link.node("evil"), link.node("good")
    for attempt in (1, 2):  # the same adapter again, as in a retry: the name is another one, so it cannot be foreseen
        assert set(grid.get_node_ids()) == {evil.node, good.node}
        assert send(grid, evil, attempt)
        poison(evil)
        assert send(grid, good, attempt)
        got = good.pull()
        assert got is not None
        assert all(good.part(name) for name in leaves(got[1]))


def test_no_site_can_foresee_the_name_of_what_plans_share(link: Link, grid: TaskGrid) -> None:
    site, seen = link.node("a"), []
    for attempt in (1, 2):
        grid.get_node_ids()
        send(grid, site, attempt)
        got = site.pull()
        assert got is not None
        seen.append(set(leaves(got[1])))
    assert not seen[0] & seen[1]


def test_plans_of_an_attempt_share_one_body(link: Link, grid: TaskGrid) -> None:
    for number in range(5):
        send(grid, link.node(f"site{number}"))
    assert len(ADAPTER) < link.held() < len(ADAPTER) + SMALL


def test_what_an_attempt_left_in_the_superlink_is_gone_when_the_next_one_begins(link: Link, grid: TaskGrid) -> None:
    sites = [link.node(name) for name in "abc"]
    for attempt in range(1, 4):
        grid.get_node_ids()
        assert link.held() == 0, attempt
        sent = [send(grid, site, attempt, body=bytes([attempt]) * 100_000) for site in sites]
        for site in sites[1:]:  # the first never asks, the second does not confirm, the third is not waited for
            got = site.pull()
            assert got is not None
            site.reply(got[0], answer(50_000))
        assert len(list(grid.pull_messages([sent[1]]))) == 1
        assert link.held() > 100_000
    grid.finish(Outcome.COMPLETED)
    assert link.held() == 0


def test_an_answer_that_comes_after_its_attempt_is_released_with_a_later_one(link: Link, grid: TaskGrid) -> None:
    late = link.node("late")
    send(grid, late)
    got = late.pull()
    assert got is not None
    grid.get_node_ids()
    late.reply(got[0], answer(50_000))
    assert link.held() > 50_000
    grid.get_node_ids()
    assert link.held() == 0
    asked: list[Any] = []
    link_state_pull = link.state.get_message_res
    link.state.get_message_res = lambda *a, **k: asked.append(a) or link_state_pull(*a, **k)  # type: ignore[method-assign,func-returns-value]
    grid.get_node_ids()
    assert not asked, "nobody is asked for any more"


@pytest.mark.parametrize("size", [250_000, 350_000])
def test_an_answer_over_most_bytes_is_lost(link: Link, grid: TaskGrid, size: int) -> None:
    site = link.node("a")
    sent = send(grid, site)
    got = site.pull()
    assert got is not None
    site.reply(got[0], answer(size))
    (found,) = grid.pull_messages([sent])
    assert found.has_error() is (size > 300_000)
    assert found.metadata.reply_to_message_id == sent
    grid.get_node_ids()
    assert link.held() == 0


def test_an_answer_that_names_another_plan_inside_is_lost(link: Link, grid: TaskGrid) -> None:
    evil, good = link.node("evil"), link.node("good")
    mine, theirs = send(grid, evil), send(grid, good)
    got = evil.pull()
    assert got is not None
    evil.reply(got[0], answer(), inside=theirs)
    (found,) = grid.pull_messages([mine])
    assert (found.has_error(), found.metadata.reply_to_message_id) == (True, mine)


def test_what_is_held_by_a_message_to_ourselves_is_no_answer(link: Link, grid: TaskGrid) -> None:
    sent = send(grid, link.node("a"))
    assert list(grid.pull_messages([sent])) == []
    assert not grid._mailbox._here


def test_an_answer_of_many_parts_is_lost_unread(link: Link, grid: TaskGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    site = link.node("a")
    sent = send(grid, site)
    got = site.pull()
    assert got is not None
    site.reply(got[0], RecordDict({f"r{n}": ConfigRecord({"message": b"%d" % n}) for n in range(20)}))
    monkeypatch.setattr(TaskGrid, "_part", lambda *_: pytest.fail("a part was fetched"))
    (found,) = grid.pull_messages([sent])
    assert found.has_error()


class Wire(httpx.SyncByteStream):
    """An answer that comes from a file, piece by piece, as over a network: nobody holds it but who reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while piece := file.read(65_536):
                yield piece


@dataclass
class Gauge:
    """Puts a SuperLink behind a network, and measures what this process holds from the moment that an update leaves it.

    Of the operating system, not of Python: protobuf's memory is its own. The SuperLink's own work does not count.
    """

    link: Link
    at: int = 0
    peak: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.look()
        held = resident("VmRSS") - self.at if self.at else 0
        answer = self._answer(request)
        self.at = resident("VmRSS") - held if self.at else 0  # what the SuperLink keeps is not ours
        Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
        return answer

    def look(self) -> None:
        if self.at:
            self.peak = max(self.peak, resident("VmHWM") - self.at)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        whole = self.link._answer(request)
        size, path = len(whole.content), self.link.root / "answer"
        if size < 1_000_000:
            return whole
        path.write_bytes(whole.content)
        del whole
        settle()
        self.at = resident("VmRSS")
        return httpx.Response(200, headers={"content-length": str(size)}, stream=Wire(path))


def settle() -> None:
    """Give back what earlier tests left behind: returned while an update is measured, it would hide the update."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_an_update_exists_once_in_memory_from_its_first_byte_on(link: Link) -> None:
    size = 40_000_000
    grid = link.grid()
    gauge = Gauge(link)
    client: Any = grid._runtime_client
    hooks = client._client.event_hooks
    client._client = httpx.Client(transport=httpx.MockTransport(gauge), event_hooks=hooks)
    site = link.node("a")
    for _ in range(3):  # less than one copy is no measurement: the kernel took pages of something else meanwhile
        sent = send(grid, site)
        got = site.pull()
        assert got is not None
        site.reply(got[0], answer(size))
        (found,) = grid.pull_messages([sent])
        assert len(unpack(found.content)) == size
        gauge.look()
        assert gauge.peak < 1.1 * size
        if gauge.peak > size:
            break
        del found
        gauge.at = gauge.peak = 0
    assert gauge.peak > size
    grid.close()


def test_the_plans_body_is_no_longer_in_memory_once_answers_are_fetched(link: Link, grid: TaskGrid) -> None:
    body, site = bytes(100_000), link.node("a")
    before = sys.getrefcount(body)
    sent = send(grid, site, body=body)
    assert sys.getrefcount(body) > before, "the plans of an attempt share it"
    got = site.pull()
    assert got is not None
    site.reply(got[0], answer())
    assert len(list(grid.pull_messages([sent]))) == 1
    assert sys.getrefcount(body) == before
    assert send(grid, site, 2, body=body), "a plan that was not sent before may follow"
