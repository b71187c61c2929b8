"""The server and the stub together, in one process, with any answer behind them."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedward_client.door import door_pb2, door_pb2_grpc
from fedward_client.door.credentials import TRAINER, Half, Pair, Published, publish
from fedward_client.door.parts import HEADER_ROOM, PART_BYTES, Status
from fedward_client.door.stub import RemoteDoor
from fedward_client.installation.site_file import ReleaseAt
from fedward_client.release import Gate
from fedward_client.trainer.service import TrainerServer
from fedward_client.trainer.slots import Slots
from fedward_common.errors import DoorClosed, DoorError, DoorRefused, OutputError
from support.trainer import Served, serving, short_folder

MIB = 2**20


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def channel(served: Served, half: Half | None = None) -> Any:
    one = half or served.pair.courier
    return grpc.secure_channel(
        f"unix:{served.place.socket}",
        grpc.ssl_channel_credentials(one.peer, one.key, one.certificate),
        options=[("grpc.ssl_target_name_override", TRAINER), ("grpc.use_local_subchannel_pool", 1)],
    )


def status_of(served: Served, *parts: Any) -> tuple[str, str]:
    with channel(served) as open_channel, pytest.raises(grpc.RpcError) as error:
        list(door_pb2_grpc.DoorStub(open_channel).Answer(iter(parts)))
    return error.value.code().name, error.value.details()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- bytes in, bytes out -------------------------------------------------------------
def test_bytes_pass_unchanged_in_both_directions(folder: Path) -> None:
    with serving(folder, answer=lambda data: data[::-1]) as served:
        for data in (b"x", b"plan" * 1000, bytes(range(256)) * (3 * 2**12) + b"end"):
            assert served.door.answer(data) == data[::-1]
        assert served.door.ready()


def test_a_hundred_megabytes_pass_in_less_than_two_seconds(folder: Path) -> None:
    data = bytes(100 * MIB)

    def passing(served: Served, plan: bytes) -> float:
        began = time.monotonic()
        assert len(served.door.answer(plan)) == len(data) + 5 - len(plan)
        return time.monotonic() - began

    with serving(folder, answer=lambda plan: data if plan == b"plan!" else b"reply") as served:
        there = min(passing(served, data) for _ in range(3))
        back = min(passing(served, b"plan!") for _ in range(3))
    assert there < 2 and back < 2, f"{there:.2f} s there, {back:.2f} s back"


# ---- who is heard -------------------------------------------------------------------------
def test_nobody_without_the_other_half_of_these_keys_is_heard(folder: Path) -> None:
    seen: list[bytes] = []
    with serving(folder, answer=lambda data: seen.append(data) or data) as served:  # type: ignore[func-returns-value]
        right, wrong = served.pair.courier, Pair.make()
        strangers = [
            wrong.courier,
            Half(key=wrong.courier.key, certificate=wrong.courier.certificate, peer=right.peer),
            Half(key=served.pair.trainer.key, certificate=served.pair.trainer.certificate, peer=right.peer),
        ]
        for stranger in strangers:
            with pytest.raises(DoorRefused, match="does not know this courier"):
                RemoteDoor(served.place.socket, stranger).answer(b"plan")
            assert not RemoteDoor(served.place.socket, stranger).ready()
        keyless = grpc.ssl_channel_credentials(right.peer)
        name = [("grpc.ssl_target_name_override", TRAINER), ("grpc.use_local_subchannel_pool", 1)]
        for made in (
            grpc.secure_channel(f"unix:{served.place.socket}", keyless, options=name),
            grpc.insecure_channel(f"unix:{served.place.socket}"),
        ):
            with made, pytest.raises(grpc.RpcError):
                list(door_pb2_grpc.DoorStub(made).Answer(iter([door_pb2.PlanPart(size=0)])))
        assert served.door.answer(b"plan") == b"plan"
    assert seen == [b"plan"]


def test_a_courier_notices_keys_of_a_later_start(folder: Path) -> None:
    with serving(folder) as served:
        publish(Pair.make().courier, served.place)
        door = RemoteDoor(served.place.socket, Published(served.place))
        with pytest.raises(DoorRefused):
            door.answer(b"plan")
        publish(served.pair.courier, served.place)
        assert door.answer(b"plan") == b"plan"


def test_two_couriers_are_served_in_turn(folder: Path) -> None:
    with serving(folder, answer=lambda data: time.sleep(0.2) or data) as served, ThreadPoolExecutor(2) as both:  # type: ignore[func-returns-value]
        doors = [RemoteDoor(served.place.socket, served.pair.courier) for _ in range(2)]
        assert list(both.map(lambda door, data: door.answer(data), doors, (b"one", b"two"))) == [b"one", b"two"]


# ---- limits --------------------------------------------------------------------------------
def test_a_message_over_the_limit_is_refused_before_any_of_it_is_kept(folder: Path) -> None:
    seen: list[bytes] = []
    with serving(folder, answer=lambda data: seen.append(data) or data, max_update_bytes=1000) as served:  # type: ignore[func-returns-value]
        assert served.door.answer(bytes(1000 + HEADER_ROOM))
        with pytest.raises(DoorRefused, match="too large"):
            served.door.answer(bytes(1001 + HEADER_ROOM))
        huge = door_pb2.PlanPart(size=2**62)
        assert status_of(served, huge) == ("INVALID_ARGUMENT", "too large")
    assert len(seen) == 1


def test_a_reply_over_the_couriers_limit_is_refused(folder: Path) -> None:
    with serving(folder, answer=lambda data: bytes(5000)) as served:
        assert RemoteDoor(served.place.socket, served.pair.courier, max_bytes=5000).answer(b"plan") == bytes(5000)
        with pytest.raises(DoorRefused, match="the reply has 5000 bytes"):
            RemoteDoor(served.place.socket, served.pair.courier, max_bytes=4999).answer(b"plan")


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [door_pb2.PlanPart()],
        [door_pb2.PlanPart(part=b"x")],
        [door_pb2.PlanPart(size=3), door_pb2.PlanPart(part=b"ab")],
        [door_pb2.PlanPart(size=3), door_pb2.PlanPart(part=b"abcd")],
        [door_pb2.PlanPart(size=3), door_pb2.PlanPart(size=3)],
    ],
)
def test_parts_that_are_not_what_was_announced_never_reach_the_site(folder: Path, parts: list[Any]) -> None:
    seen: list[bytes] = []
    with serving(folder, answer=lambda data: seen.append(data) or data) as served:  # type: ignore[func-returns-value]
        assert status_of(served, *parts) == ("INVALID_ARGUMENT", "malformed")
        assert not seen
        assert served.door.answer(b"plan") == b"plan"


def test_a_part_over_its_limit_ends_the_call(folder: Path) -> None:
    with serving(folder) as served:
        part = door_pb2.PlanPart(part=bytes(2 * PART_BYTES))
        assert status_of(served, door_pb2.PlanPart(size=2 * PART_BYTES), part)[0] == "RESOURCE_EXHAUSTED"
        assert served.door.answer(b"plan") == b"plan"


def test_one_plan_is_worked_on_two_wait_and_the_next_courier_hears_busy(folder: Path) -> None:
    go = threading.Event()
    with serving(folder, answer=lambda data: data if go.wait(10) else b"") as served, ThreadPoolExecutor(4) as calls:
        waiting = [calls.submit(served.door.answer, b"plan %d" % number) for number in range(3)]
        until(lambda: served.turns._taken == 3)
        with pytest.raises(DoorClosed):
            served.door.answer(b"one too many")
        assert status_of(served, door_pb2.PlanPart(size=1)) == ("RESOURCE_EXHAUSTED", "busy")
        assert served.door.ready()
        go.set()
        assert sorted(call.result(10) for call in waiting) == [b"plan 0", b"plan 1", b"plan 2"]


def test_a_plan_that_does_not_come_loses_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedward_client.trainer.service.INTAKE_S", 0.3)
    stop = threading.Event()

    def slow() -> Iterator[Any]:
        yield door_pb2.PlanPart(size=10)
        stop.wait(10)

    with serving(folder) as served, channel(served) as open_channel:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError):
            list(door_pb2_grpc.DoorStub(open_channel).Answer(slow()))
        until(lambda: served.turns._taken == 0)
        assert time.monotonic() - began < 5
        stop.set()


# ---- calls that are given up -------------------------------------------------------------
def test_a_call_cancelled_before_its_turn_never_reaches_the_site(folder: Path) -> None:
    go, seen = threading.Event(), []

    def answer(data: bytes) -> bytes:
        seen.append(data)
        return data if go.wait(10) else b""

    with serving(folder, answer=answer, beat_s=60) as served, ThreadPoolExecutor(2) as calls:
        first = calls.submit(served.door.answer, b"first")
        until(lambda: seen == [b"first"])
        second = RemoteDoor(served.place.socket, served.pair.courier)
        given_up = calls.submit(second.answer, b"second")
        until(lambda: served.turns._taken == 2)
        second.close()
        with pytest.raises(DoorClosed):
            given_up.result(10)
        until(lambda: served.turns._taken == 1)
        go.set()
        assert first.result(10) == b"first"
        assert served.door.answer(b"third") == b"third"
    assert seen == [b"first", b"third"]


def test_a_call_cancelled_while_training_goes_on_to_the_end(folder: Path) -> None:
    begun, go, ended = threading.Event(), threading.Event(), []

    def answer(data: bytes) -> bytes:
        begun.set()
        go.wait(10)
        ended.append(data)
        return data

    with serving(folder, answer=answer) as served, ThreadPoolExecutor(1) as calls:
        door = RemoteDoor(served.place.socket, served.pair.courier)
        call = calls.submit(door.answer, b"plan")
        assert begun.wait(10)
        door.close()
        with pytest.raises(DoorClosed):
            call.result(10)
        with pytest.raises(DoorClosed):
            door.answer(b"after the end")
        go.set()
        assert served.door.answer(b"again") == b"again"
    assert ended == [b"plan", b"again"]


# ---- what is said --------------------------------------------------------------------------
def test_heartbeats_are_the_gates_constant_on_a_fixed_clock(folder: Path) -> None:
    with serving(folder, answer=lambda data: time.sleep(0.55) or data) as served, channel(served) as open_channel:  # type: ignore[func-returns-value]
        parts = [door_pb2.PlanPart(size=1), door_pb2.PlanPart(part=b"x")]
        began, heard = time.monotonic(), []
        for reply in door_pb2_grpc.DoorStub(open_channel).Answer(iter(parts)):
            heard.append((reply.WhichOneof("is"), reply.heartbeat, time.monotonic() - began))
    assert [kind for kind, _, _ in heard] == ["heartbeat"] * 5 + ["size", "part"]
    assert {beat for kind, beat, _ in heard if kind == "heartbeat"} == {Gate.HEARTBEAT}
    for number, (_, _, at) in enumerate(heard[:5], start=1):
        assert 0 <= at - 0.1 * number < 0.15


def test_a_busy_trainer_is_waited_for_and_a_silent_one_is_not(folder: Path) -> None:
    with serving(folder, answer=lambda data: time.sleep(1.2) or data) as served:  # type: ignore[func-returns-value]
        patient = RemoteDoor(served.place.socket, served.pair.courier, silence_s=0.6)
        assert patient.answer(b"plan") == b"plan"
        served.server._service._beat_s = 60
        began = time.monotonic()
        with pytest.raises(DoorClosed):
            patient.answer(b"plan")
        assert 0.5 < time.monotonic() - began < 1.1


def test_every_answer_waits_for_its_slot(folder: Path) -> None:
    slots = Slots(release_at=ReleaseAt.SLOT, slot_s=0.5)
    with serving(folder, answer=lambda data: time.sleep(float(data)) or data, slots=slots) as served:  # type: ignore[func-returns-value]
        for work, due in ((b"0", 0.5), (b"0.3", 0.5), (b"0.6", 1.0)):
            began = time.monotonic()
            served.door.answer(work)
            assert 0 <= time.monotonic() - began - due < 0.4  # a busy machine is late, but not by a slot


def test_no_status_carries_the_text_of_an_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(data: bytes) -> bytes:
        raise ValueError("Jane Roe 1950-03-01")

    with serving(folder, answer=fails) as served, caplog.at_level(logging.DEBUG):
        parts = (door_pb2.PlanPart(size=1), door_pb2.PlanPart(part=b"x"))
        assert status_of(served, *parts) == ("INTERNAL", "failed")
        with pytest.raises(DoorClosed) as error:
            served.door.answer(b"plan")
        assert "Jane" not in f"{error.value}{error.value.hint}"
    assert "Jane" not in caplog.text
    assert {status.value for status in Status} == {"away", "busy", "failed", "malformed", "too large"}


# ---- life ----------------------------------------------------------------------------------
def test_health_says_serving_from_open_to_close_and_plans_are_sent_away_before(folder: Path) -> None:
    with serving(folder) as served:
        served.server._service.turns = None
        served.server._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not served.door.ready()
        with pytest.raises(DoorClosed):
            served.door.answer(b"plan")
        assert status_of(served, door_pb2.PlanPart(size=1)) == ("UNAVAILABLE", "away")
        served.server.open(served.turns)
        assert served.door.ready()
        with channel(served) as open_channel:
            stub = health_pb2_grpc.HealthStub(open_channel)
            found = stub.Check(health_pb2.HealthCheckRequest(service="fedward.door.v1.Door"), timeout=5)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        served.server.close()
        assert not served.place.socket.exists() and not served.door.ready()
        with pytest.raises(DoorClosed):
            served.door.answer(b"plan")


def test_a_server_that_closes_ends_its_calls_at_once(folder: Path) -> None:
    go = threading.Event()
    with serving(folder, answer=lambda data: data if go.wait(10) else b"") as served, ThreadPoolExecutor(1) as calls:
        call = calls.submit(served.door.answer, b"plan")
        until(lambda: served.turns._taken == 1)
        began = time.monotonic()
        served.server.close()
        with pytest.raises(DoorClosed):
            call.result(10)
        assert time.monotonic() - began < 2
        go.set()


def test_a_second_trainer_never_takes_the_socket_of_a_living_one(folder: Path) -> None:
    with serving(folder) as served:
        with pytest.raises(OutputError, match="another trainer answers"):
            TrainerServer(served.place, Pair.make().trainer, max_update_bytes=10)
        assert served.door.answer(b"plan") == b"plan"


def test_a_socket_that_a_killed_trainer_left_is_taken_over(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "door.sock"))
    with serving(folder) as served:
        assert served.door.answer(b"plan") == b"plan"


def test_a_door_without_anybody_behind_it_is_closed_and_says_so_at_once(folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DoorClosed) as error:
        RemoteDoor(folder / "door.sock", Pair.make().courier).answer(b"plan")
    assert error.value.hint and issubclass(DoorClosed, DoorError)
    assert time.monotonic() - began < 1
