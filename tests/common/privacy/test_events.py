from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import MalformedMessage, PrivacyError
from fedward_common.privacy.events import GaussianSum, Side, events_from_json, merged

EVENTS = st.builds(
    GaussianSum,
    side=st.sampled_from(Side),
    sampling_rate=st.sampled_from([0.25, 0.5, 1.0]),
    noise_multiplier=st.sampled_from([1.0, 2.0]),
    count=st.integers(1, 100),
)
GOOD = {"count": 2, "kind": "gaussian_sum", "noise_multiplier": 1.5, "sampling_rate": 0.5, "side": "training"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("inf")},
        {"count": 0},
        {"count": 1.5},
    ],
)
def test_ranges_are_checked_at_construction(wrong: dict[str, Any]) -> None:
    numbers: dict[str, Any] = {"sampling_rate": 0.5, "noise_multiplier": 1.0, "count": 1, **wrong}
    with pytest.raises(PrivacyError):
        GaussianSum(side=Side.TRAINING, **numbers)


@given(EVENTS)
def test_json_round_trip(event: GaussianSum) -> None:
    assert GaussianSum.from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"kind": "laplace"},
        {"count": 1.0},
        {"count": True},
        {"count": 0},
        {"sampling_rate": "0.5"},
        {"sampling_rate": 2.0},
        {"noise_multiplier": float("nan")},
        {"side": "both"},
    ],
)
def test_malformed_json_is_refused(change: dict[str, Any]) -> None:
    assert GaussianSum.from_json(GOOD).count == 2
    with pytest.raises(MalformedMessage):
        GaussianSum.from_json({**GOOD, **change})


def test_missing_keys_are_refused() -> None:
    for key in GOOD:
        with pytest.raises(MalformedMessage):
            events_from_json([{k: v for k, v in GOOD.items() if k != key}])


@given(st.lists(EVENTS))
def test_merging_keeps_the_total_count_of_each_kind(events: list[GaussianSum]) -> None:
    def totals(items: tuple[GaussianSum, ...] | list[GaussianSum]) -> dict[tuple[str, float, float], int]:
        found: dict[tuple[str, float, float], int] = {}
        for e in items:
            kind = (e.side.value, e.sampling_rate, e.noise_multiplier)
            found[kind] = found.get(kind, 0) + e.count
        return found

    result = merged(events)
    assert totals(result) == totals(events)
    assert len(result) == len(totals(events))
    assert list(totals(result)) == list(totals(events))


@given(st.lists(EVENTS))
def test_merging_twice_changes_nothing(events: list[GaussianSum]) -> None:
    assert merged(merged(events)) == merged(events)
