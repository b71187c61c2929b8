"""Accounting: the epsilon of recorded events, by privacy loss distributions.

``dp_accounting`` is imported inside the functions, so that looking at a ledger's events costs nothing. This module does
not know where events came from or what a site may spend.

Example:
    >>> from fedward_common.privacy.events import GaussianSum, Side
    >>> step = GaussianSum(side=Side.TRAINING, sampling_rate=1.0, noise_multiplier=1.0, count=1)
    >>> round(epsilon([step], delta=1e-5), 4)
    4.3772
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from fedward_common.errors import BudgetError
from fedward_common.privacy.events import GaussianSum, Side, merged

__all__ = ["check_caps", "chi_square", "epsilon", "epsilon_rdp", "loss_interval", "order_two_loss", "renyi_loss"]

LOWEST_RATE = 1e-6
LOWEST_NOISE, HIGHEST_NOISE = 0.3, 1e5
MOST_STEPS = 100_000
MOST_KINDS = 64
MOST_LOSS = 1000.0
COARSEST_INTERVAL = 1e-3
INTERVALS_IN_A_STEP = 16.0
POINTS_OF_ONE_EVENT = 1e5

Accountant: TypeAlias = Callable[[tuple[GaussianSum, ...], float], float]

# Integer orders only: their formula is a finite sum, while fractional orders warn and may not converge.
ORDERS = (*range(2, 33), 40, 48, 56, 64, 80, 96, 128, 192, 256, 512)


def epsilon(events: Iterable[GaussianSum], *, delta: float) -> float:
    """The epsilon of these events, fixed beforehand, at ``delta``, when one unit is added or removed.

    A unit pays for its own side only. Proof: the side of a unit is a keyed hash of the unit alone, fixed for the data's
    life, so two data sets that differ in the unit u agree in all units of the other side. Given the transcript so far,
    the next output of an event on the other side then has the same distribution under both data sets and adds nothing
    to the privacy loss, also when the events are interleaved and each may depend on earlier outputs. The loss of the
    whole transcript is the loss of the events of u's side, and the maximum over both sides holds for every u (parallel
    composition, McSherry 2009, in its adaptive form).

    Args:
      events: what was done, in any order.
      delta: in (0, 1).

    Returns:
      An upper bound on epsilon; 0.0 without events.

    Guarantees:
      - Never below the true epsilon: losses are rounded pessimistically.
      - The order of events and the way that like events are split change nothing.
      - The two sides do not add up: the larger one counts.

    Raises:
      BudgetError: a cap is exceeded, or the accountant fails or answers with no finite number.

    Source: Meiser and Mohammadi 2018; Koskela et al. 2020; Doroshenko et al. 2022 (arXiv:2207.04380), "connect the
      dots", as implemented by Google's dp_accounting.
    """
    _check_delta(delta)
    kinds = merged(events)
    check_caps(kinds)
    sides = (tuple(sorted((e for e in kinds if e.side is side), key=_order)) for side in Side)
    return max(_epsilon_of_a_side(side, delta) for side in sides)


def epsilon_rdp(events: Iterable[GaussianSum], *, delta: float) -> float:
    """As ``epsilon``, by Renyi differential privacy: looser, and a second opinion from other mathematics.

    Source: Mironov 2017 (arXiv:1702.07476); Mironov et al. 2019 (arXiv:1908.10530); the conversion is Canonne et al.
      2020 (arXiv:2004.00010), proposition 12.
    """
    _check_delta(delta)
    kinds = merged(events)
    check_caps(kinds)
    sides = (tuple(e for e in kinds if e.side is side) for side in Side)
    return max(_guarded(_rdp, side, delta) if side else 0.0 for side in sides)


def renyi_loss(events: Iterable[GaussianSum], *, order: int) -> float:
    """The Renyi divergence of one integer order, of all events of the costlier side together.

    Losses of one order add up, also when later events are chosen after seeing earlier outputs. A unit pays for its own
    side only, as in ``epsilon``.

    Args:
      events: what was done, in any order.
      order: at least 2.

    Returns:
      The loss; 0.0 without events.

    Raises:
      BudgetError: a cap is exceeded, or the accountant fails or answers with no finite number.

    Source: Mironov 2017 (arXiv:1702.07476); Mironov et al. 2019 (arXiv:1908.10530), the sampled Gaussian.
    """
    kinds = merged(events)
    check_caps(kinds)
    sides = (tuple(sorted((e for e in kinds if e.side is side), key=_order)) for side in Side)
    return max(_renyi_loss_of_a_side(side, order) for side in sides)


def loss_interval(events: tuple[GaussianSum, ...]) -> float:
    """The width of the loss grid: 1e-3, and finer where a single step loses less than 16 such widths.

    Rounding adds about a sixth of its square to the variance of each step (measured: a relative error in epsilon of
    0.09 (width / loss)^2), which at 1e-3 overstates epsilon by 5 % for 10^5 steps at q = 0.001. A coarser grid is never
    wrong, only loose. Steps at q = 1 count once, because their composition is one Gaussian.
    """
    variance = math.fsum(_loss_variance(e) for e in events)
    steps = sum(1 if e.sampling_rate == 1 else e.count for e in events)
    wanted = math.sqrt(variance / steps) / INTERVALS_IN_A_STEP
    sampled = [15.0 / e.noise_multiplier for e in events if e.sampling_rate < 1]
    floor = max(sampled, default=0.0) / POINTS_OF_ONE_EVENT  # keeps the grid of one step small
    return min(COARSEST_INTERVAL, max(2.0 ** math.floor(math.log2(wanted)), floor))


def check_caps(events: Iterable[GaussianSum]) -> None:
    """Refuse events whose accounting could take unbounded time or memory, before any accountant runs.

    The memory of a privacy loss distribution grows with the range of the total loss. The Renyi divergence of order 2
    bounds its mean and is a closed form, so that ``MOST_LOSS`` bounds the range; such a run would promise nothing.

    Raises:
      BudgetError: rates, noise, number of steps, kinds of events or total loss out of range.
    """
    kinds = merged(events)
    for event in kinds:
        _cap(event.sampling_rate >= LOWEST_RATE, f"a sampling rate of {event.sampling_rate}", f">= {LOWEST_RATE:g}")
        _cap(
            LOWEST_NOISE <= event.noise_multiplier <= HIGHEST_NOISE,
            f"a noise multiplier of {event.noise_multiplier}",
            f"between {LOWEST_NOISE:g} and {HIGHEST_NOISE:g}",
        )
    steps = sum(event.count for event in kinds)
    _cap(steps <= MOST_STEPS, f"{steps} steps", f"at most {MOST_STEPS}")
    _cap(len(kinds) <= MOST_KINDS, f"{len(kinds)} kinds of events", f"at most {MOST_KINDS}")
    _cap(order_two_loss(kinds) <= MOST_LOSS, "an expected privacy loss", f"at most {MOST_LOSS:g}: more noise or steps")


def order_two_loss(events: Iterable[GaussianSum]) -> float:
    """The Renyi divergence of order 2 of all events together: the sum of log(1 + chi^2), exact for integer orders."""
    return math.fsum(e.count * math.log1p(_chi_square_of_a_step(e)) for e in events)


def chi_square(events: Iterable[GaussianSum]) -> float:
    """Sum of the chi-square divergences of all steps: about the variance of the total loss when steps are many."""
    return math.fsum(e.count * _chi_square_of_a_step(e) for e in events)


def _chi_square_of_a_step(event: GaussianSum) -> float:
    return event.sampling_rate**2 * math.expm1(event.noise_multiplier**-2)


def _cap(holds: bool, what: str, wanted: str) -> None:
    if not holds:
        raise BudgetError(f"{what} is beyond what accounting accepts", hint=f"choose {wanted}")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise BudgetError(f"delta is {delta}", hint="give delta between 0 and 1, well below one over the units")


def _order(event: GaussianSum) -> tuple[float, float]:
    return event.sampling_rate, event.noise_multiplier


@lru_cache(maxsize=4096)
def _epsilon_of_a_side(events: tuple[GaussianSum, ...], delta: float) -> float:
    return _guarded(_pld, events, delta) if events else 0.0


def _guarded(accountant: Accountant, events: tuple[GaussianSum, ...], delta: float) -> float:
    """An accountant that fails refuses."""
    try:
        answer = float(accountant(events, delta))
    except Exception as error:
        raise BudgetError(
            f"the accountant failed ({type(error).__name__})", hint="use fewer steps or more noise; delta above 1e-12"
        ) from error
    if not math.isfinite(answer):
        raise BudgetError("the accountant finds no finite epsilon", hint="use more noise, or a delta above 1e-12")
    return answer


def _pld(events: tuple[GaussianSum, ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=loss_interval(events)
    )
    for event in events:
        accountant.compose(_event(event), event.count)
    return max(0.0, float(accountant.get_epsilon(delta)))


def _rdp(events: tuple[GaussianSum, ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        accountant.compose(_event(event), event.count)
    orders = np.asarray(ORDERS, dtype=np.float64)
    bounds = np.maximum(accountant.rdp, 0.0) + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(np.min(bounds)))


@lru_cache(maxsize=4096)
def _renyi_loss_of_a_side(events: tuple[GaussianSum, ...], order: int) -> float:
    return _guarded(_renyi, events, order) if events else 0.0


def _renyi(events: tuple[GaussianSum, ...], order: float) -> float:
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant([int(order)], dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        accountant.compose(_event(event), event.count)
    return max(0.0, float(accountant.rdp[0]))


def _event(event: GaussianSum) -> object:
    """The event in dp_accounting's words; a rate of 1 is the plain Gaussian, whose composition is exact."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sampling_rate == 1 else dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)


def _loss_variance(event: GaussianSum) -> float:
    if event.sampling_rate == 1:
        return event.count / event.noise_multiplier**2
    return event.count * _chi_square_of_a_step(event)
