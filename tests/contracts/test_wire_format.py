"""The wire format, version 1: messages made once must decode for ever, and the same nouns must give the same bytes.

If a test here fails, the format changed: that needs a new version number in the codec, not a new constant here.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from fedward_common.codec import VERSION, decode_plan, decode_reply, encode_plan, encode_reply
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import Code, Refusal, Update
from support.nouns import HEAD, KEY, START, plan_from, update_for
from support.signed import taken_apart

METRICS = MetricSums(correct=1.5, units=3.0, loss=-0.0)
PLAN_ID = "0bd95c2a82248352d9c622ace0c365e1382e9ca75c2cd0ea3180b06865892741"
SPEC_DIGEST = "0ecbe728330cf2e10cc222491c85230365a38d81d2bb8a01400bd8d11a717d69"
ADAPTER_DIGEST = "864e52252a8ed0465b1e791e59aec7b8e5359c3751c8bf3170d5761c22776cfa"
PLAN = """
RldSRAEAAVgEAAB7InBsYW4iOnsiYWRhcHRlcl9kaWdlc3QiOiI4NjRlNTIyNTJhOGVkMDQ2NWIxZTc5MWU1OWFlYzdiOGU1MzU5YzM3NTFjOG
JmMzE3MGQ1NzYxYzIyNzc2Y2ZhIiwiZXZhbHVhdGUiOmZhbHNlLCJleHBpcmVzX2F0IjoxMDAwMDAwMDAwLjAsInByZXZpb3VzX2hlYWRzIjpb
XSwicHVibGljX3NlZWQiOjMsInJvdW5kIjoxLCJydW5faWQiOiJjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZGNkY2RjZG
NkY2RjZGNkY2RjZGNkY2RjZGNkIiwic3BlY19kaWdlc3QiOiIwZWNiZTcyODMzMGNmMmUxMGNjMjIyNDkxYzg1MjMwMzY1YTM4ZDgxZDJiYjhh
MDE0MDBiZDhkMTFhNzE3ZDY5Iiwic3RhZ2UiOjAsInRlcm1zIjp7ImNsaXBfbm9ybSI6MS4wLCJkZWx0YSI6MWUtMDUsImVwc2lsb24iOjguMC
wibWF4X3JlY29yZHNfcGVyX3VuaXQiOjEsIm1ldHJpY3MiOnsiZXZhbHVhdGlvbnMiOjEsInNoYXJlIjoxLjAsInZhbGlkYXRpb25fZnJhY3Rp
b24iOjAuMDV9LCJzdGFnZXMiOlt7ImxvY2FsX3N0ZXBzIjoxLCJuYW1lIjoiaGVhZCIsIm5vaXNlX3JhdGlvIjoxLjAsInJvdW5kcyI6Miwic2
FtcGxpbmdfcmF0ZSI6MC41fSx7ImxvY2FsX3N0ZXBzIjoyLCJuYW1lIjoiYWRhcHRlciIsIm5vaXNlX3JhdGlvIjowLjMsInJvdW5kcyI6Mywi
c2FtcGxpbmdfcmF0ZSI6MC4xfV0sInVuaXQiOiJyZWNvcmQifSwidHJhaW5pbmciOnsiZ3JvdXBzIjpbImhlYWQiXSwibGVhcm5pbmdfcmF0ZS
I6MC41LCJsb2NhbF9zdGVwcyI6MSwib3B0aW1pc2VyIjoic2dkIn0sIndlaWdodHMiOiJub21pbmFsIn0sInNwZWMiOnsiYWxwaGEiOjIuMCwi
YmFzZV9maW5nZXJwcmludCI6ImFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYW
IiLCJkdHlwZSI6ImZsb2F0MzIiLCJncm91cHMiOnsiYWRhcHRlciI6WyJsYXllci5sb3JhX0IiXSwiaGVhZCI6WyJoZWFkLmJpYXMiLCJoZWFk
LndlaWdodCJdfSwibWV0aG9kIjoibG9yYSIsInJhbmsiOjEsInRhcmdldF9tb2R1bGVzIjpbInF1ZXJ5Il0sInRlbnNvcnMiOnsiaGVhZC5iaW
FzIjpbMl0sImhlYWQud2VpZ2h0IjpbMiwyXSwibGF5ZXIubG9yYV9CIjpbMywxXX19fSQAAAAAAAAAAAAAPwAAAL8AAIA/AAAAQAAAQEAAAIBA
AACAPgAAAAAAAACAL9Uhl8beV3tf2TnxMoxtL3HtNXo1KXtQ1GTlNMCiEOQry3GugOkHLr4kGcBZLcvopbt8aTQ9CW/zo948gLQnCA==
"""
UPDATE = """
RldSRAEAAoIBAAB7Imd1YXJhbnRlZSI6eyJkZWx0YSI6MWUtMDUsImV2ZW50cyI6W3siY291bnQiOjIsIm5vaXNlX211bHRpcGxpZXIiOjIuMC
wic2FtcGxpbmdfcmF0ZSI6MC41LCJzaWRlIjoidHJhaW5pbmcifV0sInVuaXQiOiJyZWNvcmQiLCJ3YWl2ZXJzIjpbXX0sImxlZGdlcl9oZWFk
IjoiIiwibWV0cmljcyI6eyJjb3JyZWN0IjoxLjUsImxvc3MiOi0wLjAsInVuaXRzIjozLjB9LCJub21pbmFsX3VuaXRzIjoxMCwicGxhbl9pZC
I6IjBiZDk1YzJhODIyNDgzNTJkOWM2MjJhY2UwYzM2NWUxMzgyZTljYTc1YzJjZDBlYTMxODBiMDY4NjU4OTI3NDEiLCJzcGVjX2RpZ2VzdCI6
IjM5YjBiYmQ0NmZlNGRkNDFlYmJjZjhkMjY4YmI5NWU1NTlhMjYzYzExOGVhZGQzZmZmNDZhMzQ0NDk2ZDQ4YmUifRgAAAAAAAAAAACAPwAAAE
AAAEBAAACAQAAAoEAAAMBALLhLv6JFX3djcZKd//it//yH0Xvyp/JZTfrR1wDl2rvQPzLPGgC6+W6jdC4VSAyHHNUethB7UtD+0DXTS0JaAQ==
"""
REFUSAL = """
RldSRAEAA2kAAAB7ImNvZGUiOiJ0ZXJtc19ub3RfYWxsb3dlZCIsInBsYW5faWQiOiIwYmQ5NWMyYTgyMjQ4MzUyZDljNjIyYWNlMGMzNjVlMT
M4MmU5Y2E3NWMyY2QwZWEzMTgwYjA2ODY1ODkyNzQxIn0AAAAAAAAAABjmv0Cdpc0F0WMfM+0DFU+OIk8I/MpWdjkQIcu3cOCluUrjggwaKPLH
zxPQVZxjhYi6G1NymTJV80b8jPFN5Ao=
"""


def test_version_1_is_what_is_spoken() -> None:
    assert VERSION == 1


def test_a_plan_of_version_1_still_decodes() -> None:
    plan, adapter = decode_plan(base64.b64decode(PLAN), public_key=KEY.public_key())
    assert plan == plan_from()
    assert adapter.vector.tobytes() == START.vector.tobytes()
    assert (plan.plan_id, adapter.spec.digest, adapter.digest) == (PLAN_ID, SPEC_DIGEST, ADAPTER_DIGEST)


def test_an_update_of_version_1_still_decodes() -> None:
    update = decode_reply(base64.b64decode(UPDATE), public_key=KEY.public_key(), spec=HEAD)
    assert isinstance(update, Update)
    assert replace(update_for(plan_from(), metrics=METRICS), delta=update.delta) == update
    assert update.delta.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert encode_reply(update, key=KEY) == base64.b64decode(UPDATE)


def test_a_refusal_of_version_1_still_decodes() -> None:
    refusal = decode_reply(base64.b64decode(REFUSAL), public_key=KEY.public_key())
    assert refusal == Refusal(plan_id=PLAN_ID, code=Code.TERMS_NOT_ALLOWED)


def test_the_same_nouns_give_the_same_bytes() -> None:
    assert encode_plan(plan_from(), START, key=KEY) == base64.b64decode(PLAN)
    refusal = Refusal(plan_id=PLAN_ID, code=Code.TERMS_NOT_ALLOWED)
    assert encode_reply(refusal, key=KEY) == base64.b64decode(REFUSAL)


def test_the_layout_is_the_documented_one() -> None:
    for kind, text in ((1, PLAN), (2, UPDATE), (3, REFUSAL)):
        assert taken_apart(base64.b64decode(text))[0] == kind
