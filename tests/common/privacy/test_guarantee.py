from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import MalformedMessage, PrivacyError
from fedward_common.privacy import accounting
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import Guarantee, MetricTerms, PrivacyTerms, StageTerms, Unit

STAGE = StageTerms(name="head", sampling_rate=0.5, rounds=20, local_steps=2, noise_ratio=1.0)
METRICS = MetricTerms(evaluations=3, share=0.5, validation_fraction=0.1)
TERMS = PrivacyTerms(
    epsilon=8.0,
    delta=1e-5,
    unit=Unit.PATIENT,
    clip_norm=1.0,
    max_records_per_unit=4,
    stages=(STAGE, replace(STAGE, name="core", sampling_rate=0.1, noise_ratio=0.4)),
    metrics=METRICS,
)
EVENT = GaussianSum(side=Side.TRAINING, sampling_rate=0.5, noise_multiplier=2.0, count=20)
GUARANTEE = Guarantee(unit=Unit.RECORD, delta=1e-5, events=(EVENT,), waivers=("allow_network",))


def test_steps_are_rounds_times_local_steps() -> None:
    assert STAGE.steps == 40


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"clip_norm": -1.0},
        {"clip_norm": 1e10},
        {"max_records_per_unit": 0},
        {"stages": ()},
        {"stages": (STAGE, STAGE)},
        {"stages": tuple(replace(STAGE, name=str(i)) for i in range(33))},
    ],
)
def test_terms_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(TERMS, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"sampling_rate": 0.0}, {"rounds": 0}, {"local_steps": 0}, {"noise_ratio": 0.0}, {"noise_ratio": 1e4}]
)
def test_stages_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(STAGE, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"evaluations": -1}, {"share": 0.0}, {"validation_fraction": 0.6}, {"validation_fraction": 0.0}]
)
def test_metrics_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(METRICS, **wrong)


def test_terms_carry_no_sigma_and_a_guarantee_no_epsilon() -> None:
    assert "noise_multiplier" not in json.dumps(TERMS.to_json())
    assert "sigma" not in json.dumps(TERMS.to_json())
    assert "epsilon" not in json.dumps(GUARANTEE.to_json())


def test_digest_is_equal_for_equal_terms_also_through_json() -> None:
    again = PrivacyTerms.from_json(json.loads(json.dumps(TERMS.to_json())))
    assert again == TERMS
    assert again.digest == TERMS.digest
    assert replace(TERMS, epsilon=8).digest == TERMS.digest
    assert len(TERMS.digest) == 64


def test_digest_differs_when_any_number_differs() -> None:
    stages = [
        STAGE,
        replace(STAGE, name="x"),
        replace(STAGE, sampling_rate=0.6),
        replace(STAGE, rounds=1),
        replace(STAGE, local_steps=1),
        replace(STAGE, noise_ratio=0.5),
    ]
    changed = [
        replace(TERMS, epsilon=7.0),
        replace(TERMS, delta=1e-6),
        replace(TERMS, unit=Unit.RECORD),
        replace(TERMS, clip_norm=2.0),
        replace(TERMS, max_records_per_unit=5),
        replace(TERMS, stages=TERMS.stages[::-1]),
        replace(TERMS, metrics=replace(METRICS, share=1.0)),
        *(replace(TERMS, stages=(stage,)) for stage in stages),
    ]
    assert len({terms.digest for terms in [TERMS, *changed]}) == len(changed) + 1


def paths(value: object, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in items for path in [(*prefix, key), *paths(item, (*prefix, key))]]


def changed(document: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(document))
    node: Any = result
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return result


@given(
    st.sampled_from(paths(TERMS.to_json())),
    st.sampled_from([None, True, -1, math.nan, math.inf, -math.inf, [], {}, [0], {"a": 1}, ""]),
)
def test_malformed_terms_are_refused(path: tuple[Any, ...], value: object) -> None:
    with pytest.raises(MalformedMessage):
        PrivacyTerms.from_json(changed(TERMS.to_json(), path, value))


@given(st.sampled_from([path for path in paths(TERMS.to_json()) if isinstance(path[-1], str)]))
def test_missing_and_unknown_keys_are_refused(path: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedMessage):
        PrivacyTerms.from_json(changed(TERMS.to_json(), (*path[:-1], "sigma"), 1.0))
    document: Any = TERMS.to_json()
    node = document
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    with pytest.raises(MalformedMessage):
        PrivacyTerms.from_json(document)


@pytest.mark.parametrize("path", paths(GUARANTEE.to_json()))
def test_malformed_guarantees_are_refused(path: tuple[Any, ...]) -> None:
    assert Guarantee.from_json(json.loads(json.dumps(GUARANTEE.to_json()))) == GUARANTEE
    with pytest.raises(MalformedMessage):
        Guarantee.from_json(changed(GUARANTEE.to_json(), path, None))


def test_epsilon_is_computed_from_the_events() -> None:
    assert GUARANTEE.epsilon() == accounting.epsilon([EVENT], delta=1e-5)


def test_describe_names_the_neighbours_and_the_waivers_and_rounds_up() -> None:
    sentence = GUARANTEE.describe()
    assert sentence.startswith("add or remove one record: (")
    assert "over 20 noisy sums; waived: allow_network" in sentence
    assert float(sentence.split("(")[1].split(",")[0]) >= GUARANTEE.epsilon()
