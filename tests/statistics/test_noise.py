"""Noise, with fixed seeds. Each test would fail by chance with probability at most 1e-6 under another seed."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.noise import add_noise, grid, stddev
from fedward_common.privacy.randomness import CHUNK, Purpose, SecureRandom, SeededRandom, Stream, public_gaussian

FALSE_ALARM = 1e-6
N = 400_000


def stream(seed: int = 30) -> Stream:
    return SeededRandom(seed=seed, site="site-0").stream(round=0, step=0, purpose=Purpose.NOISE)


def check_standard_normal(values: NDArray[Any]) -> None:
    """Mean (z), variance (chi-square, both sides), shape (KS) and tails; a quarter of the false alarms each."""
    n, level = values.size, FALSE_ALARM / 4
    wide = values.astype(np.float64)
    assert 2 * stats.norm.sf(abs(wide.mean()) * np.sqrt(n)) > level
    assert level / 2 < stats.chi2.sf(float((wide**2).sum()), n) < 1 - level / 2
    assert stats.kstest(wide, "norm").pvalue > level
    beyond = int((np.abs(wide) > 3.5).sum())
    assert stats.binomtest(beyond, n, 2 * stats.norm.sf(3.5)).pvalue > level


def test_the_stream_is_standard_normal() -> None:
    """False alarm 1e-6; a variance that is wrong by 1 % is found with probability 0.96."""
    check_standard_normal(stream().gaussian(1_000_000))


def test_secure_noise_is_standard_normal() -> None:
    """The one test here without a fixed seed, since there is none to fix; false alarm 1e-6."""
    check_standard_normal(SecureRandom().stream(round=0, step=0, purpose=Purpose.NOISE).gaussian(N))


def test_public_initialisation_is_standard_normal() -> None:
    """False alarm 1e-6."""
    check_standard_normal(public_gaussian(30, "a", (N,)))


@pytest.mark.parametrize(("sensitivity", "sigma"), [(1.0, 1.0), (0.01, 3.0), (50.0, 0.4)])
def test_the_noise_has_the_declared_deviation(sensitivity: float, sigma: float) -> None:
    """Also after rounding to the grid, whose own variance is 1e-13 of it; false alarm 1e-6."""
    noised = add_noise(np.zeros(N), sensitivity=sensitivity, noise_multiplier=sigma, stream=stream())
    check_standard_normal(noised / stddev(sensitivity=sensitivity, noise_multiplier=sigma, dimension=N))


def test_a_step_releases_noise_of_sigma_c_over_the_divisor() -> None:
    """False alarm 1e-6. The grid adds 2^-20 sqrt(d) sigma = 0.12 % here."""
    step = PrivateSum(sampling_rate=0.5, noise_multiplier=2.0, clip_norm=0.1, nominal_units=300, max_records_per_unit=1)
    check_standard_normal(step.release(np.zeros(N), stream()) / (2.0 * 0.1 * (1 + 2**-20 * np.sqrt(N)) / 150))


def test_metric_noise_has_the_declared_deviation() -> None:
    """3 x 5,000 numbers; false alarm 1e-6."""
    metric, source = PrivateMetric(noise_multiplier=2.0, loss_cap=1.0), stream()
    sums = [metric.measure(np.zeros(0), np.zeros(0), source) for _ in range(5000)]
    values = np.array([[s.correct, s.units, s.loss] for s in sums]).reshape(-1)
    check_standard_normal(values / (2.0 * np.sqrt(3.0)))


def test_streams_are_independent() -> None:
    """Correlation between all pairs of streams of unlike site, round, step or purpose; false alarm 1e-6."""
    n = 20_000
    rows = [
        SeededRandom(seed=seed, site=site).stream(round=r, step=step, purpose=purpose).gaussian(n)
        for seed, site, r, step, purpose in [
            (0, "a", 0, 0, Purpose.NOISE),
            (1, "a", 0, 0, Purpose.NOISE),
            (0, "b", 0, 0, Purpose.NOISE),
            (0, "a", 1, 0, Purpose.NOISE),
            (0, "a", 0, 1, Purpose.NOISE),
            (0, "a", 0, 0, Purpose.METRICS),
            (0, "a", 0, 0, Purpose.SAMPLING),
            (0, "a", 0, 0, Purpose.RECORDS),
        ]
    ]
    pairs = list(combinations(rows, 2))
    for first, second in pairs:
        assert stats.pearsonr(first, second).pvalue > FALSE_ALARM / len(pairs)


def test_coordinates_are_independent() -> None:
    """Also the two numbers of one Box-Muller pair, half the vector apart, and those a chunk apart, and their squares.

    False alarm 1e-6.
    """
    values = stream().gaussian(N)
    lags = (1, 2, CHUNK, 2 * CHUNK, N // 2)
    for lag in lags:
        for x in (values, values**2):
            assert stats.pearsonr(x[:-lag], x[lag:]).pvalue > FALSE_ALARM / (2 * len(lags))


def test_the_support_does_not_depend_on_data() -> None:
    """Any total, however odd its low bits, gives multiples of one public grid, with fair last digits.

    Chi-square on the low 4 bits of the result's grid steps; false alarm 1e-6.
    """
    for total in (np.zeros(N), np.full(N, 1 / 3), stream(seed=31).gaussian(N)):
        noised = add_noise(total, sensitivity=1.0, noise_multiplier=1.0, stream=stream())
        steps = noised / grid(sensitivity=1.0, noise_multiplier=1.0)
        assert np.array_equal(steps, np.rint(steps))
        counts = np.bincount(steps.astype(np.int64) & 15, minlength=16)
        assert stats.chisquare(counts).pvalue > FALSE_ALARM / 3
