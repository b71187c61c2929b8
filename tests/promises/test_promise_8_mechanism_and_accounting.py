"""Promise 8: sampler, clip, noise and event come out of one constructor; epsilon is computed, never stored."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

import fedward_common.privacy
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.calibration import Calibration, calibrate
from fedward_common.privacy.events import GaussianSum, merged
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import Guarantee, MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import Purpose, SeededRandom

FALSE_ALARM = 1e-6
RANDOM = SeededRandom(seed=8, site="site-0")
SHIPPED = Path(fedward_common.privacy.__path__[0])
TERMS = PrivacyTerms(
    epsilon=6.0,
    delta=1e-5,
    unit=Unit.RECORD,
    clip_norm=0.7,
    max_records_per_unit=2,
    stages=(
        StageTerms(name="head", sampling_rate=0.5, rounds=4, local_steps=2, noise_ratio=1.0),
        StageTerms(name="core", sampling_rate=0.1, rounds=3, local_steps=1, noise_ratio=0.4),
    ),
    metrics=MetricTerms(evaluations=2, share=1.0, validation_fraction=0.1),
)


def run_of(calibration: Calibration) -> list[GaussianSum]:
    """The events of a whole run, each taken from the object that would do the step."""
    done = []
    for index, stage in enumerate(TERMS.stages):
        step = PrivateSum.for_stage(TERMS, calibration, stage_index=index, nominal_units=100)
        done += [step.event] * stage.steps
    metric = PrivateMetric.for_run(calibration, loss_cap=1.0)
    return done + [metric.event] * TERMS.metrics.evaluations


def test_what_the_mechanisms_say_they_did_is_what_was_quoted_and_promised() -> None:
    calibration = calibrate(TERMS)
    done = merged(run_of(calibration))
    assert done == Ledger.in_memory(Budget(epsilon=9.0, delta=1e-4)).quote(TERMS).events == calibration.events(TERMS)
    assert epsilon(done, delta=TERMS.delta) <= TERMS.epsilon


def test_the_event_describes_the_draw_and_the_noise() -> None:
    """Rate and noise multiplier measured on what the object does; false alarm 1e-6."""
    step = PrivateSum.for_stage(TERMS, calibrate(TERMS), stage_index=1, nominal_units=100)
    drawn = step.draw_units(400_000, RANDOM.stream(round=0, step=0, purpose=Purpose.SAMPLING))
    assert stats.binomtest(len(drawn), 400_000, step.event.sampling_rate).pvalue > FALSE_ALARM / 2

    dimension = 100_000
    noise = step.release(np.zeros(dimension), RANDOM.stream(round=0, step=0, purpose=Purpose.NOISE)) * step.divisor
    # The grid's effect on sensitivity is in the bound: what one unit can change is C (1 + 2^-20 sigma sqrt(d)) at most.
    declared = step.event.noise_multiplier * TERMS.clip_norm
    statistic = float(((noise / declared) ** 2).sum())
    assert stats.chi2.sf(statistic, dimension) < 1 - FALSE_ALARM / 4
    assert stats.chi2.sf(statistic / (1 + 2**-20 * dimension**0.5 * step.noise_multiplier) ** 2, dimension) > 2.5e-7


@pytest.mark.parametrize("extra", [1.0, 1e30, np.nan, np.inf])
def test_one_unit_moves_what_is_released_by_at_most_the_noise_the_event_declares(extra: float) -> None:
    """Neighbours under one noise stream differ by at most C + g sqrt(d) before the divisor."""
    step = PrivateSum.for_stage(TERMS, calibrate(TERMS), stage_index=0, nominal_units=100)
    units = RANDOM.stream(round=0, step=1, purpose=Purpose.RECORDS).gaussian(50 * 64).reshape(50, 64)
    more = np.concatenate([units, np.full((1, 64), extra)])
    released = [release(step, step.clipped_sum(rows)) for rows in (units, more)]
    moved = np.linalg.norm(released[1] - released[0]) * step.divisor
    assert moved <= TERMS.clip_norm * (1 + step.noise_multiplier * 2**-20 * 8)
    assert moved > 0.99 * TERMS.clip_norm if np.isfinite(extra) else moved == 0


def release(step: PrivateSum, total: NDArray[np.float64]) -> NDArray[np.float64]:
    return step.release(total, RANDOM.stream(round=0, step=0, purpose=Purpose.NOISE))


def test_the_numbers_of_a_mechanism_cannot_be_changed_afterwards() -> None:
    step = PrivateSum.for_stage(TERMS, calibrate(TERMS), stage_index=0, nominal_units=100)
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.noise_multiplier = 0.1  # type: ignore[misc]


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    return {key for item in value for key in keys(item)} if isinstance(value, list) else set()


def test_epsilon_is_computed_from_events_and_never_stored() -> None:
    ledger = Ledger.in_memory(Budget(epsilon=9.0, delta=1e-4))
    grant = ledger.reserve(ledger.quote(TERMS), run_id="one")
    given = Guarantee(unit=TERMS.unit, delta=TERMS.delta, events=grant.quote.events, waivers=())
    assert given.epsilon() == grant.quote.epsilon == ledger.spent("one", delta=TERMS.delta)
    stored = [field.name for kind in (GaussianSum, Guarantee, Calibration) for field in dataclasses.fields(kind)]
    assert not [name for name in stored if "epsilon" in name]
    opened, granted = (row["body"] for row in ledger.export())
    assert set(opened["budget"]) == {"delta", "epsilon", "filter", "order", "run_delta", "run_epsilon", "unit"}
    granted["quote"].pop("terms")  # the target is a promise, as the budget is
    assert "epsilon" not in keys([granted, given.to_json()])


def test_noise_comes_from_one_module_and_randomness_from_another() -> None:
    """Gaussian draws are asked for in noise.py only, and no module has a generator of its own."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in SHIPPED.glob("*.py")}
    assert {name for name, text in texts.items() if re.search(r"\.gaussian\(", text)} == {"noise.py"}
    generators = r"np\.random|numpy\.random|import random|import secrets|urandom\("
    assert {name for name, text in texts.items() if re.search(generators, text)} <= {"randomness.py"}
