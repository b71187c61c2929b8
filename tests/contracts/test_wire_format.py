"""The wire format, version 2: messages made once must decode for ever, and the same nouns must give the same bytes.

If a test here fails, the format changed: that needs a new version number in the codec, not a new constant here.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from fedward_common.codec import VERSION, PlanWriter, decode_plan, decode_reply, encode_plan, encode_reply
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import Code, Refusal, Update
from fedward_common.wire import pack, unpack
from support.nouns import HEAD, KEY, START, plan_from, update_for
from support.signed import taken_apart

METRICS = MetricSums(correct=1.5, units=3.0, loss=-0.0)
PLAN_ID = "9d53c37f7a3c46f0f09a7108e8483991e87a821642ef2c1ccfe2f34b3b264bfa"
SPEC_DIGEST = "0ecbe728330cf2e10cc222491c85230365a38d81d2bb8a01400bd8d11a717d69"
ADAPTER_DIGEST = "a09b16976df523ba895968c8b7605acccb1a8bf25518bca8e6a299c786a25e58"
PLAN = """
RldSRAIAAXQEAAB7InBsYW4iOnsiYWRhcHRlcl9kaWdlc3QiOiJhMDliMTY5NzZkZjUyM2JhODk1OTY4YzhiNzYwNWFjY2NiMWE4YmYyNTUxOG
JjYThlNmEyOTljNzg2YTI1ZTU4IiwiZXZhbHVhdGUiOmZhbHNlLCJleHBpcmVzX2F0IjoxMDAwMDAwMDAwLjAsImxlZGdlcl9oZWFkIjoiIiwi
cHVibGljX3NlZWQiOjMsInJvdW5kIjoxLCJydW5faWQiOiJjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2
RjZGNkY2RjZGNkY2RjZGNkIiwic2l0ZSI6IiIsInNwZWNfZGlnZXN0IjoiMGVjYmU3MjgzMzBjZjJlMTBjYzIyMjQ5MWM4NTIzMDM2NWEzOGQ4
MWQyYmI4YTAxNDAwYmQ4ZDExYTcxN2Q2OSIsInN0YWdlIjowLCJzdGF0ZXNfbWluX3NpdGVzIjoxLCJ0ZXJtcyI6eyJjbGlwX25vcm0iOjEuMC
wiZGVsdGEiOjFlLTA1LCJlcHNpbG9uIjo4LjAsIm1heF9yZWNvcmRzX3Blcl91bml0IjoxLCJtZXRyaWNzIjp7ImV2YWx1YXRpb25zIjoxLCJz
aGFyZSI6MS4wLCJ2YWxpZGF0aW9uX2ZyYWN0aW9uIjowLjA1fSwic3RhZ2VzIjpbeyJsb2NhbF9zdGVwcyI6MSwibmFtZSI6ImhlYWQiLCJub2
lzZV9yYXRpbyI6MS4wLCJyb3VuZHMiOjIsInNhbXBsaW5nX3JhdGUiOjAuNX0seyJsb2NhbF9zdGVwcyI6MiwibmFtZSI6ImFkYXB0ZXIiLCJu
b2lzZV9yYXRpbyI6MC4zLCJyb3VuZHMiOjMsInNhbXBsaW5nX3JhdGUiOjAuMX1dLCJ1bml0IjoicmVjb3JkIn0sInRyYWluaW5nIjp7Imdyb3
VwcyI6WyJoZWFkIl0sImxlYXJuaW5nX3JhdGUiOjAuNSwibG9jYWxfc3RlcHMiOjEsIm9wdGltaXNlciI6InNnZCJ9LCJ3ZWlnaHRzIjoibm9t
aW5hbCJ9LCJzcGVjIjp7ImFscGhhIjoyLjAsImJhc2VfZmluZ2VycHJpbnQiOiJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYW
JhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiIiwiZHR5cGUiOiJmbG9hdDMyIiwiZ3JvdXBzIjp7ImFkYXB0ZXIiOlsibGF5ZXIubG9yYV9C
Il0sImhlYWQiOlsiaGVhZC5iaWFzIiwiaGVhZC53ZWlnaHQiXX0sIm1ldGhvZCI6ImxvcmEiLCJyYW5rIjoxLCJ0YXJnZXRfbW9kdWxlcyI6Wy
JxdWVyeSJdLCJ0ZW5zb3JzIjp7ImhlYWQuYmlhcyI6WzJdLCJoZWFkLndlaWdodCI6WzIsMl0sImxheWVyLmxvcmFfQiI6WzMsMV19fX0kAAAA
AAAAAAAAAD8AAAC/AACAPwAAAEAAAEBAAACAQAAAgD4AAAAAAAAAgOm2qOaNamGsOBXRRFcBvUAm5UVcBs9Q0dxBm25YvpbpzROb12CC9ns3yz
BuUn6bbB7BFEZIc81fPUUbEDTWNQk=
"""
UPDATE = """
RldSRAIAAoIBAAB7Imd1YXJhbnRlZSI6eyJkZWx0YSI6MWUtMDUsImV2ZW50cyI6W3siY291bnQiOjIsIm5vaXNlX211bHRpcGxpZXIiOjIuMC
wic2FtcGxpbmdfcmF0ZSI6MC41LCJzaWRlIjoidHJhaW5pbmcifV0sInVuaXQiOiJyZWNvcmQiLCJ3YWl2ZXJzIjpbXX0sImxlZGdlcl9oZWFk
IjoiIiwibWV0cmljcyI6eyJjb3JyZWN0IjoxLjUsImxvc3MiOi0wLjAsInVuaXRzIjozLjB9LCJub21pbmFsX3VuaXRzIjoxMCwicGxhbl9pZC
I6IjlkNTNjMzdmN2EzYzQ2ZjBmMDlhNzEwOGU4NDgzOTkxZTg3YTgyMTY0MmVmMmMxY2NmZTJmMzRiM2IyNjRiZmEiLCJzcGVjX2RpZ2VzdCI6
IjM5YjBiYmQ0NmZlNGRkNDFlYmJjZjhkMjY4YmI5NWU1NTlhMjYzYzExOGVhZGQzZmZmNDZhMzQ0NDk2ZDQ4YmUifRgAAAAAAAAAAACAPwAAAE
AAAEBAAACAQAAAoEAAAMBA3zXZoPeDdrW2kGnq+X9xU5pZ41KAOO0qtq1IJCtMcEw7UMWS6trHtSTeZrkvN0HlLcUSawYVLsbn70jCr3C8DA==
"""
REFUSAL = """
RldSRAIAA2kAAAB7ImNvZGUiOiJ0ZXJtc19ub3RfYWxsb3dlZCIsInBsYW5faWQiOiI5ZDUzYzM3ZjdhM2M0NmYwZjA5YTcxMDhlODQ4Mzk5MW
U4N2E4MjE2NDJlZjJjMWNjZmUyZjM0YjNiMjY0YmZhIn0AAAAAAAAAAPEryyvF+bG1Pd8ohHih2btF3N5ekZdZ6kKgDBZD9Ssh1G5tjwQhvw5f
V+BkzIBala/PvIGwGhq4i9mWl8uK4wY=
"""


def test_version_2_is_what_is_spoken() -> None:
    assert VERSION == 2


def test_a_plan_of_version_2_still_decodes() -> None:
    plan, adapter = decode_plan(base64.b64decode(PLAN), public_key=KEY.public_key())
    assert plan == plan_from()
    assert adapter.vector.tobytes() == START.vector.tobytes()
    assert (plan.plan_id, adapter.spec.digest, adapter.digest) == (PLAN_ID, SPEC_DIGEST, ADAPTER_DIGEST)


def test_an_update_of_version_2_still_decodes() -> None:
    update = decode_reply(base64.b64decode(UPDATE), public_key=KEY.public_key(), spec=HEAD)
    assert isinstance(update, Update)
    assert replace(update_for(plan_from(), metrics=METRICS), delta=update.delta) == update
    assert update.delta.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert encode_reply(update, key=KEY) == base64.b64decode(UPDATE)


def test_a_refusal_of_version_2_still_decodes() -> None:
    refusal = decode_reply(base64.b64decode(REFUSAL), public_key=KEY.public_key())
    assert refusal == Refusal(plan_id=PLAN_ID, code=Code.TERMS_NOT_ALLOWED)


def test_the_same_nouns_give_the_same_bytes() -> None:
    assert encode_plan(plan_from(), START, key=KEY) == base64.b64decode(PLAN)
    refusal = Refusal(plan_id=PLAN_ID, code=Code.TERMS_NOT_ALLOWED)
    assert encode_reply(refusal, key=KEY) == base64.b64decode(REFUSAL)


def test_the_layout_is_the_documented_one() -> None:
    for kind, text in ((1, PLAN), (2, UPDATE), (3, REFUSAL)):
        assert taken_apart(base64.b64decode(text))[0] == kind


def test_inside_flower_a_plan_is_three_parts_and_a_reply_is_one() -> None:
    data = base64.b64decode(PLAN)
    plan = pack(PlanWriter(START, key=KEY).parts(plan_from()))
    assert {name: dict(record) for name, record in plan.items()} == {
        "fedward": {"message": [data[: -64 - 36], data[-64:]]},
        "fedward.body": {"message": data[-64 - 36 : -64]},
    }
    reply = pack(base64.b64decode(REFUSAL))
    assert {name: dict(record) for name, record in reply.items()} == {"fedward": {"message": base64.b64decode(REFUSAL)}}
    assert (unpack(plan), unpack(reply)) == (data, base64.b64decode(REFUSAL))
