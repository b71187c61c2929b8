from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.message_pb2 import PullObjectResponse

from fedward_common.sealed import FRAME_BYTES, PULLED, seal, value_start
from support.memory import traced

SIZES = [0, 1, 127, 128, 16_383, 16_384, 2_100_000]


def answer(record: ConfigRecord) -> bytes:
    made = PullObjectResponse(object_found=True, object_available=True, object_content=record.deflate())
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_on_the_wire_are_flowers_own(size: int) -> None:
    flowers = ConfigRecord({"message": bytes(size), "salt": b"s" * 16})
    content = RecordDict({"r": ConfigRecord(dict(flowers))})
    seal(content, "r")
    sealed = content["r"]
    assert isinstance(sealed, ConfigRecord)
    assert (sealed.deflate(), sealed.object_id, dict(sealed)) == (flowers.deflate(), flowers.object_id, {})


def test_a_record_of_other_things_is_left_alone() -> None:
    content = RecordDict({"r": ConfigRecord({"message": [b"a", b"b"]})})
    seal(content, "r")
    assert content["r"] == ConfigRecord({"message": [b"a", b"b"]})


def test_sealing_takes_the_bytes_once_more() -> None:
    size = 4_000_000
    content = RecordDict({"r": ConfigRecord({"message": bytes(size)})})
    with traced() as peak:
        seal(content, "r")
    assert peak() < 1.05 * size


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_of_a_record_are_found_in_the_answer_that_brings_it(size: int) -> None:
    whole = answer(ConfigRecord({"message": b"x" * size}))
    assert value_start(whole[:FRAME_BYTES], "message", size=len(whole)) == len(whole) - size
    assert value_start(whole[:FRAME_BYTES], "message", size=len(whole) + 1) is None
    assert value_start(whole[:FRAME_BYTES], "other", size=len(whole)) is None
    assert value_start(PULLED, "message", size=len(PULLED)) is None
