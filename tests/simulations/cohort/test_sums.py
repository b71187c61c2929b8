from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedward_common.privacy.mechanism import PrivateSum
from fedward_simulations.cohort.gradients import Outer, written_out
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.cohort.sums import ClippedSums, _factors_there, clip_factors

CPU = torch.device("cpu")
SLICES = [slice(0, 3), slice(3, 8)]
MECHANISM = PrivateSum(sampling_rate=0.5, noise_multiplier=1.0, clip_norm=0.7, nominal_units=10, max_records_per_unit=5)


def laid_out(*sites: list[int]) -> FlatRecords:
    """Sites with units of so many records each, all of one length."""
    units, lengths = [], []
    for sizes in sites:
        units.append(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else [])
        lengths.append(np.ones(sum(sizes), np.int64))
    return FlatRecords.of(units, lengths=lengths)


def summed(flat: FlatRecords, rows: torch.Tensor, *, sites: int, records: int = 100) -> torch.Tensor:
    sums = ClippedSums(sites=sites, slices=SLICES, mechanism=MECHANISM, device=CPU)
    for batch in flat.cuts(tokens=10_000, records=records):
        sums.add([rows[batch, part].clone() for part in SLICES], flat, batch)
    return sums.totals


def by_hand(flat: FlatRecords, rows: torch.Tensor, *, sites: int) -> torch.Tensor:
    totals = torch.zeros(sites, rows.shape[1], dtype=torch.float64)
    for unit in np.unique(flat.units):
        own = np.flatnonzero(flat.units == unit)
        mean = rows[own].double().mean(0)
        norm = float(mean.norm())
        if math.isfinite(norm):
            totals[int(flat.owners[own[0]])] += mean * min(1.0, 0.7 / (norm * (1 + 1e-5)))
    return totals


def gradients(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("records", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sites", [([1] * 40, [1] * 3, []), ([3, 1, 2], [], [5, 1]), ([1],)])
def test_each_units_mean_enters_its_own_sites_sum_clipped(sites: tuple[list[int], ...], records: int) -> None:
    flat = laid_out(*sites)
    rows = gradients(len(flat))
    totals = summed(flat, rows, sites=len(sites), records=records)
    torch.testing.assert_close(totals, by_hand(flat, rows, sites=len(sites)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("records", [1, 2, 100])
@pytest.mark.parametrize("sites", [([1, 1, 1], [1, 1]), ([2, 1], [3, 1])])
def test_a_unit_that_is_not_finite_contributes_zero_and_changes_nothing_else(
    sites: tuple[list[int], ...], records: int, value: float
) -> None:
    flat = laid_out(*sites)
    rows = gradients(len(flat))
    broken = rows.clone()
    broken[int(np.flatnonzero(flat.units == 1)[0]), 4] = value
    totals = summed(flat, broken, sites=len(sites), records=records)
    assert bool(torch.isfinite(totals).all())
    torch.testing.assert_close(totals, by_hand(flat, broken, sites=len(sites)), rtol=1e-5, atol=1e-6)


def test_the_same_batches_give_bit_identical_totals() -> None:
    flat = laid_out([1] * 50, [2, 3], [1] * 20)
    rows = gradients(len(flat))
    assert torch.equal(summed(flat, rows, sites=3, records=9), summed(flat, rows, sites=3, records=9))


def test_factors_are_the_mechanisms_bit_by_bit() -> None:
    norms = torch.cat([torch.logspace(-30, 30, 4001), torch.tensor([0.0, 0.7, math.nan, math.inf, 3e38, 1e-45])])
    expected = MECHANISM.clip_factors(norms.numpy())
    np.testing.assert_array_equal(clip_factors(norms, MECHANISM).numpy(), expected)
    np.testing.assert_array_equal(_factors_there(norms, MECHANISM).numpy(), expected)


def products(count: int) -> Outer:
    made = torch.Generator().manual_seed(1)
    return Outer(left=torch.randn(count, 2, generator=made), right=torch.randn(count, 4, generator=made))


@pytest.mark.parametrize("broken", [None, "left", "right"])
@pytest.mark.parametrize("records", [1, 3, 100, 1000])
@pytest.mark.parametrize("sites", [([1] * 40, [1] * 3, []), ([3, 1, 2], [], [5, 1]), ([1] * 700, [1])])
def test_products_of_vectors_are_summed_as_what_they_are(
    sites: tuple[list[int], ...], records: int, broken: str | None
) -> None:
    flat = laid_out(*sites)
    outer = products(len(flat))
    if broken:
        getattr(outer, broken)[int(np.flatnonzero(flat.units == 1)[0]), 1] = math.nan
    rows, written = gradients(len(flat)), written_out(outer)
    sums = ClippedSums(sites=len(sites), slices=[slice(0, 8), slice(8, 16)], mechanism=MECHANISM, device=CPU)
    for batch in flat.cuts(tokens=10_000, records=records):
        own = Outer(left=outer.left[batch].clone(), right=outer.right[batch].clone())
        sums.add([own, rows[batch].clone()], flat, batch)
    expected = by_hand(flat, torch.cat([written, rows], dim=1), sites=len(sites))
    assert bool(torch.isfinite(sums.totals).all())
    torch.testing.assert_close(sums.totals, expected, rtol=1e-5, atol=1e-6)
