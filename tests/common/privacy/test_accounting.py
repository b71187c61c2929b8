from __future__ import annotations

import math

import pytest

from fedward_common.errors import BudgetError
from fedward_common.privacy import accounting
from fedward_common.privacy.accounting import check_caps, epsilon, epsilon_rdp, order_two_loss, renyi_loss
from fedward_common.privacy.events import GaussianSum, Side

DELTA = 1e-5


def event(q: float, sigma: float, count: int = 1, side: Side = Side.TRAINING) -> GaussianSum:
    return GaussianSum(side=side, sampling_rate=q, noise_multiplier=sigma, count=count)


def test_no_events_cost_nothing() -> None:
    assert epsilon([], delta=DELTA) == 0.0
    assert epsilon_rdp([], delta=DELTA) == 0.0


def test_order_and_splitting_change_nothing() -> None:
    a, b = event(0.5, 2.0, 10), event(0.1, 1.0, 5)
    whole = epsilon([a, b], delta=DELTA)
    assert epsilon([b, event(0.5, 2.0, 4), event(0.5, 2.0, 6)], delta=DELTA) == whole


def test_the_larger_side_counts_and_sides_do_not_add_up() -> None:
    training, validation = event(1.0, 2.0, 3), event(1.0, 4.0, 3, Side.VALIDATION)
    both = epsilon([training, validation], delta=DELTA)
    assert both == epsilon([training], delta=DELTA)
    assert both > epsilon([validation], delta=DELTA)
    assert epsilon([validation, event(1.0, 9.0)], delta=DELTA) == epsilon([validation], delta=DELTA)
    assert epsilon([event(1.0, 2.0, 6)], delta=DELTA) > both


@pytest.mark.parametrize(("q", "sigma", "count"), [(0.5, 2.0, 20), (0.01, 1.0, 500), (1.0, 5.0, 10)])
def test_rdp_is_looser_than_pld(q: float, sigma: float, count: int) -> None:
    tight, loose = (f([event(q, sigma, count)], delta=DELTA) for f in (epsilon, epsilon_rdp))
    assert tight < loose < 1.3 * tight


@pytest.mark.parametrize(
    "events",
    [
        [event(1e-7, 1.0)],
        [event(0.5, 0.29)],
        [event(0.5, 1.1e5)],
        [event(0.5, 10.0, 100_001)],
        [event(0.5, 2.0 + i) for i in range(65)],
        [event(0.5, 0.3, 1000)],
        [event(1.0, 1.0, 2000)],
    ],
)
def test_caps_refuse_before_an_accountant_runs(events: list[GaussianSum], monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object) -> float:
        raise AssertionError("an accountant ran")

    monkeypatch.setattr(accounting, "_pld", boom)
    for refuse in (lambda: check_caps(events), lambda: epsilon(events, delta=DELTA)):
        with pytest.raises(BudgetError, match="beyond what accounting accepts") as caught:
            refuse()
        assert caught.value.hint


def test_at_the_caps_accounting_ends_soon_with_small_grids() -> None:
    """The corners of the accepted range; memory follows from the number of grid points."""
    corners = [event(1.0, 10.0, 100_000), event(1e-6, 0.3, 100_000), event(0.5, 0.3, 100), event(1e-6, 1e5, 10)]
    for corner in corners:
        check_caps([corner])
        spread = 20 * math.sqrt(order_two_loss([corner])) + 15 / corner.noise_multiplier + order_two_loss([corner])
        assert spread / accounting.loss_interval((corner,)) < 3e6
    assert math.isfinite(epsilon([corners[1]], delta=DELTA))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_is_checked(delta: float) -> None:
    with pytest.raises(BudgetError, match="delta is"):
        epsilon([event(0.5, 1.0)], delta=delta)


@pytest.mark.parametrize("answer", [math.inf, math.nan])
def test_an_answer_that_is_not_finite_refuses(answer: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_rdp", lambda *_: answer)
    with pytest.raises(BudgetError, match="no finite epsilon"):
        epsilon_rdp([event(0.5, 1.0)], delta=DELTA)


def test_an_accountant_that_fails_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_: object) -> float:
        raise MemoryError

    monkeypatch.setattr(accounting, "_rdp", boom)
    with pytest.raises(BudgetError, match="MemoryError"):
        epsilon_rdp([event(0.5, 1.0)], delta=DELTA)


def test_a_delta_out_of_reach_refuses() -> None:
    with pytest.raises(BudgetError):
        epsilon([event(0.5, 1.0, 7)], delta=1e-30)


def test_small_losses_get_a_finer_grid() -> None:
    """At a width of 1e-3 this is 0.37, and at 1e-5 it is 0.3422."""
    assert epsilon([event(0.01, 10.0, 10_000)], delta=DELTA) == pytest.approx(0.3422, rel=2e-3)


def test_order_two_loss_is_exact_for_the_gaussian() -> None:
    assert order_two_loss([event(1.0, 2.0, 3)]) == pytest.approx(3 / 4)


@pytest.mark.parametrize("order", [2, 8, 32])
def test_the_renyi_loss_of_gaussians_has_a_closed_form(order: int) -> None:
    """Mironov 2017, proposition 7: order / (2 sigma^2) for each."""
    events = [event(1.0, 2.0, 3), event(1.0, 5.0, 10)]
    assert renyi_loss(events, order=order) == pytest.approx(order / 2 * (3 / 4 + 10 / 25), rel=1e-9)
    assert renyi_loss([], order=order) == 0.0


def test_the_renyi_loss_of_order_two_is_that_of_the_chi_square() -> None:
    events = [event(0.1, 1.5, 7)]
    assert renyi_loss(events, order=2) == pytest.approx(order_two_loss(events), rel=1e-6)


def test_renyi_losses_add_up_and_the_costlier_side_counts() -> None:
    training, validation = event(0.5, 2.0, 3), event(1.0, 1.0, 3, Side.VALIDATION)
    assert renyi_loss([training, training], order=8) == pytest.approx(2 * renyi_loss([training], order=8))
    both = renyi_loss([training, validation], order=8)
    assert both == renyi_loss([validation], order=8) > renyi_loss([training], order=8)
