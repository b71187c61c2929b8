from __future__ import annotations

import datetime
import email.utils
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedward_client.courier import fleet as fleet_module
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
from fedward_client.courier.fleet import Fleet, NotYet, Unreadable, pack_up
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.link import Watch
from fedward_common.wire import pack, unpack
from support.fleet_api import (
    DAY,
    NODE,
    Authority,
    FleetApi,
    Trouble,
    courier_folder,
    cut,
    cut_in_the_answer,
    serving,
    status,
)

ROUTES = {
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "pull-object",
    "push-object",
    "confirm-message-received",
}


@pytest.fixture
def fleet(folder: CourierFolder) -> Iterator[Fleet]:
    fleet = Fleet(folder, Watch(largest=1 << 28))
    fleet.node_id = NODE
    yield fleet
    fleet.close()


def flower_error(code: int) -> bytes:
    return json.dumps({"code": code, "detail": "text of the server"}).encode()


def answered(message: Message, data: bytes = b"update") -> Message:
    return Message(pack(data), reply_to=message)


def pulled(fleet: Fleet) -> Message:
    message = fleet.pull()
    assert message is not None
    return message


def test_a_message_goes_in_and_its_reply_out(fleet: Fleet, api: FleetApi) -> None:
    asked = api.send(pack(b"signed plan"))
    assert fleet.activate() == NODE
    message = pulled(fleet)
    assert unpack(message.content) == b"signed plan"
    assert message.metadata.message_id == asked
    fleet.push(pack_up(answered(message)))
    fleet.heartbeat()
    fleet.deactivate()
    assert unpack(api.replies()[asked].content) == b"update"
    assert api.confirmed == [asked]
    assert set(api.asked) == ROUTES  # and no other


def test_no_message_is_none(fleet: Fleet) -> None:
    assert fleet.pull() is None


def test_bytes_and_lists_of_bytes_survive(fleet: Fleet, api: FleetApi) -> None:
    parts = [bytes([n]) * 100_000 for n in range(3)] + [b"", bytes(range(256))]
    content = RecordDict(
        {"a": ConfigRecord({"list": parts, "one": b"\x00\xff"}), "b": ConfigRecord({"body": b"x" * 7})}
    )
    asked = api.send(content)
    message = pulled(fleet)
    assert message.content == content
    fleet.push(pack_up(Message(message.content, reply_to=message)))
    assert api.replies()[asked].content == content


@pytest.mark.parametrize(
    "content",
    [
        pack(b"\x00 \xff" * 1000),
        RecordDict(
            {"b": ConfigRecord({"z": b"1", "a": b""}), "a": ConfigRecord({"x": 1.5, "y": b"1"}), "e": ConfigRecord()}
        ),
        RecordDict({"list": ConfigRecord({"l": [b"1", b"2"], "s": "t", "i": [1, 2], "t": True})}),
    ],
)
def test_what_is_pushed_is_byte_for_byte_what_flower_would_push(content: RecordDict) -> None:
    flower, ours = (reply_of(pickle.loads(pickle.dumps(content))) for _ in range(2))  # noqa: S301
    flower.metadata.__dict__["_message_id"] = flower.object_id
    expected = {name: part.deflate() for name, part in get_all_nested_objects(flower).items()}
    parcel = pack_up(ours)
    assert parcel.contents == expected
    assert parcel.tree == get_object_tree(flower)
    assert parcel.head.metadata.message_id == flower.object_id
    assert getattr(inflate_object_from_contents(parcel.tree.object_id, dict(expected)), "content", None) == content


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 70_000])
def test_a_request_with_its_content_added_is_the_request(size: int) -> None:
    head = PushObjectRequest(run_id=2**63, object_id="a", session_id="s")
    data = fleet_module._WithContent(head, b"x" * size).SerializeToString(deterministic=True)
    expected = PushObjectRequest(run_id=2**63, object_id="a", session_id="s", object_content=b"x" * size)
    assert PushObjectRequest.FromString(data) == expected


def reply_of(content: RecordDict) -> Message:
    metadata = Metadata(1, "", 2, 3, "x", "", 5.0, 6.0, "train")
    return make_message(metadata=metadata, content=content)


def test_how_long_training_took_is_not_told(fleet: Fleet, api: FleetApi) -> None:
    api.send(pack(b"plan"))
    message = pulled(fleet)
    time.sleep(0.05)
    fleet.push(pack_up(answered(message)))
    assert api.runtimes == [0.0]


def test_an_error_reply_has_no_content(fleet: Fleet, api: FleetApi) -> None:
    asked = api.send(pack(b"plan"))
    fleet.push(pack_up(Message(Error(code=2, reason="OSError"), reply_to=pulled(fleet))))
    reply = api.replies()[asked]
    assert reply.has_error()
    assert reply.error.reason == "OSError"


def test_every_request_is_signed_and_says_its_version(fleet: Fleet, api: FleetApi) -> None:
    fleet.activate()
    fleet.pull()
    for headers in api.headers:
        assert {"flwr-public-key", "flwr-signature", "flwr-timestamp"} <= set(headers)
        assert headers["accept-encoding"] == "identity"
        assert any("version" in name for name in headers)


AWAY = [
    status(500),
    status(502),
    status(503),
    status(504),
    status(429),
    status(408),
    status(404),
    status(301, headers={"location": "https://127.0.0.1:1/elsewhere"}),
    status(200, b"\xff\xff\xff garbage"),
    status(200, b"\x1f\x8b", {"content-encoding": "gzip"}),
    cut,
    cut_in_the_answer,
]


@pytest.mark.parametrize("trouble", AWAY)
def test_whatever_answers_instead_is_away(fleet: Fleet, api: FleetApi, trouble: Trouble) -> None:
    api.trouble("pull-messages", trouble)
    with pytest.raises(Away) as caught:
        fleet.pull()
    assert caught.value.hint
    assert fleet.pull() is None


LOST = [status(503), cut_in_the_answer]


@pytest.mark.parametrize("trouble", LOST)
@pytest.mark.parametrize("route", ["pull-messages", "pull-object", "confirm-message-received"])
def test_what_was_pulled_before_a_fault_is_kept(fleet: Fleet, api: FleetApi, route: str, trouble: Trouble) -> None:
    asked = api.send(pack(b"plan"))
    api.trouble(route, trouble, trouble)
    for _ in range(2):
        with pytest.raises(Away):
            fleet.pull()
    assert pulled(fleet).metadata.message_id == asked
    assert api.asked.count("pull-messages") == (3 if route == "pull-messages" else 1)


@pytest.mark.parametrize("trouble", LOST)
@pytest.mark.parametrize("route", ["push-messages", "push-object"])
def test_a_reply_may_be_pushed_any_number_of_times(fleet: Fleet, api: FleetApi, route: str, trouble: Trouble) -> None:
    asked = api.send(pack(b"plan"))
    parcel = pack_up(answered(pulled(fleet)))
    api.trouble(route, trouble, trouble)
    for _ in range(2):
        with pytest.raises(Away):
            fleet.push(parcel)
    fleet.push(parcel)
    fleet.push(parcel)
    assert unpack(api.replies()[asked].content) == b"update"


def test_a_part_that_was_not_kept_is_sent_again(fleet: Fleet, api: FleetApi) -> None:
    api.send(pack(b"plan"))
    parcel = pack_up(answered(pulled(fleet)))
    api.trouble("push-object", status(200, b""))  # stored = False
    with pytest.raises(Away, match="did not keep"):
        fleet.push(parcel)


@pytest.mark.parametrize("code", [401, 403])
def test_a_key_that_nobody_knows(fleet: Fleet, api: FleetApi, code: int) -> None:
    api.trouble("pull-messages", status(code))
    with pytest.raises(NotEnrolled) as caught:
        fleet.pull()
    assert "operator" in caught.value.hint
    assert fleet.node_id is None  # enrolled again, it may have another number


def test_a_heartbeat_of_a_node_that_was_removed(fleet: Fleet, api: FleetApi) -> None:
    api.node_known = False
    with pytest.raises(NotEnrolled):
        fleet.heartbeat()


def test_a_node_that_still_counts_as_online(fleet: Fleet, api: FleetApi) -> None:
    api.trouble("activate-node", status(412, flower_error(2004)))
    with pytest.raises(NotActivated, match="come online"):
        fleet.activate()


def test_going_on_under_the_number_from_before(fleet: Fleet, api: FleetApi) -> None:
    fleet.node_id = None
    assert fleet.resume(NODE)
    assert fleet.pull() is None
    assert not fleet.resume(NODE + 1)
    assert fleet.node_id is None
    assert "activate-node" not in api.asked


@pytest.mark.parametrize("seconds", [6, 3600, -400])
def test_a_clock_that_is_wrong_is_told_from_a_key_that_is(fleet: Fleet, api: FleetApi, seconds: int) -> None:
    theirs = email.utils.formatdate(time.time() - seconds, usegmt=True)
    api.trouble("pull-messages", status(401, headers={"date": theirs}))
    with pytest.raises(WrongClock, match="ahead" if seconds > 0 else "behind") as caught:
        fleet.pull()
    assert "NTP" in caught.value.hint


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026", "\xff"])
def test_a_date_that_says_nothing_accuses_no_clock(fleet: Fleet, api: FleetApi, date: str) -> None:
    api.trouble("pull-messages", status(401, headers={"date": date}))
    with pytest.raises(NotEnrolled):
        fleet.pull()


@pytest.mark.parametrize("route", ["pull-object", "confirm-message-received"])
def test_a_message_of_a_run_that_has_ended_is_dropped(fleet: Fleet, api: FleetApi, route: str) -> None:
    api.send(pack(b"old"))
    second = api.send(pack(b"new"))
    api.trouble(route, status(403, flower_error(2007)))
    with pytest.raises(RunOver):
        fleet.pull()
    assert pulled(fleet).metadata.message_id == second


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(status(403, flower_error(2007)), RunOver), (status(413), TooLarge), (status(400), Unusable)],
)
def test_a_reply_that_nobody_wants_is_dropped(
    fleet: Fleet, api: FleetApi, answer: Trouble, kind: type[Dropped]
) -> None:
    api.send(pack(b"plan"))
    parcel = pack_up(answered(pulled(fleet)))
    api.trouble("push-messages", answer)
    with pytest.raises(kind):
        fleet.push(parcel)


def test_a_message_that_is_still_being_written(fleet: Fleet, api: FleetApi) -> None:
    asked = api.send(pack(b"plan"))
    late = api.objects[asked]
    api.objects[asked] = b""
    with pytest.raises(NotYet):
        fleet.pull()
    api.objects[asked] = late
    assert pulled(fleet).metadata.message_id == asked


def test_a_message_over_the_limit_is_refused_and_its_sender_known(
    api: FleetApi, authority: Authority, tmp_path: Path
) -> None:
    fleet = Fleet(courier_folder(tmp_path, api.address, authority.pem, largest_mb=1), Watch(largest=1 << 28))
    fleet.node_id = NODE
    asked = api.send(pack(bytes(2 << 20)))
    with pytest.raises(Unreadable, match="largest_mb") as caught:
        fleet.pull()
    assert caught.value.head.metadata.message_id == asked
    assert fleet.pull() is None
    fleet.close()


def test_an_answer_over_the_limit_is_not_kept_and_does_not_hold_up_what_comes_after(
    api: FleetApi, folder: CourierFolder
) -> None:
    fleet = Fleet(folder, Watch(largest=1000))
    fleet.node_id = NODE
    asked = api.send(pack(bytes(5000)))
    with pytest.raises(Unreadable, match="largest_mb") as caught:
        fleet.pull()
    assert caught.value.head.metadata.message_id == asked
    after = api.send(pack(b"small"))
    assert pulled(fleet).metadata.message_id == after
    fleet.close()


@pytest.mark.parametrize("code", [400, 413, 412])
def test_a_heartbeat_and_an_activation_that_fail_are_faults_whatever_the_answer(
    fleet: Fleet, api: FleetApi, code: int
) -> None:
    """A fault is waited out; anything else would end the thread that beats."""
    for route in ("send-node-heartbeat", "activate-node", "deactivate-node"):
        api.always[route] = status(code, b'{"code": 2003, "detail": "no"}')
    for call in (fleet.heartbeat, fleet.activate, fleet.deactivate):
        fleet.node_id = NODE
        with pytest.raises(Fault):
            call()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: b"Message" + content[7:].replace(b"RecordDict", b"RacordDict"),
        lambda content: b"pickle  3\x00abc",
        lambda content: b"\xff" * 50,
    ],
)
def test_a_message_that_flower_cannot_read_is_answered_not_believed(fleet: Fleet, api: FleetApi, spoil: object) -> None:
    assert callable(spoil)
    asked = api.send(pack(b"plan"))
    for name, content in list(api.objects.items()):
        if content.startswith(b"RecordDict"):
            api.objects[name] = spoil(content) or b"x"
    with pytest.raises(Unreadable) as caught:
        fleet.pull()
    assert caught.value.head.metadata.message_id == asked
    assert fleet.pull() is None


def test_a_message_without_a_header_is_dropped(fleet: Fleet, api: FleetApi) -> None:
    api.send(pack(b"plan"))
    head, tree = api.waiting.popleft()
    head.ClearField("metadata")
    tree.ClearField("children")
    api.waiting.append((head, tree))
    with pytest.raises(Dropped):
        fleet.pull()


def test_the_header_inside_a_message_is_not_looked_at(fleet: Fleet, api: FleetApi) -> None:
    api.send(pack(b"plan"), run_id=11)
    head, tree = api.waiting.popleft()
    head.metadata.run_id = 12
    api.waiting.append((head, tree))
    assert pulled(fleet).metadata.run_id == 12


def test_another_version_of_flower_does_not_end_the_process(
    fleet: Fleet, api: FleetApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "get_runtime_version_incompatibility_exit_message", lambda text: "exit now")
    api.trouble("pull-messages", status(426))
    with pytest.raises(OtherVersion):
        fleet.pull()


def test_flower_s_own_answer_about_versions_is_understood(fleet: Fleet, api: FleetApi) -> None:
    from flwr.supercore.error import ApiErrorCode

    code = next(each for each in ApiErrorCode if "VERSION" in each.name)
    api.trouble("pull-messages", status(412, flower_error(code)))
    with pytest.raises(OtherVersion):
        fleet.pull()


def test_no_text_of_the_server_is_repeated(fleet: Fleet, api: FleetApi) -> None:
    evil = b"patient \x1b[31m"
    for code in (400, 401, 403, 404, 412, 413, 429, 500):
        api.trouble("pull-messages", status(code, evil))
        fleet.node_id = NODE
        with pytest.raises((Fault, Dropped)) as caught:
            fleet.pull()
        assert "patient" not in str(caught.value) + caught.value.hint


class TestWhoAnswers:
    """Certificates."""

    def refused(self, address: str, ca_pem: bytes, tmp_path: Path) -> WrongCertificate:
        fleet = Fleet(courier_folder(tmp_path, address, ca_pem), Watch(largest=1 << 20))
        with pytest.raises(WrongCertificate) as caught:
            fleet.activate()
        fleet.close()
        return caught.value

    def test_of_another_ca(self, api: FleetApi, tmp_path: Path) -> None:
        fault = self.refused(api.address, Authority.make().pem, tmp_path)
        assert "another CA" in str(fault)
        assert "proxy" in fault.hint
        assert api.asked == []

    def test_for_another_address(self, authority: Authority, tmp_path: Path) -> None:
        with serving(authority.serve(tmp_path, names=("10.0.0.1",))) as api:
            assert "another address" in str(self.refused(api.address, authority.pem, tmp_path))

    def test_for_another_name(self, authority: Authority, tmp_path: Path) -> None:
        with serving(authority.serve(tmp_path, names=("fed.example.org",))) as api:
            address = api.address.replace("127.0.0.1", "localhost")
            fault = self.refused(address, authority.pem, tmp_path)
        assert "another name" in str(fault)

    @pytest.mark.parametrize(("age", "word"), [(DAY * 40, "expired"), (-DAY * 5, "not valid yet")])
    def test_out_of_its_time(self, authority: Authority, tmp_path: Path, age: datetime.timedelta, word: str) -> None:
        with serving(authority.serve(tmp_path, age=age)) as api:
            fault = self.refused(api.address, authority.pem, tmp_path)
        assert word in str(fault)
        assert "clock" in fault.hint

    def test_a_server_that_is_not_there(self, authority: Authority, tmp_path: Path) -> None:
        fleet = Fleet(courier_folder(tmp_path, "127.0.0.1:1", authority.pem), Watch(largest=1 << 20))
        with pytest.raises(Away, match="no answer"):
            fleet.activate()
        fleet.close()
