from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from hypothesis import given
from hypothesis import strategies as some

from fedward_client.courier.fleet import pack_up
from fedward_common.wire import pack
from fedward_server.gateway import replies
from fedward_server.gateway.replies import MOST_PARTS, is_reply

NODE = 2**64 - 3
SIXTY_FOUR = "0123456789abcdef" * 4


def pushed(reply: Message) -> PushMessagesRequest:
    """As the courier's ``Fleet.push`` sends it."""
    parcel = pack_up(reply)
    return PushMessagesRequest(
        node=Node(node_id=NODE),
        messages_list=[message_to_proto(parcel.head)],
        message_object_trees=[parcel.tree],
        clientapp_runtime_list=[0.0],
    )


def asked() -> Message:
    told = Metadata(
        run_id=2**63 + 5,
        message_id=SIXTY_FOUR,
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="1",
        created_at=time.time(),
        ttl=600,
        message_type="train",
    )
    return make_message(metadata=told, content=RecordDict())


def good() -> PushMessagesRequest:
    return pushed(Message(pack(b"update"), reply_to=asked()))


@pytest.mark.parametrize("size", [1, 100_000, 256 << 20])
def test_a_couriers_reply_of_any_size_is_a_small_one(size: int) -> None:
    body = pushed(Message(pack(bytes(size)), reply_to=asked())).SerializeToString()
    assert is_reply(body)
    assert len(body) < 1000


def test_a_couriers_reply_that_it_could_not_answer_is_one() -> None:
    assert is_reply(pushed(Message(Error(code=3, reason="MalformedMessage"), reply_to=asked())).SerializeToString())


def _from_the_superlink(push: PushMessagesRequest) -> None:
    push.messages_list[0].metadata.src_node_id = 1


def _answers_nothing(push: PushMessagesRequest) -> None:
    push.messages_list[0].metadata.reply_to_message_id = ""


def _of_nobody(push: PushMessagesRequest) -> None:
    push.node.node_id = push.messages_list[0].metadata.src_node_id = 0


def _another_root(push: PushMessagesRequest) -> None:
    push.message_object_trees[0].object_id = SIXTY_FOUR


def _without_a_root(push: PushMessagesRequest) -> None:
    push.message_object_trees[0].object_id = push.messages_list[0].metadata.message_id = ""


def _too_many_parts(push: PushMessagesRequest) -> None:
    push.message_object_trees[0].children.extend([ObjectTree(object_id=SIXTY_FOUR)] * (MOST_PARTS - 2))


def _too_deep(push: PushMessagesRequest) -> None:
    for _ in range(MOST_PARTS - 2):
        push.message_object_trees[0].children[0].CopyFrom(
            ObjectTree(object_id=SIXTY_FOUR, children=push.message_object_trees[0].children)
        )


def _with_content(push: PushMessagesRequest) -> None:
    push.messages_list[0].content.items.add(key="x")


def _two_messages(push: PushMessagesRequest) -> None:
    push.messages_list.add().CopyFrom(push.messages_list[0])


def _two_trees(push: PushMessagesRequest) -> None:
    push.message_object_trees.add().CopyFrom(push.message_object_trees[0])


def _no_message(push: PushMessagesRequest) -> None:
    del push.messages_list[:]


@pytest.mark.parametrize(
    "forge",
    [
        *(_from_the_superlink, _answers_nothing, _of_nobody, _another_root, _without_a_root, _too_many_parts),
        *(_too_deep, _with_content, _two_messages, _two_trees, _no_message),
    ],
)
def test_it_is_one_message_which_answers_another_under_its_senders_own_number(
    forge: Callable[[PushMessagesRequest], None],
) -> None:
    push = good()
    assert is_reply(push.SerializeToString())
    forge(push)
    assert not is_reply(push.SerializeToString())


def test_its_tree_has_at_most_so_many_parts() -> None:
    push = good()
    push.message_object_trees[0].children.extend([ObjectTree(object_id=SIXTY_FOUR)] * (MOST_PARTS - 3))
    assert is_reply(push.SerializeToString())


def _field(number: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def test_what_two_readers_could_read_differently_is_none() -> None:
    push, said = good().SerializeToString(), ProtoMessage(metadata=ProtoMetadata(src_node_id=1))
    assert is_reply(push)
    for more in (
        _field(1, Node(node_id=1).SerializeToString()),  # protobuf merges it with the first
        _field(2, said.SerializeToString()),
        _field(3, b""),
        _field(9, b"unknown"),
        b"\x08\x01",  # a field with another wire type
        b"\x0b\x0c",  # a group
        b"\x8a\x00\x00",  # a tag that is longer than need be
        b"\x00",
    ):
        assert not is_reply(push + more)


@given(at=some.integers(0, 10_000), byte=some.integers(0, 255), cut=some.integers(0, 400))
def test_flower_reads_it_the_same_way(at: int, byte: int, cut: int) -> None:
    """Whatever is let through is, to protobuf, a reply of its sender and of few parts."""
    changed = bytearray(GOOD)
    changed[at % len(changed)] = byte
    for body in (bytes(changed), GOOD[:cut]):
        if is_reply(body) and (read := _read(body)):
            told = read.messages_list[0].metadata
            assert len(read.messages_list) == len(read.message_object_trees) == 1
            assert told.src_node_id == read.node.node_id != 0
            assert told.reply_to_message_id
            assert told.message_id == read.message_object_trees[0].object_id
            assert sum(1 for _ in _parts(read.message_object_trees[0])) <= MOST_PARTS


def _read(body: bytes) -> PushMessagesRequest | None:
    try:
        read: PushMessagesRequest = PushMessagesRequest.FromString(body)
    except Exception:  # DecodeError, of text that is no UTF-8: Flower refuses it
        return None
    return read


def _parts(tree: ObjectTree) -> Iterator[ObjectTree]:
    yield tree
    for child in tree.children:
        yield from _parts(child)


GOOD = good().SerializeToString()


def test_the_fields_are_those_of_flower() -> None:
    uint64, double = Node.DESCRIPTOR.fields[0].type, ProtoMetadata.DESCRIPTOR.fields_by_name["ttl"].type
    wire = {uint64: 0, double: 1}
    for shape, message in (
        (replies.PUSH, PushMessagesRequest),
        (replies.NODE, Node),
        (replies.MESSAGE, ProtoMessage),
        (replies.METADATA, ProtoMetadata),
        (replies.TREE, ObjectTree),
    ):
        fields = message.DESCRIPTOR.fields
        packed = {4} if message is PushMessagesRequest else set()
        assert dict(shape) == {
            field.number: 2 if field.number in packed else wire.get(field.type, 2) for field in fields
        }
    named = ProtoMetadata.DESCRIPTOR.fields_by_name
    assert [named[name].number for name in ("message_id", "src_node_id", "reply_to_message_id")] == [2, 3, 5]
