from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedward_client.app import client_app
from fedward_client.courier import faults, loop
from fedward_client.courier.faults import Away, NotEnrolled, State
from fedward_client.courier.fleet import Fleet
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.heart import Heart
from fedward_client.courier.link import Watch
from fedward_client.courier.loop import Cadence, Courier
from fedward_client.courier.status import Board, Status
from fedward_common.errors import DoorClosed, DoorRefused
from fedward_common.wire import pack, unpack
from support.fleet_api import NODE, FleetApi, Trouble, cut, status

QUICK = Cadence(busy_s=0.01, idle_s=0.01, door_soonest_s=0.01, door_latest_s=0.02)
FAULTS = [faults.Away, faults.NotActivated, faults.NotEnrolled, faults.WrongCertificate, faults.WrongClock]


class Door:
    """Says in order what it was told to say, then shouts."""

    def __init__(self) -> None:
        self.script: list[Exception | Callable[[], None]] = []
        self.asked: list[bytes] = []

    def answer(self, data: bytes) -> bytes:
        self.asked.append(data)
        if self.script:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            step()
        return data.upper()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in FAULTS:
        monkeypatch.setattr(kind, "soonest_s", 0.01)
        monkeypatch.setattr(kind, "latest_s", 0.02)


class Running:
    """A courier at work against the server that plays the Fleet API."""

    def __init__(self, folder: CourierFolder, api: FleetApi) -> None:
        self.api, self.door, self.folder = api, Door(), folder
        now = time.monotonic()
        first = Status(server="s:1", version="1", pid=1, since=0, alive_at=now, contact_at=now)
        self.board = Board(folder.status_path, first)
        self.fleet = Fleet(folder, Watch(largest=1 << 24, progress=self.board.alive))
        self.second = Fleet(folder, Watch(largest=1 << 16))
        self.heart = Heart(self.second, self.board, each_s=0.05)
        self.courier = Courier(
            self.fleet,
            client_app(lambda site: {"north": self.door}[site]),
            name="north",
            board=self.board,
            heart=self.heart,
            session=folder.session,
            cadence=QUICK,
        )
        self.thread = threading.Thread(target=self.courier.run)

    def start(self) -> None:
        self.heart.start()
        self.thread.start()

    def reply(self, asked: str) -> Message:
        self.until(lambda: asked in self.api.replies())
        return self.api.replies()[asked]

    def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.board.status, self.api.asked[-5:])
            time.sleep(0.005)

    def state(self, state: State) -> None:
        self.until(lambda: self.board.status.state is state)


@pytest.fixture
def running(folder: CourierFolder, api: FleetApi) -> Iterator[Running]:
    with run(folder, api) as running:
        yield running


@contextmanager
def run(folder: CourierFolder, api: FleetApi) -> Iterator[Running]:
    running = Running(folder, api)
    try:
        yield running
    finally:
        running.courier.stop()
        running.heart.stop()
        if running.thread.ident is not None:
            running.thread.join(5)
            running.heart.join(5)
        running.fleet.close()
        running.second.close()
        assert not running.thread.is_alive()


def test_messages_go_through_the_door_one_after_the_other(running: Running) -> None:
    asked = [running.api.send(pack(b"plan %d" % n)) for n in range(3)]
    running.start()
    assert [unpack(running.reply(each).content) for each in asked] == [b"PLAN 0", b"PLAN 1", b"PLAN 2"]
    assert running.door.asked == [b"plan 0", b"plan 1", b"plan 2"]
    assert running.board.status.state is State.CONNECTED


@pytest.mark.parametrize("trouble", [status(500), cut])
@pytest.mark.parametrize("route", ["activate-node", "pull-messages", "pull-object", "push-messages", "push-object"])
def test_a_fault_anywhere_only_delays(running: Running, route: str, trouble: Trouble) -> None:
    asked = running.api.send(pack(b"plan"))
    running.api.trouble(route, trouble, trouble, trouble)
    running.start()
    assert unpack(running.reply(asked).content) == b"PLAN"
    assert running.door.asked == [b"plan"]  # trained once


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("route", ["activate-node", "pull-messages", "push-messages"])
def test_a_refused_courier_goes_on_trying_and_comes_back(running: Running, route: str, code: int) -> None:
    asked = running.api.send(pack(b"plan"))
    running.api.always[route] = status(code)
    running.start()
    running.state(State.REFUSED)
    assert "NAME.pub" in running.board.status.hint
    del running.api.always[route]
    assert unpack(running.reply(asked).content) == b"PLAN"
    running.state(State.CONNECTED)


def test_a_node_that_still_counts_as_online_is_tried_until_it_does_not(running: Running) -> None:
    refused = status(412, b'{"code": 2004, "detail": "no"}')
    running.api.trouble("activate-node", *[refused] * 5)
    asked = running.api.send(pack(b"plan"))
    running.start()
    running.reply(asked)
    assert running.api.asked.count("activate-node") == 6


def test_after_a_crash_it_is_back_at_once_under_its_number(folder: CourierFolder, api: FleetApi) -> None:
    folder.session.remember(NODE)
    api.always["activate-node"] = status(412, b'{"code": 2004, "detail": "no"}')
    with run(folder, api) as running:
        asked = api.send(pack(b"plan"))
        running.start()
        running.reply(asked)
    assert "activate-node" not in api.asked


def test_a_number_that_is_no_longer_good_is_forgotten(folder: CourierFolder, api: FleetApi) -> None:
    folder.session.remember(NODE + 1)
    with run(folder, api) as running:
        running.start()
        running.state(State.CONNECTED)
    assert folder.session.recall() == NODE


def test_a_door_with_nobody_behind_it_is_tried_again(running: Running) -> None:
    running.door.script = [DoorClosed("away", hint="") for _ in range(4)]
    asked = running.api.send(pack(b"plan"))
    running.start()
    assert unpack(running.reply(asked).content) == b"PLAN"
    assert running.door.asked == [b"plan"] * 5


def test_a_door_that_stays_closed_is_given_up_when_the_message_expires(running: Running) -> None:
    running.door.script = [DoorClosed("away", hint="") for _ in range(10_000)]
    late = running.api.send(pack(b"late"), ttl=0.5)
    running.start()
    running.until(lambda: running.board.status.hint == loop.NOBODY_AT_DOOR)
    running.until(lambda: running.api.asked[-1] == "pull-messages" and running.api.asked.count("pull-messages") > 1)
    running.door.script.clear()
    asked = running.api.send(pack(b"plan"))
    running.reply(asked)
    assert late not in running.api.replies()  # nobody was told that the trainer was away


@pytest.mark.parametrize(
    ("error", "kind"),
    [(DoorRefused("text", hint="text"), "DoorRefused"), (ValueError("patient John Doe"), "ValueError")],
)
def test_of_an_error_its_type_alone_is_told(
    running: Running, error: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    running.door.script = [error]
    asked = running.api.send(pack(b"plan"))
    running.start()
    reply = running.reply(asked)
    assert (reply.error.code, reply.error.reason) == (2, kind)
    assert not any(b"text" in content or b"John" in content for content in running.api.objects.values())


@pytest.mark.parametrize("content", [RecordDict({}), pack(b"FEDWARD")])
@pytest.mark.parametrize("kind", ["train", "query", "evaluate.more", "system"])
def test_whatever_comes_is_answered(running: Running, content: RecordDict, kind: str) -> None:
    asked = running.api.send(content, kind=kind)
    running.start()
    running.reply(asked)


def test_a_message_that_cannot_be_read_is_answered(running: Running) -> None:
    asked = running.api.send(pack(b"plan"))
    name = next(name for name, content in running.api.objects.items() if content.startswith(b"RecordDict"))
    running.api.objects[name] = b"garbage"
    running.start()
    assert running.reply(asked).error.reason == "Unreadable"
    assert running.door.asked == []


def test_a_finished_reply_is_carried_over_an_outage(running: Running) -> None:
    asked = running.api.send(pack(b"plan"))
    running.api.always["push-messages"] = status(503)
    running.start()
    running.state(State.AWAY)
    time.sleep(0.2)
    del running.api.always["push-messages"]
    running.reply(asked)
    assert running.door.asked == [b"plan"]


def test_a_reply_is_given_up_when_its_message_expires(running: Running) -> None:
    running.api.always["push-messages"] = status(503)
    running.api.send(pack(b"late"), ttl=0.4)
    running.start()
    running.until(lambda: running.api.asked.count("pull-messages") > 1)
    assert running.api.pushed == {}


def test_a_reply_of_a_run_that_has_ended_is_dropped(running: Running) -> None:
    running.api.trouble("push-messages", status(403, b'{"code": 2007, "detail": "no"}'))
    running.api.send(pack(b"old"))
    new = running.api.send(pack(b"new"))
    running.start()
    running.reply(new)
    assert len(running.api.pushed) == 1


def test_heartbeats_go_on_while_the_trainer_trains(running: Running) -> None:
    def train() -> None:
        before = running.api.asked.count("send-node-heartbeat")
        running.until(lambda: running.api.asked.count("send-node-heartbeat") > before + 3)
        assert running.board.status.at_door
        running.api.always["send-node-heartbeat"] = status(503)
        running.state(State.AWAY)
        del running.api.always["send-node-heartbeat"]
        running.state(State.CONNECTED)

    running.door.script = [train]
    asked = running.api.send(pack(b"plan"))
    running.start()
    assert unpack(running.reply(asked).content) == b"PLAN"


def test_an_error_of_our_own_does_not_end_the_loop(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    first = iter([True])
    pull = running.fleet.pull

    def broken() -> Message | None:
        if next(first, False):
            raise RuntimeError("bug")
        return pull()

    monkeypatch.setattr(running.fleet, "pull", broken)
    asked = running.api.send(pack(b"plan"))
    running.start()
    running.reply(asked)


def test_it_stops_soon_whatever_it_waits_for(running: Running) -> None:
    running.api.always["activate-node"] = status(403)
    running.start()
    running.state(State.REFUSED)
    before = time.monotonic()
    running.courier.stop()
    running.thread.join(2)
    assert not running.thread.is_alive()
    assert time.monotonic() - before < 1


def test_a_long_pause_is_marked(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MARK_EACH_S", 0.01)
    marks: list[float] = []
    monkeypatch.setattr(running.board, "alive", lambda: marks.append(0))
    running.courier._sleep(0.2)
    assert 5 < len(marks) < 25


def test_it_asks_more_often_while_a_run_is_active(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(running.courier, "_sleep", slept.append)
    running.courier._cadence = Cadence()
    running.courier._rest()
    running.courier._last_message = time.monotonic() - 100
    running.courier._rest()
    running.courier._last_message = time.monotonic() - 130
    running.courier._rest()
    assert slept == [2.0, 0.5, 2.0]


def test_faults_that_last_are_logged_once(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        running.courier._wait_out(Away("no answer", hint="wait"))
    running.courier._wait_out(NotEnrolled("who", hint="send"))
    assert [record.message for record in caplog.records if record.name == loop.__name__] == [
        "no answer; hint: wait",
        "who; hint: send",
    ]
