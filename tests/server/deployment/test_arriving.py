from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import PullObjectResponse

import fedward_server.deployment.arriving as module
from fedward_common.wire import reply_record
from fedward_server.deployment.arriving import Sieve, Unfit
from support.memory import traced


class Chunks(httpx.SyncByteStream):
    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size, self.closed = data, size, False

    def __iter__(self) -> Iterator[bytes]:
        view = memoryview(self.data)
        for start in range(0, len(view), self.size):
            yield bytes(view[start : start + self.size])

    def close(self) -> None:
        self.closed = True


def answer(record: ConfigRecord) -> bytes:
    """As the SuperLink sends it."""
    made = PullObjectResponse(object_found=True, object_available=True, object_content=record.deflate())
    return bytes(made.SerializeToString())


def sifted(data: bytes, *, chunk: int = 1000) -> tuple[PullObjectResponse, list[bytes]]:
    taken: list[bytes] = []
    left = b"".join(Sieve(Chunks(data, chunk), len(data), taken))
    return PullObjectResponse.FromString(left), taken


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 16_300, 16_384, 70_000, 2_100_000])
@pytest.mark.parametrize("chunk", [7, 65_536])
def test_the_message_of_a_replys_record_is_put_aside(size: int, chunk: int) -> None:
    message = (bytes(range(256)) * (size // 256 + 1))[:size]
    left, taken = sifted(answer(reply_record(message)), chunk=chunk)
    assert taken == [message]
    assert (left.object_found, left.object_available, left.object_content) == (True, True, b"")


def test_the_message_is_in_memory_once() -> None:
    size = 8_000_000
    data = answer(reply_record(bytes(size)))
    with traced() as peak:
        _, taken = sifted(data, chunk=65_536)
        assert peak() < 1.05 * size
    assert len(taken[0]) == size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PullObjectResponse(object_found=True, object_available=False).SerializeToString(),
        answer(ConfigRecord({"message": "text"})),
        answer(ConfigRecord({"other": b"bytes"})),
        answer(ConfigRecord({"message": b"bytes", "more": b"bytes"})),
        answer(reply_record(b"bytes" * 100)) + b"\x08\x01",
    ],
)
def test_anything_else_is_passed_on_as_it_is(data: bytes) -> None:
    taken: list[bytes] = []
    assert b"".join(Sieve(Chunks(data, 7), len(data), taken)) == data
    assert not taken


def test_anything_else_is_unfit_where_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ODD_BYTES", 1000)
    assert sifted(answer(reply_record(bytes(1000))))[1]
    with pytest.raises(Unfit):
        sifted(answer(ConfigRecord({"other": bytes(1000)})))


def test_its_stream_is_closed_with_it() -> None:
    chunks = Chunks(b"", 1)
    Sieve(chunks, 0, []).close()
    assert chunks.closed
