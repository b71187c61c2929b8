from __future__ import annotations

import copy
import gc
import json
import math
import struct
import tracemalloc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedward_common.adapter import Adapter
from fedward_common.codec import (
    PlanWriter,
    decode_plan,
    decode_reply,
    encode_plan,
    encode_reply,
    is_plan,
    key_fingerprint,
    new_key,
)
from fedward_common.config import LocalOptimiser, Weights
from fedward_common.errors import BadSignature, MalformedMessage, MessageError, NonFiniteUpdate, SpecMismatch
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import Guarantee, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import Code, Refusal, RoundPlan, Training, Update
from support.nouns import HEAD, KEY, OTHER_KEY, SPEC, START, TERMS, adapter_of, plan_from, update_for
from support.signed import PLAN, REFUSAL, UPDATE, put_together, signed, taken_apart

PUBLIC = KEY.public_key()
PLAN_BYTES = encode_plan(plan_from(), START, key=KEY)
UPDATE_BYTES = encode_reply(update_for(plan_from(), metrics=MetricSums(correct=1.5, units=3.0, loss=-0.0)), key=KEY)
REFUSAL_BYTES = encode_reply(Refusal(plan_id="12" * 32, code=Code.UNAVAILABLE), key=KEY)
MESSAGES = {"plan": PLAN_BYTES, "update": UPDATE_BYTES, "refusal": REFUSAL_BYTES}


def decode(data: bytes, name: str) -> object:
    if name == "plan":
        return decode_plan(data, public_key=PUBLIC)
    return decode_reply(data, public_key=PUBLIC, spec=HEAD)


# ---- round trips -----------------------------------------------------------------------------------------------------

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) <= 3.4e38)
finite = st.floats(allow_nan=False, allow_infinity=False)  # subnormal numbers and -0.0 included
above_zero = st.floats(min_value=5e-324, max_value=1e308)
rates = st.floats(min_value=5e-324, max_value=1.0)
below_one = st.floats(min_value=5e-324, max_value=1.0, exclude_max=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.text(max_size=12)


@st.composite
def terms(draw: st.DrawFn, local_steps: int) -> PrivacyTerms:
    stage = st.builds(
        StageTerms,
        name=names,
        sampling_rate=rates,
        rounds=st.integers(1, 2**40),
        local_steps=st.just(local_steps),
        noise_ratio=st.floats(1e-3, 1e3),
    )
    return replace(
        TERMS,
        epsilon=draw(above_zero),
        delta=draw(below_one),
        unit=draw(st.sampled_from(Unit)),
        clip_norm=draw(st.floats(1e-9, 1e9)),
        max_records_per_unit=draw(st.integers(1, 10_000)),
        stages=tuple(draw(st.lists(stage, min_size=1, max_size=3, unique_by=lambda s: s.name))),
    )


@st.composite
def plans(draw: st.DrawFn) -> tuple[RoundPlan, Adapter]:
    start = Adapter(spec=SPEC, vector=draw(npst.arrays(np.float32, SPEC.size, elements=finite32)))
    steps = draw(st.integers(1, 1000))
    promised = draw(terms(steps))
    plan = RoundPlan(
        run_id=draw(digests),
        round=draw(st.integers(1, 2**70)),
        stage=draw(st.integers(0, len(promised.stages) - 1)),
        spec_digest=SPEC.digest,
        adapter_digest=start.digest,
        terms=promised,
        training=Training(
            groups=tuple(draw(st.lists(names, max_size=3))),
            local_steps=steps,
            optimiser=draw(st.sampled_from(LocalOptimiser)),
            learning_rate=draw(above_zero),
        ),
        evaluate=draw(st.booleans()),
        public_seed=draw(st.integers(-(2**70), 2**70)),
        weights=draw(st.sampled_from(Weights)),
        expires_at=draw(finite),
        site=draw(st.just("") | names),
        ledger_head=draw(st.just("") | digests),
        states_min_sites=draw(st.integers(1, 10**6)),
    )
    return plan, start


@given(plans())
@settings(deadline=None, max_examples=60)
def test_a_plan_and_its_adapter_come_back_equal(sent: tuple[RoundPlan, Adapter]) -> None:
    data = encode_plan(*sent, key=KEY)
    plan, adapter = decode_plan(data, public_key=PUBLIC)
    assert plan == sent[0]
    assert (plan.plan_id, plan.terms.digest) == (sent[0].plan_id, sent[0].terms.digest)
    assert adapter.digest == sent[1].digest  # bit for bit, -0.0 and subnormal numbers included
    assert (adapter.spec, adapter.spec.digest) == (SPEC, SPEC.digest)
    assert encode_plan(plan, adapter, key=KEY) == data


def test_every_type_in_a_plan_survives() -> None:
    plan, adapter = decode_plan(PLAN_BYTES, public_key=PUBLIC)
    kinds = [plan.terms.stages, plan.training.groups, adapter.spec.groups["head"]]
    assert {type(value) for value in [*kinds, *adapter.spec.tensors.values(), adapter.spec.target_modules]} == {tuple}
    assert (type(plan.training.optimiser), type(plan.weights), type(plan.terms.unit)) == (LocalOptimiser, Weights, Unit)
    assert {type(x) for x in (plan.terms.epsilon, plan.expires_at, adapter.spec.alpha)} == {float}
    assert {type(x) for shape in adapter.spec.tensors.values() for x in shape} == {int}


def test_an_integer_in_the_place_of_a_float_gives_the_same_plan_on_both_sides() -> None:
    sent = plan_from(terms=replace(TERMS, epsilon=8, clip_norm=1), expires_at=10**9)
    back, _ = decode_plan(encode_plan(sent, START, key=KEY), public_key=PUBLIC)
    assert back.plan_id == sent.plan_id


events = st.builds(
    GaussianSum,
    side=st.sampled_from(Side),
    sampling_rate=rates,
    noise_multiplier=above_zero,
    count=st.integers(1, 2**60),
)


@given(
    npst.arrays(np.float32, HEAD.size, elements=st.floats(width=32)),
    digests,
    st.lists(events, max_size=3),
    st.none() | st.builds(MetricSums, correct=finite, units=finite, loss=finite),
    st.integers(1, 2**70),
    names,
    st.just("") | digests,
)
@settings(deadline=None, max_examples=60)
def test_an_update_comes_back_equal(
    vector: Any, plan_id: str, done: list[GaussianSum], metrics: MetricSums | None, units: int, waiver: str, head: str
) -> None:
    sent = Update(
        plan_id=plan_id,
        delta=Adapter(spec=HEAD, vector=vector),  # NaN and infinity included: admission counts them
        guarantee=Guarantee(unit=Unit.PATIENT, delta=1e-5, events=tuple(done), waivers=(waiver,)),
        nominal_units=units,
        metrics=metrics,
        ledger_head=head,
    )
    back = decode_reply(encode_reply(sent, key=KEY), public_key=PUBLIC, spec=HEAD)
    assert isinstance(back, Update)
    assert replace(back, delta=sent.delta) == sent
    assert repr(back.metrics) == repr(sent.metrics)  # equality does not tell -0.0 from 0.0
    assert back.delta.to_bytes() == sent.delta.to_bytes()


@pytest.mark.parametrize("code", Code)
def test_a_refusal_comes_back_equal_with_or_without_a_spec(code: Code) -> None:
    sent = Refusal(plan_id="12" * 32, code=code)
    data = encode_reply(sent, key=KEY)
    assert decode_reply(data, public_key=PUBLIC) == decode_reply(data, public_key=PUBLIC, spec=HEAD) == sent


# ---- bytes that are not what was signed ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MESSAGES)
def test_any_single_flipped_byte_is_refused(name: str) -> None:
    data = MESSAGES[name]
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            flipped = bytearray(data)
            flipped[position] ^= mask
            with pytest.raises((BadSignature, MalformedMessage)):
                decode(bytes(flipped), name)


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_cut_off_or_added_are_refused(name: str) -> None:
    data = MESSAGES[name]
    wrong = [data[:length] for length in range(len(data))] + [data + b"\x00", b"\x00" + data, data + data]
    for bytes_ in wrong:
        with pytest.raises((BadSignature, MalformedMessage)) as caught:
            decode(bytes_, name)
        assert caught.value.hint


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=60)
def test_random_bytes_are_refused(data: bytes) -> None:
    for prefix in (b"", PLAN_BYTES[:11]):
        with pytest.raises((BadSignature, MalformedMessage)):
            decode_plan(prefix + data, public_key=PUBLIC)


def test_nothing_is_parsed_before_the_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("fedward_common.codec._header", never)
    monkeypatch.setattr("fedward_common.codec._reader", never)
    for name in MESSAGES:
        with pytest.raises(BadSignature):
            decode(MESSAGES[name][:-1] + bytes([MESSAGES[name][-1] ^ 1]), name)


@pytest.mark.parametrize("name", MESSAGES)
def test_another_key_is_refused(name: str) -> None:
    kind, header, body = taken_apart(MESSAGES[name])
    assert put_together(kind, header, body) == MESSAGES[name]  # the layout by hand is the codec's
    with pytest.raises(BadSignature):
        decode(put_together(kind, header, body, key=OTHER_KEY), name)


def test_a_plan_cannot_pass_as_a_reply_nor_a_reply_as_a_plan() -> None:
    with pytest.raises(MalformedMessage):
        decode_reply(PLAN_BYTES, public_key=PUBLIC, spec=SPEC)
    for data in (UPDATE_BYTES, REFUSAL_BYTES):
        with pytest.raises(MalformedMessage):
            decode_plan(data, public_key=PUBLIC)


@pytest.mark.parametrize(
    ("name", "disguise"), [("plan", UPDATE), ("plan", REFUSAL), ("update", REFUSAL), ("refusal", UPDATE)]
)
def test_the_signature_covers_the_kind(name: str, disguise: int) -> None:
    changed = MESSAGES[name][:6] + bytes([disguise]) + MESSAGES[name][7:]
    with pytest.raises(BadSignature):
        decode_reply(changed, public_key=PUBLIC, spec=HEAD)


@pytest.mark.parametrize("position", [0, 4], ids=["magic", "version"])
def test_another_magic_or_version_is_refused_also_when_signed(position: int) -> None:
    changed = bytearray(PLAN_BYTES[:-64])
    changed[position] += 1
    with pytest.raises(MalformedMessage):
        decode_plan(signed(PLAN, bytes(changed)), public_key=PUBLIC)


# ---- a signer who does not keep to the form --------------------------------------------------------------------------


def rewritten(data: bytes, header: bytes) -> bytes:
    kind, _, body = taken_apart(data)
    return put_together(kind, header, body)


def spelled(data: bytes, old: bytes, new: bytes) -> bytes:
    header = taken_apart(data)[1]
    assert header.count(old) >= 1, (old, header)
    return rewritten(data, header.replace(old, new, 1))


def reordered(header: bytes) -> bytes:
    return json.dumps(dict(reversed(json.loads(header).items())), separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        spelled(PLAN_BYTES, b"{", b'{"a":1,'),
        spelled(PLAN_BYTES, b'"terms":{', b'"terms":{"sigma":1.0,'),
        spelled(PLAN_BYTES, b'"evaluate":false', b'"evaluate": false'),
        spelled(PLAN_BYTES, b'"evaluate":false', b'"evaluate":false,"evaluate":false'),
        spelled(PLAN_BYTES, b'"evaluate":false', b'"evaluate":true,"evaluate":false'),
        spelled(PLAN_BYTES, b'"evaluate":false', b'"evaluate":0'),
        spelled(PLAN_BYTES, b'"evaluate":false', b'"evaluate":"false"'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":8'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":8.00'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":0.8e1'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":"8.0"'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":NaN'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":Infinity'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":1e999'),
        spelled(PLAN_BYTES, b'"epsilon":8.0', b'"epsilon":-8.0'),
        spelled(PLAN_BYTES, b'"round":1', b'"round":1.0'),
        spelled(PLAN_BYTES, b'"round":1', b'"round":true'),
        spelled(PLAN_BYTES, b'"round":1', b'"round":0'),
        spelled(PLAN_BYTES, b'"head"', b'"\\u0068ead"'),
        spelled(PLAN_BYTES, b'"optimiser":"sgd"', b'"optimiser":"SGD"'),
        spelled(PLAN_BYTES, b'"ledger_head":"",', b""),  # the default, left out
        rewritten(PLAN_BYTES, reordered(taken_apart(PLAN_BYTES)[1])),
        rewritten(PLAN_BYTES, taken_apart(PLAN_BYTES)[1] + b"\n"),
        rewritten(PLAN_BYTES, b"\xef\xbb\xbf" + taken_apart(PLAN_BYTES)[1]),
        rewritten(PLAN_BYTES, b"[" * 100_000),
        rewritten(PLAN_BYTES, b""),
        rewritten(PLAN_BYTES, b"null"),
        rewritten(PLAN_BYTES, b"\xff"),
    ],
)
def test_a_plan_in_another_spelling_is_refused_although_the_key_is_right(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_plan(data, public_key=PUBLIC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"correct":1.5', b'"correct":NaN'),
        (b'"correct":1.5', b'"correct":1.50'),
        (b'"nominal_units":10', b'"nominal_units":0'),
        (b'"nominal_units":10', b'"nominal_units":' + b"9" * 5000),
        (b'"nominal_units":10', b'"nominal_units":10.0'),
        (b'"sampling_rate":0.5', b'"sampling_rate":0.0'),
        (b'"waivers":[]', b'"waivers":{}'),
        (b'"ledger_head":""', b'"ledger_head":"\\ud800"'),
        (b'"ledger_head":""', b'"ledger_head":"Jane Roe"'),
        (b'"ledger_head":""', b'"ledger_head":"' + b"AB" * 32 + b'"'),
        (b'"plan_id":"', b'"plan_id":"x'),
    ],
)
def test_an_update_in_another_spelling_is_refused_although_the_key_is_right(old: bytes, new: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_reply(spelled(UPDATE_BYTES, old, new), public_key=PUBLIC, spec=HEAD)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 2, 10**400, -0.0, 5e-324, 1e308, "", "\x00", "0" * 64, [], [[]], {}, {"": 0}, [0], 0.5, 2**63]
)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
@settings(deadline=None, max_examples=300)
def test_whatever_a_key_holder_puts_into_a_header_only_message_errors_come_out(name: str, data: st.DataObject) -> None:
    kind, header, body = taken_apart(MESSAGES[name])
    content = json.loads(header)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(leaves(content)))
        value = copy.deepcopy(data.draw(odd))
        if not path:
            content = value
            break
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    try:
        decode(put_together(kind, text, body), name)
    except MessageError as error:
        assert error.hint


# ---- lengths that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("lie", [0, 1, 2**20, 2**31, 2**32 - 1])
def test_a_declared_header_length_that_lies_is_refused_without_allocating(name: str, lie: int) -> None:
    kind, header, body = taken_apart(MESSAGES[name])
    data = put_together(kind, header, body, header_length=lie)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(data, name)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("lie", [1, 2**31, 2**63, 2**64 - 1])
def test_a_declared_body_length_that_lies_is_refused(name: str, lie: int) -> None:
    kind, header, body = taken_apart(MESSAGES[name])
    with pytest.raises(MalformedMessage):
        decode(put_together(kind, header, body, body_length=lie), name)


def test_a_header_beyond_the_limit_is_refused() -> None:
    data = spelled(UPDATE_BYTES, b'"ledger_head":""', b'"ledger_head":"' + b"a" * (4 * 2**20) + b'"')
    with pytest.raises(MalformedMessage, match="wrong length"):
        decode_reply(data, public_key=PUBLIC, spec=HEAD)


def test_a_spec_of_astronomic_shapes_is_refused_without_allocating() -> None:
    data = spelled(PLAN_BYTES, b'"head.weight":[2,2]', b'"head.weight":[4294967296,4294967296]')
    with pytest.raises(MalformedMessage):
        decode_plan(data, public_key=PUBLIC)


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_plan_with_an_adapter_that_is_not_finite_is_refused(value: float) -> None:
    start = adapter_of([value, *START.vector[1:].tolist()])
    data = encode_plan(plan_from(start), start, key=KEY)
    with pytest.raises(NonFiniteUpdate):
        decode_plan(data, public_key=PUBLIC)


def test_an_adapter_other_than_the_announced_one_is_neither_sent_nor_taken() -> None:
    other = adapter_of([1.0] * SPEC.size)
    with pytest.raises(SpecMismatch):
        encode_plan(plan_from(), other, key=KEY)
    kind, header, _ = taken_apart(PLAN_BYTES)
    with pytest.raises(SpecMismatch):
        decode_plan(put_together(kind, header, other.to_bytes()), public_key=PUBLIC)


def test_a_spec_other_than_the_announced_one_is_refused() -> None:
    with pytest.raises(SpecMismatch):
        decode_plan(spelled(PLAN_BYTES, b'"alpha":2.0', b'"alpha":3.0'), public_key=PUBLIC)


@pytest.mark.parametrize("body", [b"", bytes(4 * SPEC.size - 4), bytes(4 * SPEC.size + 4)])
def test_a_body_of_another_size_is_refused(body: bytes) -> None:
    kind, header, _ = taken_apart(PLAN_BYTES)
    with pytest.raises(MalformedMessage):
        decode_plan(put_together(kind, header, body), public_key=PUBLIC)


def test_an_update_over_other_tensors_is_refused() -> None:
    for spec in (None, SPEC, replace(HEAD, alpha=3.0)):
        with pytest.raises(SpecMismatch):
            decode_reply(UPDATE_BYTES, public_key=PUBLIC, spec=spec)


def test_a_refusal_has_no_body() -> None:
    kind, header, _ = taken_apart(REFUSAL_BYTES)
    with pytest.raises(MalformedMessage):
        decode_reply(put_together(kind, header, b"what I saw in the data"), public_key=PUBLIC)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_fresh_and_have_fingerprints_of_their_own() -> None:
    prints = {key_fingerprint(key.public_key()) for key in (new_key(), new_key(), KEY)}
    assert len(prints) == 3
    assert key_fingerprint(PUBLIC) == "56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"


def test_the_length_field_counts_the_header() -> None:
    assert struct.unpack_from("<I", PLAN_BYTES, 7) == (len(taken_apart(PLAN_BYTES)[1]),)


# ---- plans of one round


def test_the_parts_joined_are_what_encode_plan_gives() -> None:
    writer = PlanWriter(START, key=KEY)
    for site in ("a" * 64, "b" * 64):
        plan = plan_from().addressed_to(site, ledger_head="c" * 64)
        parts, whole = writer.parts(plan), encode_plan(plan, START, key=KEY)
        assert (parts.joined(), parts.size) == (whole, len(whole))
        back, adapter = decode_plan(parts.joined(), public_key=PUBLIC)
        assert (back, adapter.digest) == (plan, START.digest)


def test_the_adapters_bytes_exist_once_whatever_the_number_of_plans() -> None:
    writer = PlanWriter(START, key=KEY)
    bodies = {id(writer.parts(plan_from().addressed_to(f"{n:064x}")).body) for n in range(20)}
    assert len(bodies) == 1


def test_a_writer_refuses_a_plan_that_announces_another_adapter() -> None:
    with pytest.raises(SpecMismatch):
        PlanWriter(START, key=KEY).parts(plan_from(START.scaled(2.0)))


def test_what_begins_as_a_plan_is_told_from_the_rest() -> None:
    assert is_plan(PLAN_BYTES)
    assert is_plan(PLAN_BYTES[:7])
    for other in (b"", PLAN_BYTES[:6], b"plan", encode_reply(Refusal(plan_id="0" * 64, code=Code.EXPIRED), key=KEY)):
        assert not is_plan(other)


def test_an_updates_numbers_stay_where_they_lie() -> None:
    data = encode_reply(update_for(plan_from()), key=KEY)
    read = decode_reply(data, public_key=PUBLIC, spec=HEAD)
    assert isinstance(read, Update)
    assert np.shares_memory(read.delta.vector, np.frombuffer(data, np.uint8))
    assert read.delta.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert not read.delta.vector.flags.writeable


def test_plans_of_one_adapter_give_one_object_for_as_long_as_somebody_holds_it() -> None:
    plan = plan_from()
    first, second = (
        decode_plan(encode_plan(plan.addressed_to(site * 64), START, key=KEY), public_key=PUBLIC)[1] for site in "ab"
    )
    assert second is first
    held = weakref.ref(first)
    del first, second
    gc.collect()
    assert held() is None


def test_equal_bytes_of_another_spec_are_another_adapter() -> None:
    _, first = decode_plan(encode_plan(plan_from(), START, key=KEY), public_key=PUBLIC)
    spec = replace(START.spec, alpha=2 * START.spec.alpha)
    other = Adapter(spec=spec, vector=START.vector.copy())
    plan = replace(plan_from(), spec_digest=spec.digest, adapter_digest=other.digest)
    _, second = decode_plan(encode_plan(plan, other, key=KEY), public_key=PUBLIC)
    assert (second.spec, second.digest) == (spec, other.digest) != (first.spec, first.digest)
