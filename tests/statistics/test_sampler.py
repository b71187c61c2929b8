"""Sampling, with fixed seeds. Each test would fail by chance with probability at most 1e-6 under another seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import Purpose, SeededRandom, Stream

FALSE_ALARM = 1e-6
RANDOM = SeededRandom(seed=20, site="site-0")


def stream(step: int = 0, purpose: Purpose = Purpose.SAMPLING) -> Stream:
    return RANDOM.stream(round=0, step=step, purpose=purpose)


def step(rate: float, *, cap: int = 3) -> PrivateSum:
    return PrivateSum(
        sampling_rate=rate, noise_multiplier=1.0, clip_norm=1.0, nominal_units=100, max_records_per_unit=cap
    )


def draws(rate: float, *, steps: int, population: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    table = np.zeros((steps, population), dtype=np.bool_)
    for index in range(steps):
        table[index, step(rate).draw_units(population, stream(index))] = True
    return table


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_rate_of_inclusion(rate: float) -> None:
    """Exact binomial test on 10^6 draws; false alarm 1e-6."""
    drawn = len(step(rate).draw_units(1_000_000, stream()))
    assert stats.binomtest(drawn, 1_000_000, rate).pvalue > FALSE_ALARM


def test_every_unit_has_the_same_rate() -> None:
    """Chi-square over 200 units and 2,000 steps; false alarm 1e-6."""
    counts = draws(0.3, steps=2000, population=200).sum(axis=0)
    statistic = float(((counts - 600.0) ** 2 / (600.0 * 0.7)).sum())
    assert stats.chi2.sf(statistic, 200) > FALSE_ALARM


def test_the_size_of_a_draw_is_binomial() -> None:
    """Poisson sampling, not a batch of fixed size: dispersion test both ways; false alarm 1e-6."""
    sizes = draws(0.3, steps=2000, population=200).sum(axis=1)
    statistic = float(((sizes - 60.0) ** 2).sum() / (200 * 0.3 * 0.7))
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, 2000) < 1 - FALSE_ALARM / 2


def test_units_and_steps_are_independent() -> None:
    """Correlation of neighbours in unit and in step, 400,000 pairs each; false alarm 1e-6 together."""
    table = draws(0.3, steps=2000, population=200).astype(float) - 0.3
    for product in (table[:, 1:] * table[:, :-1], table[1:] * table[:-1]):
        z = product.sum() / (0.21 * np.sqrt(product.size))
        assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM / 2


def test_records_are_chosen_uniformly() -> None:
    """All 10 subsets of 3 out of 5 records, 20,000 draws, chi-square; false alarm 1e-6."""
    source, records = stream(purpose=Purpose.RECORDS), np.arange(5, dtype=np.int64)
    subsets: dict[tuple[int, ...], int] = {}
    for _ in range(20_000):
        chosen = tuple(step(0.5).choose_records(records, source).tolist())
        subsets[chosen] = subsets.get(chosen, 0) + 1
    assert len(subsets) == 10
    assert stats.chisquare(list(subsets.values())).pvalue > FALSE_ALARM


def test_uniform_bits() -> None:
    """Each of 64 bits of 100,000 integers is fair, Bonferroni; false alarm 1e-6."""
    values = stream().uint64(100_000)
    for bit in range(64):
        ones = int(((values >> np.uint64(bit)) & np.uint64(1)).sum())
        assert stats.binomtest(ones, 100_000, 0.5).pvalue > FALSE_ALARM / 64
