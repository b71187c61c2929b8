"""Epsilons against mathematics and code that are not ours: a closed form, Opacus's PRV and Opacus's RDP."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq  # type: ignore[import-untyped, unused-ignore]
from scipy.stats import norm  # type: ignore[import-untyped, unused-ignore]

from fedward_common.privacy.accounting import epsilon, epsilon_rdp
from fedward_common.privacy.calibration import calibrate
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit

DELTA = 1e-5
RUNS: list[list[tuple[float, float, int]]] = [
    [(0.5, 2.3, 20), (0.1, 0.85, 15)],
    [(0.01, 1.0, 1000)],
    [(0.25, 4.0, 200)],
    [(0.001, 0.7, 2000)],
]
# Opacus 1.6.0 at delta 1e-5; PRV with eps_error 1e-3 and delta_error 1e-9.
PRV = [6.38871, 1.82925, 3.95036, 0.74415]


def events(run: list[tuple[float, float, int]]) -> list[GaussianSum]:
    return [GaussianSum(side=Side.TRAINING, sampling_rate=q, noise_multiplier=s, count=n) for q, s, n in run]


def closed_form(sigma: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8."""

    def excess(eps: float) -> float:
        below = norm.logcdf(-eps * sigma - 0.5 / sigma)
        return float(norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps + below) - delta)

    return float(brentq(excess, 0.0, 400.0, xtol=1e-12))


@pytest.mark.parametrize(
    ("sigma", "count", "delta"),
    [
        (1.0, 1, 1e-5),
        (0.5, 1, 1e-5),
        (3.0, 1, 1e-8),
        (5.0, 40, 1e-6),
        (50.0, 10, 1e-3),
        (100.0, 1, 1e-5),
        (10.0, 1000, 1e-5),
    ],
)
def test_the_gaussian_mechanism_in_closed_form(sigma: float, count: int, delta: float) -> None:
    exact = closed_form(sigma / math.sqrt(count), delta)
    found = epsilon(events([(1.0, sigma, count)]), delta=delta)
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 4e-4)


def test_two_gaussians_compose_to_one() -> None:
    exact = closed_form((2.0**-2 + 3.0**-2) ** -0.5, DELTA)
    assert epsilon(events([(1.0, 2.0, 1), (1.0, 3.0, 1)]), delta=DELTA) == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize(("run", "prv"), list(zip(RUNS, PRV, strict=True)))
def test_recorded_prv(run: list[tuple[float, float, int]], prv: float) -> None:
    """PRV's answer is an upper bound with an error of 1e-3 in epsilon."""
    assert epsilon(events(run), delta=DELTA) == pytest.approx(prv, abs=2e-3)


@pytest.mark.parametrize("run", RUNS)
def test_opacus_rdp(run: list[tuple[float, float, int]]) -> None:
    """Ours has integer orders only and so is never tighter; Opacus adds fractional ones."""
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    theirs.history = [(s, q, n) for q, s, n in run]
    bound = theirs.get_epsilon(delta=DELTA)
    assert epsilon(events(run), delta=DELTA) < bound
    assert bound * (1 - 1e-6) <= epsilon_rdp(events(run), delta=DELTA) <= bound * 1.1


@pytest.mark.parametrize("run", RUNS[1:2])
def test_opacus_prv_live(run: list[tuple[float, float, int]]) -> None:
    from opacus.accountants import PRVAccountant

    theirs = PRVAccountant()
    theirs.history = [(s, q, n) for q, s, n in run]
    bound = theirs.get_epsilon(delta=DELTA, eps_error=1e-3, delta_error=1e-9)
    assert epsilon(events(run), delta=DELTA) == pytest.approx(bound, abs=2e-3)


def test_more_noise_costs_less_and_more_sampling_steps_or_delta_cost_as_they_should() -> None:
    def cost(q: float = 0.2, sigma: float = 1.5, count: int = 50, delta: float = DELTA) -> float:
        return epsilon(events([(q, sigma, count)]), delta=delta)

    for rising in (
        [cost(sigma=s) for s in (4.0, 1.5, 1.0)],
        [cost(q=q) for q in (0.01, 0.2, 1.0)],
        [cost(count=n) for n in (1, 50, 51)],
        [cost(delta=d) for d in (1e-2, 1e-5, 1e-9)],
    ):
        assert rising == sorted(rising)
        assert len(set(rising)) == len(rising)


def test_a_calibrated_gaussian_is_the_closed_form_one() -> None:
    stage = StageTerms(name="a", sampling_rate=1.0, rounds=30, local_steps=1, noise_ratio=1.0)
    terms = PrivacyTerms(
        epsilon=3.0,
        delta=DELTA,
        unit=Unit.RECORD,
        clip_norm=1.0,
        max_records_per_unit=1,
        stages=(stage,),
        metrics=MetricTerms(evaluations=5, share=0.5, validation_fraction=0.1),
    )
    found = calibrate(terms)
    assert 3.0 * (1 - 2e-3) <= closed_form(found.noise_scale / math.sqrt(30), DELTA) <= 3.0
    assert 1.5 * (1 - 2e-3) <= closed_form(found.metric_noise / math.sqrt(5), DELTA) <= 1.5
