from __future__ import annotations

from dataclasses import replace

import pytest

from fedward_common.errors import BudgetError, MalformedMessage
from fedward_common.privacy import accounting, calibration
from fedward_common.privacy.calibration import Calibration, calibrate
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit


def stage(q: float, rounds: int, ratio: float = 1.0, name: str = "a") -> StageTerms:
    return StageTerms(name=name, sampling_rate=q, rounds=rounds, local_steps=1, noise_ratio=ratio)


def terms(*stages: StageTerms, epsilon: float = 8.0, evaluations: int = 0, share: float = 1.0) -> PrivacyTerms:
    return PrivacyTerms(
        epsilon=epsilon,
        delta=1e-5,
        unit=Unit.RECORD,
        clip_norm=1.0,
        max_records_per_unit=1,
        stages=stages,
        metrics=MetricTerms(evaluations=evaluations, share=share, validation_fraction=0.1),
    )


TWO_STAGES = terms(stage(0.5, 20), stage(0.1, 15, 0.4, "b"), evaluations=4, share=0.25)


def spent(events: tuple[GaussianSum, ...], side: Side) -> float:
    return accounting.epsilon([e for e in events if e.side is side], delta=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        TWO_STAGES,
        terms(stage(1.0, 40), stage(0.1, 12, 0.3, "b"), evaluations=5),
        terms(stage(0.01, 1000), epsilon=1.0),
        terms(stage(0.001, 10_000), epsilon=0.1),
        terms(stage(1.0, 1), epsilon=0.01, evaluations=3, share=0.1),
        terms(stage(0.5, 10), epsilon=1e-3),
        terms(stage(0.5, 100), epsilon=50.0),
    ],
)
def test_epsilon_is_at_most_the_target_and_within_the_tolerance(case: PrivacyTerms) -> None:
    events = calibrate(case).events(case)
    assert case.epsilon * (1 - 2e-3) <= spent(events, Side.TRAINING) <= case.epsilon
    if case.metrics.evaluations:
        share = case.epsilon * case.metrics.share
        assert share * (1 - 2e-3) <= spent(events, Side.VALIDATION) <= share


def test_a_target_beyond_reach_gets_the_least_noise_that_is_ever_used(monkeypatch: pytest.MonkeyPatch) -> None:
    loose = terms(stage(0.001, 5), epsilon=100.0)
    assert calibrate(loose).noise_scale == pytest.approx(0.3, rel=1e-6)
    monkeypatch.setattr(accounting, "MOST_LOSS", 20.0)  # the same at 1000, in less time
    steps = terms(stage(1.0, 5000), epsilon=1e5)
    assert accounting.order_two_loss(calibrate(steps).events(steps)) == pytest.approx(20.0, rel=1e-6)


def test_few_pld_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = accounting.epsilon

    def counting(events: tuple[GaussianSum, ...], *, delta: float) -> float:
        calls.append(events)
        return real(events, delta=delta)

    monkeypatch.setattr(accounting, "epsilon", counting)
    calibration._noise_scale.__wrapped__(((0.5, 1.0, 20), (0.1, 0.4, 15)), 6.0, 1e-5)
    assert 1 <= len(calls) <= 4


def test_terms_that_differ_in_name_or_clip_norm_only_get_the_same_noise() -> None:
    noise = calibrate(TWO_STAGES)
    hits = calibration._noise_scale.cache_info().hits
    renamed = replace(TWO_STAGES, stages=(stage(0.5, 20, 1.0, "x"), TWO_STAGES.stages[1]), unit=Unit.PATIENT)
    assert calibrate(replace(renamed, clip_norm=0.1, max_records_per_unit=9)) == noise
    assert calibration._noise_scale.cache_info().hits > hits


def test_events_are_the_stages_in_order_then_the_evaluations() -> None:
    noise = Calibration(noise_scale=2.0, metric_noise=3.0)
    assert noise.events(TWO_STAGES) == (
        GaussianSum(side=Side.TRAINING, sampling_rate=0.5, noise_multiplier=2.0, count=20),
        GaussianSum(side=Side.TRAINING, sampling_rate=0.1, noise_multiplier=0.8, count=15),
        GaussianSum(side=Side.VALIDATION, sampling_rate=1.0, noise_multiplier=3.0, count=4),
    )
    assert noise.stage_event(TWO_STAGES, 1, 2).count == 2
    without = replace(TWO_STAGES, metrics=replace(TWO_STAGES.metrics, evaluations=0))
    assert len(noise.events(without)) == 2


def test_no_evaluations_need_no_metric_noise() -> None:
    assert calibrate(terms(stage(1.0, 1))).metric_noise == 0.0


@pytest.mark.parametrize(
    "case",
    [
        terms(stage(1.0, 100_000), epsilon=1e-3),
        terms(stage(1.0, 100_001)),
        terms(stage(1e-7, 1)),
        terms(stage(1.0, 1, 1e-3), stage(1.0, 1, 1e3, "b")),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(case: PrivacyTerms) -> None:
    with pytest.raises(BudgetError) as caught:
        calibrate(case)
    assert caught.value.hint


def test_json_round_trip_and_refusal() -> None:
    noise = Calibration(noise_scale=2.0, metric_noise=0.0)
    assert Calibration.from_json(noise.to_json()) == noise
    for wrong in ({"noise_scale": 0.0, "metric_noise": 0.0}, {"noise_scale": 1.0}, None):
        with pytest.raises(MalformedMessage):
            Calibration.from_json(wrong)
