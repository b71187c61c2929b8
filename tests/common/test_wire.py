from __future__ import annotations

from dataclasses import replace

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.codec import PlanParts, PlanWriter, encode_plan, encode_reply
from fedward_common.errors import MalformedMessage
from fedward_common.round import Code, Refusal
from fedward_common.wire import body_of, pack, salted, unpack, with_body
from support.nouns import KEY, START, plan_from

PLAN = plan_from()
PARTS = PlanWriter(START, key=KEY).parts(PLAN)
WHOLE = encode_plan(PLAN, START, key=KEY)
REFUSAL = encode_reply(Refusal(plan_id="0" * 64, code=Code.EXPIRED), key=KEY)


@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=200))
def test_bytes_come_back_as_they_were(data: bytes) -> None:
    assert unpack(pack(data)) == data


def test_the_parts_of_a_plan_come_back_as_the_plan() -> None:
    assert unpack(pack(PARTS)) == WHOLE


def message_of(content: RecordDict) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(content, 1000, "train", group_id="1")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


@pytest.mark.parametrize(("packed", "data"), [(PARTS, WHOLE), (REFUSAL, REFUSAL)], ids=["plan", "reply"])
def test_messages_survive_flowers_own_bytes(packed: bytes | PlanParts, data: bytes) -> None:
    message = message_of(pack(packed))
    assert unpack(message_from_proto(message_to_proto(message)).content) == data
    # as Flower's Grid sends it: every record for itself, under the digest of its content
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    back = inflate_object_from_contents(message.object_id, objects)
    assert isinstance(back, Message)
    assert unpack(back.content) == data


def test_the_plans_of_a_round_share_the_record_of_their_body() -> None:
    writer = PlanWriter(START, key=KEY)
    plans = [writer.parts(PLAN.addressed_to(site * 64, ledger_head="")) for site in "ab"]
    contents = [pack(plan) for plan in plans]
    bodies = {content["fedward.body"].object_id for content in contents}
    heads = {content["fedward"].object_id for content in contents}
    assert (len(bodies), len(heads)) == (1, 2)
    assert plans[0].body is plans[1].body is contents[1]["fedward.body"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"other": ConfigRecord({"message": b"x"})}),
        RecordDict({"fedward": ConfigRecord({"message": "text"})}),
        RecordDict({"fedward": ConfigRecord({"message": 5})}),
        RecordDict({"fedward": ConfigRecord({"message": [b"x"]})}),
        RecordDict({"fedward": ConfigRecord({"message": []})}),
        RecordDict({"fedward": ConfigRecord({"other": b"x"})}),
        RecordDict({"fedward": ConfigRecord({"message": b"x", "other": b"x"})}),
        RecordDict({"fedward": MetricRecord({"message": 1.0})}),
        RecordDict({"fedward": ArrayRecord({})}),
        RecordDict({"fedward": ConfigRecord({"message": b"x"}), "more": ConfigRecord({})}),
        RecordDict({"fedward": ConfigRecord({"message": b"x"}), "fedward.body": ConfigRecord({"message": b"x"})}),
        RecordDict({"fedward.body": ConfigRecord({"message": b"x"})}),
    ],
)
def test_other_content_is_malformed(content: RecordDict) -> None:
    with pytest.raises(MalformedMessage):
        unpack(content)


def plan_of(edges: object, body: object = PARTS.body, **more: object) -> RecordDict:
    """A plan's records with something else in them."""
    records = {"fedward": ConfigRecord({"message": edges}), "fedward.body": ConfigRecord({"message": body})}  # type: ignore[dict-item]
    return RecordDict({**records, **more})  # type: ignore[dict-item]


HEAD, BODY, SIGNATURE = PARTS
OTHER = {
    "no body": RecordDict({"fedward": ConfigRecord({"message": [HEAD, SIGNATURE]})}),
    "too many records": plan_of([HEAD, SIGNATURE], more=ConfigRecord({"message": b""})),
    "one edge": plan_of([HEAD]),
    "three edges": plan_of([HEAD, SIGNATURE, b""]),
    "no edges": plan_of([]),
    "edges in another order": plan_of([SIGNATURE, HEAD]),
    "edges that are text": plan_of(["head", "signature"]),
    "edges that are numbers": plan_of([1, 2]),
    "a body that is a list": plan_of([HEAD, SIGNATURE], [BODY]),
    "a body that is text": plan_of([HEAD, SIGNATURE], "body"),
    "cut a byte early": plan_of([HEAD[:-1], SIGNATURE], HEAD[-1:] + BODY),
    "cut a byte late": plan_of([HEAD + BODY[:1], SIGNATURE], BODY[1:]),
    "the signature cut early": plan_of([HEAD, BODY[-1:] + SIGNATURE], BODY[:-1]),
    "the signature cut late": plan_of([HEAD, SIGNATURE[1:]], BODY + SIGNATURE[:1]),
    "all in the head": plan_of([WHOLE, b""], b""),
    "a body that is too short": plan_of([HEAD, SIGNATURE], BODY[4:]),
    "a reply in parts": plan_of([REFUSAL[:-64], REFUSAL[-64:]], b""),
    "a plan in one piece": pack(WHOLE),
}


@pytest.mark.parametrize("content", OTHER.values(), ids=OTHER)
def test_what_it_accepts_pack_would_spell_in_the_same_records(content: RecordDict) -> None:
    with pytest.raises(MalformedMessage):
        unpack(content)


def test_an_empty_adapters_plan_has_its_parts_too() -> None:
    spec = replace(START.spec, groups={"head": ()}, tensors={})
    from fedward_common.adapter import Adapter

    empty = Adapter.zeros(spec)
    plan = plan_from(empty)
    assert unpack(pack(PlanWriter(empty, key=KEY).parts(plan))) == encode_plan(plan, empty, key=KEY)


def test_a_salted_body_is_read_as_the_plan_and_has_a_name_of_its_own() -> None:
    content = pack(PARTS)
    shared = [salted(PARTS.body) for _ in range(2)]
    plans = [with_body(content, each) for each in shared]
    assert [unpack(plan) for plan in plans] == [WHOLE, WHOLE]
    assert [body_of(plan) for plan in (content, *plans)] == [PARTS.body] * 3
    names = {each["fedward.body"].object_id for each in (content, *plans)}
    assert len(names) == 3
    assert body_of(pack(REFUSAL)) is None


@pytest.mark.parametrize("salt", [b"", b"x" * 15, b"x" * 17, "x" * 16, [b"x" * 16], 5])
def test_a_salt_of_another_kind_is_malformed(salt: object) -> None:
    body = ConfigRecord({"message": PARTS.body, "salt": salt})  # type: ignore[dict-item]
    with pytest.raises(MalformedMessage):
        unpack(with_body(pack(PARTS), RecordDict({"fedward.body": body})))
