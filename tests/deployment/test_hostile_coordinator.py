"""A hostile coordinator in the flesh: whatever it sends to a real site, nothing of it runs and nothing leaks."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedward_client.courier.faults import State
from fedward_common.codec import PlanParts, encode_reply, new_key
from fedward_common.privacy.guarantee import StageTerms
from fedward_common.round import Code, Refusal
from fedward_common.wire import pack, unpack
from support.canaries import found
from support.hospital import Hospital
from support.hostile import CANARY, LARGEST_MB, Hostile
from support.signed import put_together, taken_apart

pytestmark = pytest.mark.slow
ERROR = "error"  # of Flower's: the courier's own, a type's name


class Bomb:
    """Runs where it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def parts(data: bytes) -> RecordDict:
    """A plan as the coordinator sends it."""
    return packed(*split(data))


def split(data: bytes) -> tuple[bytes, bytes, bytes]:
    _, _, body = taken_apart(data)
    return data[: len(data) - 64 - len(body)], body, data[-64:]


def packed(head: bytes, body: bytes, signature: bytes) -> RecordDict:
    return pack(PlanParts(head=head, body=body, signature=signature))


def plans(hospital: Hospital) -> dict[str, tuple[Code, RecordDict]]:
    """Rightly sent plans that a site must refuse, with the code it refuses them with."""
    good = hospital.plan_bytes()
    plan = hospital.plan()
    kind, header, body = taken_apart(good)

    def spelled(old: bytes, new: bytes) -> RecordDict:
        assert old in header
        return parts(put_together(kind, header.replace(old, new, 1), body, key=hospital.operator))

    stage = replace(plan.terms.stages[0], rounds=10**6)
    many = tuple(replace(stage, name=f"s{number}", rounds=1, sampling_rate=1e-12) for number in range(32))
    assert isinstance(stage, StageTerms)
    head, _, signature = split(good)
    return {
        "unsigned": (Code.BAD_SIGNATURE, packed(head, body, bytes(64))),
        "signed by another": (Code.BAD_SIGNATURE, parts(hospital.plan_bytes(key=new_key()))),
        "changed": (Code.BAD_SIGNATURE, packed(head.replace(b'"epsilon":8.0', b'"epsilon":7.9'), body, signature)),
        "another site's": (Code.BAD_SIGNATURE, parts(hospital.plan_bytes(site="ab" * 32))),
        "expired": (Code.EXPIRED, parts(hospital.plan_bytes(expires_at=1.0))),
        "a larger epsilon": (
            Code.TERMS_NOT_ALLOWED,
            parts(hospital.plan_bytes(run_id="cd" * 32, terms=replace(plan.terms, epsilon=1e300))),
        ),
        "a million rounds": (
            Code.TERMS_NOT_ALLOWED,
            parts(hospital.plan_bytes(run_id="ce" * 32, terms=replace(plan.terms, stages=(stage,)))),
        ),
        "a huge accountant": (
            Code.UNAVAILABLE,
            parts(hospital.plan_bytes(run_id="cf" * 32, terms=replace(plan.terms, stages=many))),
        ),
        "no noise": (Code.SPEC_MISMATCH, spelled(b'"noise_ratio":1.0', b'"noise_ratio":0.0')),
        "an astronomical spec": (Code.SPEC_MISMATCH, spelled(b"[3,32]", b"[9223372036854775807,4]")),
        "an astronomical number": (Code.SPEC_MISMATCH, spelled(b'"round":1', b'"round":1' + b"0" * 5000)),
        "code in a field": (Code.SPEC_MISMATCH, spelled(b'"method":"core"', b'"method":"__import__"')),
    }


def strange(hostile: Hostile) -> dict[str, tuple[str, RecordDict]]:
    """Messages that are no plans at all, with the type under which they go."""
    good = parts(hostile.hospital.plan_bytes())
    bomb = pickle.dumps(Bomb(str(hostile.markers / "pickle")))
    array = Array("float32", (2, 2), "numpy.ndarray", bomb)
    path, script = str(hostile.hospital.root / "notes.csv"), "__import__('os').system('id')"
    return {
        "a query": ("query", good),
        "an evaluation": ("evaluate", good),
        "another action": ("train.foo", good),
        "a query of a name": ("query.notes", good),
        "nothing": ("train", RecordDict()),
        "a path": ("train", RecordDict({"fedward": ConfigRecord({"path": path, "message": path})})),
        "code": ("train", RecordDict({"fedward": ConfigRecord({"message": script, "__class__": script})})),
        "strange names": (
            "train",
            RecordDict({f"../../{path}": ConfigRecord({"\x00": 1, "": [1.0]}), "": ConfigRecord()}),
        ),
        "a list": ("train", RecordDict({"fedward": ConfigRecord({"message": [b"a"] * 1000})})),
        "a bomb as message": ("train", pack(bomb)),
        "a bomb as plan": ("train", packed(bomb, bomb, bomb)),
        "a bomb as array": ("train", RecordDict({"fedward": ArrayRecord({"message": array})})),
        "an array": ("train", RecordDict({"fedward": ArrayRecord([np.zeros((64, 64), np.float32)])})),
        "numbers": ("train", RecordDict({"fedward": MetricRecord({"message": 1e308, "nan": float("nan")})})),
        "too large": ("train", pack(b"\x00" * ((LARGEST_MB + 1) << 20))),
        "a reply": (
            "train",
            pack(encode_reply(Refusal(plan_id="0" * 64, code=Code.EXPIRED), key=hostile.hospital.operator)),
        ),
        "random bytes": ("train", pack(random.Random(7).randbytes(5000))),  # noqa: S311 - the same each time
    }


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    """Everything was sent, and answered, in one go; a good plan last."""
    with Hostile.make() as hostile:
        refused = {name: ("train", content) for name, (_, content) in plans(hostile.hospital).items()}
        hostile.send({**strange(hostile), **refused})
        hostile.before = hostile.started()
        yield hostile


def answer(hostile: Hostile, name: str) -> Code | str | None:
    """The code of a refusal, or the type's name in Flower's error."""
    reply = hostile.replies[name]
    if reply.has_error():
        return f"{ERROR} {reply.error.reason}"
    return hostile.hospital.code(unpack(reply.content))


NAMES = (
    *("unsigned", "signed by another", "changed", "another site's", "expired", "a larger epsilon"),
    *("a million rounds", "a huge accountant", "no noise", "an astronomical spec", "an astronomical number"),
    "code in a field",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_beyond_the_policy_gets_a_code(hostile: Hostile, name: str) -> None:
    known = plans(hostile.hospital)
    assert set(NAMES) == set(known)
    assert answer(hostile, name) == known[name][0]


def test_whatever_is_no_plan_gets_a_types_name_or_a_code(hostile: Hostile) -> None:
    said = {name: answer(hostile, name) for name in strange(hostile)}
    types = {f"{ERROR} {name}" for name in ("ValueError", "MalformedMessage", "Unreadable", "LoadClientAppError")}
    assert set(said.values()) <= {*types, *Code}, said
    assert said["too large"] == f"{ERROR} Unreadable"


def test_no_code_of_a_bundle_ran_and_none_was_fetched(hostile: Hostile) -> None:
    assert list(hostile.markers.iterdir()) == []
    assert not (hostile.flower_home / "apps").exists()
    fetched = [path for path in hostile.courier.path.rglob("*") if path.suffix in (".py", ".fab", ".zip")]
    assert fetched == []
    assert b"get-fab" not in hostile.heard()
    assert any(b"evil/client.py" in content for content in hostile.kept().values()), "the bundle itself is there"


def test_nothing_was_trained(hostile: Hostile) -> None:
    assert hostile.before == [], "when everything was sent and answered, and no good plan yet"


def test_courier_and_trainer_live_and_an_honest_plan_is_answered(hostile: Hostile) -> None:
    good = hostile.hospital.plan_bytes(round=2)
    reply = hostile.send({"good": ("train", parts(good))})["good"]
    assert isinstance(reply, Message) and not reply.has_error()
    assert hostile.hospital.code(unpack(reply.content)) is None
    assert len(hostile.started()) == 1
    assert hostile.trainer.process.poll() is None and hostile.carrier.poll() is None
    link = hostile.link()
    assert link is not None and link.state is State.CONNECTED


def test_nothing_leaks(hostile: Hostile) -> None:
    """Every byte that the site said, in clear, and every file of the SuperLink; the search finds them in the data."""
    canaries = [f"{CANARY}0000", CANARY]
    assert found(hostile.heard(), canaries) == []
    for name, content in hostile.kept().items():
        assert found(content, canaries) == [], name
    assert found((hostile.courier.log_path).read_bytes(), canaries) == []
    assert found((hostile.hospital.root / "notes.csv").read_bytes(), canaries)
    assert len(hostile.heard()) > 10_000


def test_no_reply_tells_a_path_or_a_text_of_an_error(hostile: Hostile) -> None:
    for name, reply in hostile.replies.items():
        if reply.has_error():
            assert (reply.error.reason or "").isidentifier(), name
    assert str(hostile.hospital.root).encode() not in hostile.heard()
    assert b"Traceback" not in hostile.heard()
