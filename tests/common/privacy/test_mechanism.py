from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedward_common.errors import PrivacyError
from fedward_common.privacy import noise
from fedward_common.privacy.calibration import Calibration
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum, clip_factors, clipped_sum
from fedward_common.privacy.randomness import Stream

KEY = bytes(32)
STEP = PrivateSum(sampling_rate=0.25, noise_multiplier=2.0, clip_norm=0.5, nominal_units=400, max_records_per_unit=3)
METRIC = PrivateMetric(noise_multiplier=0.3, loss_cap=math.log(4))
ANY_FLOAT = st.floats(width=32)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(0, width=32)), st.floats(1e-9, 1e9))
def test_factor_times_norm_is_at_most_the_clip_norm(norms: NDArray[np.float32], clip_norm: float) -> None:
    factors = clip_factors(norms, clip_norm=clip_norm)
    finite = np.isfinite(norms)
    assert factors.dtype == np.float32
    assert np.all((factors >= 0) & (factors <= 1))
    assert np.all(factors[finite].astype(np.float64) * norms[finite].astype(np.float64) <= clip_norm)


def test_a_factor_below_the_normal_range_is_zero() -> None:
    """2.2e-45 would become 2.8e-45 in float32, a quarter more than allowed."""
    assert clip_factors(np.array([3e38], dtype=np.float32), clip_norm=6.6e-7).tolist() == [0.0]


def test_the_margin_covers_float32_rounding() -> None:
    """With the product itself in float32, as a training loop computes it."""
    norms = np.abs(Stream(KEY).gaussian(100_000)).astype(np.float32) + np.float32(1)
    products = STEP.clip_factors(norms) * norms
    assert np.all(products <= np.float32(STEP.clip_norm))
    assert np.all(products >= np.float32(STEP.clip_norm * (1 - 2e-5)))


def test_factors_are_zero_where_the_norm_is_not_finite_and_one_at_zero() -> None:
    factors = clip_factors(np.array([np.nan, np.inf, -np.inf, 0.0, 1e300]), clip_norm=1.0)
    assert factors.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=ANY_FLOAT))
def test_adding_or_removing_one_row_moves_the_sum_by_at_most_the_clip_norm(vectors: NDArray[Any]) -> None:
    total = clipped_sum(vectors, clip_norm=0.5)
    for row in range(len(vectors)):
        rest = clipped_sum(np.delete(vectors, row, axis=0), clip_norm=0.5)
        assert np.linalg.norm(total - rest) <= 0.5 * (1 + 1e-12)


def test_a_row_that_is_not_finite_contributes_zero() -> None:
    vectors = np.array([[0.1, 0.2], [np.nan, 0.0], [np.inf, 1.0]])
    assert np.array_equal(STEP.clipped_sum(vectors), vectors[0])
    assert np.array_equal(STEP.clipped_sum(np.zeros((0, 2))), np.zeros(2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling_rate": 0.0},
        {"noise_multiplier": 0.0},
        {"clip_norm": 0.0},
        {"nominal_units": 0},
        {"max_records_per_unit": 0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(STEP, **wrong)


def test_for_stage_takes_everything_from_terms_and_calibration() -> None:
    stage = StageTerms(name="a", sampling_rate=0.25, rounds=7, local_steps=1, noise_ratio=0.5)
    terms = PrivacyTerms(
        epsilon=8.0,
        delta=1e-5,
        unit=Unit.RECORD,
        clip_norm=0.5,
        max_records_per_unit=3,
        stages=(stage,),
        metrics=MetricTerms(evaluations=1, share=1.0, validation_fraction=0.1),
    )
    calibration = Calibration(noise_scale=4.0, metric_noise=0.3)
    assert PrivateSum.for_stage(terms, calibration, stage_index=0, nominal_units=400) == STEP
    assert PrivateMetric.for_run(calibration, loss_cap=math.log(4)) == METRIC
    assert (replace(STEP.event, count=7), METRIC.event) == calibration.events(terms)


def test_events_say_what_was_done() -> None:
    assert STEP.event == GaussianSum(side=Side.TRAINING, sampling_rate=0.25, noise_multiplier=2.0, count=1)
    assert METRIC.event == GaussianSum(side=Side.VALIDATION, sampling_rate=1.0, noise_multiplier=0.3, count=1)


@settings(deadline=None)
@given(st.integers(0, 300))
def test_draw_units_are_sorted_members_of_the_population(population: int) -> None:
    drawn = STEP.draw_units(population, Stream(KEY))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert all(0 <= unit < population for unit in drawn)
    assert len(replace(STEP, sampling_rate=1.0).draw_units(population, Stream(KEY))) == population


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), unique=True, max_size=12))
def test_choose_records_takes_at_most_the_cap(records: list[int]) -> None:
    chosen = STEP.choose_records(np.array(records, dtype=np.int64), Stream(KEY)).tolist()
    assert len(chosen) == min(3, len(records))
    assert chosen == [record for record in records if record in chosen]


def test_the_divisor_is_public_whatever_the_number_of_units() -> None:
    assert STEP.divisor == 100.0
    total = np.array([0.25, -3.0, 0.0])
    noised = noise.add_noise(total, sensitivity=0.5, noise_multiplier=2.0, stream=Stream(KEY))
    assert np.array_equal(STEP.release(total, Stream(KEY)), noised / 100.0)


def test_release_refuses_a_total_that_is_not_finite() -> None:
    with pytest.raises(PrivacyError):
        STEP.release(np.array([np.nan]), Stream(KEY))


@settings(deadline=None)
@given(arrays.arrays(np.float64, (2, 5), elements=st.floats()))
def test_a_contribution_fits_the_clip_norm(values: NDArray[np.float64]) -> None:
    rows = METRIC.contributions(values[0], values[1])
    assert rows.shape == (5, 3)
    assert np.all((rows >= 0) & (rows <= 1))
    assert np.all(np.linalg.norm(rows, axis=1) <= METRIC.clip_norm)


def test_a_unit_with_a_value_that_is_not_finite_contributes_nothing_to_metrics() -> None:
    rows = METRIC.contributions(np.array([1.0, np.nan, 0.5]), np.array([np.inf, 0.1, 99.0]))
    assert rows.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 1.0, 1.0]]


def test_metric_sums_come_near_the_truth() -> None:
    """Noise of 0.3 x sqrt(3) = 0.52 on 10,000 units; the margin of clipping takes up to 0.1."""
    sums = METRIC.measure(np.full(10_000, 0.5), np.full(10_000, 9.9), Stream(KEY))
    assert sums.correct == pytest.approx(5000, abs=5)
    assert sums.units == pytest.approx(10_000, abs=5)
    assert sums.loss == pytest.approx(10_000 * math.log(4), abs=7)


def test_metrics_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(PrivacyError):
        METRIC.measure(np.zeros(2), np.zeros(3), Stream(KEY))
