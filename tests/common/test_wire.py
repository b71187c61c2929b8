from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import MalformedMessage
from fedward_common.wire import pack, unpack


@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=200))
def test_bytes_come_back_as_they_were(data: bytes) -> None:
    assert unpack(pack(data)) == data


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"other": ConfigRecord({"message": b"x"})}),
        RecordDict({"fedward": ConfigRecord({"message": "text"})}),
        RecordDict({"fedward": ConfigRecord({"message": 5})}),
        RecordDict({"fedward": ConfigRecord({"message": [b"x"]})}),
        RecordDict({"fedward": ConfigRecord({"other": b"x"})}),
        RecordDict({"fedward": MetricRecord({"message": 1.0})}),
        RecordDict({"fedward": ArrayRecord({})}),
        RecordDict({"fedward": ConfigRecord({"message": b"x"}), "more": ConfigRecord({})}),
    ],
)
def test_other_content_is_malformed(content: RecordDict) -> None:
    with pytest.raises(MalformedMessage):
        unpack(content)
