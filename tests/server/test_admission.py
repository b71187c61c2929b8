from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fedward_common.codec import encode_plan, encode_reply
from fedward_common.config import Weights
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import NO_PLAN, Code, Refusal, RoundPlan, Update
from fedward_server.admission import MAX_NOMINAL_UNITS, Admission, Drop, weight_of
from support.nouns import HEAD, KEY, OTHER_KEY, SPEC, START, adapter_of, plan_from, update_for
from support.signed import put_together, taken_apart

PUBLIC = KEY.public_key()
PLAN = plan_from()
ASKING = plan_from(evaluate=True)
METRICS = MetricSums(correct=1.0, units=2.0, loss=3.0)
NAN, INF = float("nan"), float("inf")


def admission(plan: RoundPlan = PLAN) -> Admission:
    """The doorkeeper of one round of heads."""
    return Admission(plan=plan, spec=HEAD, max_norm=10.0)


def admit(data: bytes, plan: RoundPlan = PLAN) -> Update | Refusal | Drop:
    """What a fresh doorkeeper says."""
    return admission(plan).admit("site-1", data, key=PUBLIC)


def resigned(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """An update with another header, rightly signed: what a hostile site could send."""
    kind, header, body = taken_apart(data)
    content = json.loads(header)
    change(content)
    return put_together(kind, json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), body)


def test_a_good_update_is_admitted() -> None:
    verdict = admit(encode_reply(update_for(PLAN), key=KEY))
    assert isinstance(verdict, Update)
    assert verdict.delta.vector.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_good_update_with_metrics_is_admitted_where_they_were_asked_for() -> None:
    verdict = admit(encode_reply(update_for(ASKING, metrics=METRICS), key=KEY), ASKING)
    assert isinstance(verdict, Update)
    assert verdict.metrics == METRICS


@pytest.mark.parametrize("code", Code)
def test_a_refusal_is_handed_on(code: Code) -> None:
    refusal = Refusal(plan_id=PLAN.plan_id, code=code)
    assert admit(encode_reply(refusal, key=KEY)) == refusal


def test_unknown_site() -> None:
    data = encode_reply(update_for(PLAN), key=KEY)
    assert admission().admit("nobody", data, key=None) is Drop.UNKNOWN_SITE


def test_bad_signature() -> None:
    assert admit(encode_reply(update_for(PLAN), key=OTHER_KEY)) is Drop.BAD_SIGNATURE


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(200), encode_plan(PLAN, START, key=KEY)])
def test_malformed(data: bytes) -> None:
    assert admit(data) is Drop.MALFORMED


def test_an_update_out_of_range_is_malformed_not_the_end_of_the_run() -> None:
    good = encode_reply(update_for(PLAN), key=KEY)
    assert isinstance(admit(resigned(good, lambda _: None)), Update)
    changes: list[dict[str, Any]] = [{"nominal_units": 0}, {"nominal_units": -5}, {"plan_id": "x"}, {"metrics": 3}]
    for change in changes:
        assert admit(resigned(good, partial(dict.update, **change))) is Drop.MALFORMED


def test_metrics_that_were_not_asked_for_or_are_missing_are_malformed() -> None:
    assert admit(encode_reply(update_for(PLAN, metrics=METRICS), key=KEY)) is Drop.MALFORMED
    assert admit(encode_reply(update_for(ASKING), key=KEY), ASKING) is Drop.MALFORMED


def test_spec_mismatch() -> None:
    other = update_for(PLAN, delta=adapter_of([1.0] * 9, SPEC))
    assert admit(encode_reply(other, key=KEY)) is Drop.SPEC_MISMATCH
    stranger = replace(SPEC, base_fingerprint="ef" * 32).subset(["head"])
    foreign = update_for(PLAN, delta=adapter_of([1.0] * 6, stranger))
    assert admit(encode_reply(foreign, key=KEY)) is Drop.SPEC_MISMATCH


def test_wrong_plan() -> None:
    assert admit(encode_reply(update_for(plan_from(round=2)), key=KEY)) is Drop.WRONG_PLAN


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_not_finite(value: float) -> None:
    assert admit(encode_reply(update_for(PLAN, [0, 0, 0, 0, 0, value]), key=KEY)) is Drop.NOT_FINITE


@pytest.mark.parametrize("value", [NAN, INF])
def test_metrics_that_are_not_finite_cannot_even_be_written_and_would_be_dropped(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = update_for(ASKING, metrics=MetricSums(correct=value, units=1.0, loss=1.0))
    with pytest.raises(ValueError, match="JSON"):
        encode_reply(update, key=KEY)
    monkeypatch.setattr("fedward_server.admission.decode_reply", lambda *_, **__: update)
    assert admit(b"", ASKING) is Drop.NOT_FINITE


def test_too_large() -> None:
    limit = [6.0, 8.0, 0.0, 0.0, 0.0, 0.0]  # norm 10
    assert isinstance(admit(encode_reply(update_for(PLAN, limit), key=KEY)), Update)
    assert admit(encode_reply(update_for(PLAN, [6.0, 8.1, 0, 0, 0, 0]), key=KEY)) is Drop.TOO_LARGE
    most = update_for(PLAN, nominal_units=MAX_NOMINAL_UNITS)
    assert isinstance(admit(encode_reply(most, key=KEY)), Update)
    for units in (MAX_NOMINAL_UNITS + 1, 10**400):
        assert admit(encode_reply(replace(most, nominal_units=units), key=KEY)) is Drop.TOO_LARGE


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_metrics_too_large_to_add_up_are_dropped(value: float) -> None:
    for field in ("correct", "units", "loss"):
        update = update_for(ASKING, metrics=replace(METRICS, **{field: value}))
        assert admit(encode_reply(update, key=KEY), ASKING) is Drop.TOO_LARGE


def test_a_site_that_declares_another_number_of_units_than_before_does_not_count() -> None:
    door = replace(admission(), declared={"site-1": 500})
    other = encode_reply(update_for(PLAN, nominal_units=501), key=KEY)
    assert door.admit("site-1", other, key=PUBLIC) is Drop.OTHER_UNITS
    assert isinstance(door.admit("site-2", other, key=PUBLIC), Update)
    same = encode_reply(update_for(PLAN, nominal_units=500), key=KEY)
    assert isinstance(door.admit("site-1", same, key=PUBLIC), Update)


def test_duplicate() -> None:
    door, data = admission(), encode_reply(update_for(PLAN), key=KEY)
    assert isinstance(door.admit("site-1", data, key=PUBLIC), Update)
    assert door.admit("site-1", data, key=PUBLIC) is Drop.DUPLICATE
    refusal = encode_reply(Refusal(plan_id=PLAN.plan_id, code=Code.EXPIRED), key=KEY)
    assert door.admit("site-1", refusal, key=PUBLIC) is Drop.DUPLICATE
    assert isinstance(door.admit("site-2", data, key=PUBLIC), Update)


def test_a_forged_answer_does_not_use_up_the_sites_own() -> None:
    door = admission()
    assert door.admit("site-1", encode_reply(update_for(PLAN), key=OTHER_KEY), key=PUBLIC) is Drop.BAD_SIGNATURE
    assert door.admit("site-1", b"garbage", key=PUBLIC) is Drop.MALFORMED
    assert isinstance(door.admit("site-1", encode_reply(update_for(PLAN), key=KEY), key=PUBLIC), Update)


@pytest.mark.parametrize("change", [{"delta": 1e-3}, {"unit": Unit.PATIENT}])
def test_another_guarantee_than_the_plans_does_not_count(change: dict[str, Any]) -> None:
    update = update_for(PLAN)
    other = replace(update, guarantee=replace(update.guarantee, **change))
    assert admit(encode_reply(other, key=KEY)) is Drop.OTHER_GUARANTEE


def test_a_refusal_of_another_plan_does_not_count_nor_use_up_the_sites_answer() -> None:
    door = admission()
    stale = encode_reply(Refusal(plan_id="9" * 64, code=Code.UNAVAILABLE), key=KEY)
    assert door.admit("a", stale, key=KEY.public_key()) is Drop.WRONG_PLAN
    assert isinstance(door.admit("a", encode_reply(update_for(PLAN), key=KEY), key=KEY.public_key()), Update)
    unread = encode_reply(Refusal(plan_id=NO_PLAN, code=Code.BAD_SIGNATURE), key=KEY)
    assert isinstance(admission().admit("a", unread, key=KEY.public_key()), Refusal)


def test_a_site_weighs_what_it_declared_or_the_same_as_all() -> None:
    update = update_for(PLAN, nominal_units=250)
    assert weight_of(update, Weights.NOMINAL) == 250.0
    assert weight_of(update, Weights.EQUAL) == 1.0
