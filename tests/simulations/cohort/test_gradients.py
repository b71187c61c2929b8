from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedward_simulations.cohort.gradients import Groups, Outer, norms_of, numbers_within, written_out

CPU = torch.device("cpu")


def numbered(groups: list[int]) -> np.ndarray:
    """Groups from 0 without gaps, whatever numbers they had."""
    return np.unique(np.array(groups, np.int64), return_inverse=True)[1]


def rows(count: int, width: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_product_written_out_is_rows_times_columns() -> None:
    outer = Outer(left=rows(5, 3), right=rows(5, 4, seed=1))
    expected = torch.stack([torch.outer(a, b).flatten() for a, b in zip(outer.left, outer.right, strict=True)])
    torch.testing.assert_close(written_out(outer), expected)
    torch.testing.assert_close(norms_of(outer), expected.double().norm(dim=1))


@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=40), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_each_group_is_summed_with_its_weights(groups: list[int], dtype: torch.dtype) -> None:
    where = numbered(groups)
    outer, weights = (
        Outer(left=rows(len(where), 2), right=rows(len(where), 3, seed=1)),
        rows(len(where), 1, seed=2)[:, 0],
    )
    expected = torch.zeros(int(where.max()) + 1, 6, dtype=torch.float64)
    expected.index_add_(0, torch.from_numpy(where), written_out(outer).double() * weights.double().unsqueeze(1))
    made = Groups(where, device=CPU, dtype=dtype)
    for gradients in (outer, written_out(outer)):
        found = made.sums(gradients, weights)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exponent", [-30, -22, 0, 12, 18])
def test_the_norm_of_a_product_holds_where_the_squares_of_one_factor_leave_float32(exponent: int) -> None:
    outer = Outer(left=rows(3, 4) * 10.0**-exponent, right=rows(3, 4, seed=1) * 10.0**exponent)
    exact = torch.bmm(outer.left.double().unsqueeze(2), outer.right.double().unsqueeze(1)).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms_of(outer), exact, rtol=1e-6, atol=0)


def test_one_large_group_pads_no_other() -> None:
    """A thousand records of one group and as many groups of one: slots for all would be a thousand times as many."""
    where = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 1001)])
    outer, weights = Outer(left=rows(2000, 2), right=rows(2000, 50, seed=1)), torch.ones(2000)
    made = Groups(where, device=CPU)
    made.spread = None  # type: ignore[method-assign,assignment]
    found = made.sums(outer, weights)
    torch.testing.assert_close(found[0], written_out(outer)[:1000].sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1:], written_out(outer)[1000:])


@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_what_is_spread_is_gathered_again(groups: list[int]) -> None:
    where = numbered(groups)
    made, held = Groups(where, device=CPU), rows(len(where), 3)
    assert torch.equal(made.gathered(made.spread(held)), held)


@pytest.mark.parametrize("groups", [[], [0], [2, 0, 2, 2, 0]])
def test_records_are_numbered_within_their_group(groups: list[int]) -> None:
    assert numbers_within(np.array(groups, np.int64)).tolist() == [
        groups[:at].count(own) for at, own in enumerate(groups)
    ]
