"""Fault plans and tempers: pure functions of a seed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import ConfigError
from fedward_common.simulated import Poison, SimulationConfig
from fedward_simulations.sites.faults import Fate, FaultPlan, Temper, flipped, tempers, with_flipped_labels
from support.federation import small_config, some_records

SITES = [f"site-{number:04}" for number in range(1, 2001)]


def plan(*, seed: int = 0, deadline_s: float = 60.0, **settings: Any) -> FaultPlan:
    return FaultPlan(settings=SimulationConfig(**settings), seed=seed, deadline_s=deadline_s)


def fates(faults: FaultPlan, *, round: int = 1) -> Counter[Fate]:
    return Counter(faults.fault(site, round=round, attempt=1).fate for site in SITES)


class TestFaultPlan:
    def test_a_pure_function_of_seed_site_round_and_attempt(self) -> None:
        one, other = (plan(seed=seed, dropout=0.3, compute_s=5.0, straggle_sigma=1.0) for seed in (1, 2))
        asked = [(site, round, attempt) for site in SITES[:40] for round in (1, 2) for attempt in (1, 2)]
        forwards = {about: one.fault(about[0], round=about[1], attempt=about[2]) for about in asked}
        again = plan(seed=1, dropout=0.3, compute_s=5.0, straggle_sigma=1.0)
        backwards = {about: again.fault(about[0], round=about[1], attempt=about[2]) for about in reversed(asked)}
        assert forwards == backwards
        assert fates(one) != fates(other)
        for change in ((0, 1, 2), (0, 2, 1)):
            moved = [one.fault(SITES[n], round=change[1], attempt=change[2]).fate for n in range(200)]
            assert moved != [one.fault(SITES[n], round=1, attempt=1).fate for n in range(200)]

    def test_a_fair_plan_lets_everything_through_at_once(self) -> None:
        assert {plan().fault(site, round=1, attempt=1).seconds for site in SITES} == {0.0}
        assert set(fates(plan())) == {Fate.ANSWER}

    @pytest.mark.parametrize(
        ("key", "fate"), [("dropout", Fate.SILENCE), ("late", Fate.LATE), ("corrupt", Fate.CORRUPT)]
    )
    def test_chances_are_kept(self, key: str, fate: Fate) -> None:
        # 2,000 fixed draws at 0.25: five standard deviations are 97
        settings: dict[str, Any] = {key: 0.25}
        assert abs(fates(plan(**settings))[fate] - 500) < 97
        settings = {key: 1.0}
        assert set(fates(plan(**settings))) == {fate}

    def test_a_reply_is_late_exactly_when_its_seconds_exceed_the_deadline(self) -> None:
        faults = plan(compute_s=30.0, straggle_sigma=1.0, jitter_sigma=0.5, late=0.1, corrupt=0.1, dropout=0.1)
        drawn = [faults.fault(site, round=3, attempt=1) for site in SITES]
        assert all((fault.seconds > 60.0) == (fault.fate in (Fate.LATE, Fate.SILENCE)) for fault in drawn)
        assert all(math.isinf(fault.seconds) == (fault.fate is Fate.SILENCE) for fault in drawn)

    def test_compute_times_are_log_normal_over_sites_with_median_compute_s(self) -> None:
        faults = plan(compute_s=30.0, straggle_sigma=0.8, deadline_s=1e9)
        logs = np.log([faults.fault(site, round=1, attempt=1).seconds for site in SITES])
        assert abs(np.median(logs) - math.log(30.0)) < 0.12 and abs(logs.std() - 0.8) < 0.07
        assert faults.fault("a", round=1, attempt=1) == faults.fault("a", round=9, attempt=4)  # a slow site stays slow
        restless = plan(compute_s=30.0, jitter_sigma=0.8, deadline_s=1e9)
        assert restless.fault("a", round=1, attempt=1) != restless.fault("a", round=9, attempt=4)

    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_the_result_differs_from_data_unless_that_is_empty(self, data: bytes, round: int) -> None:
        damaged = plan().damaged(data, "site-1", round=round, attempt=1)
        assert (damaged != data) == bool(data)
        assert len(damaged) <= len(data)


class TestTempers:
    def test_shares_are_whole_sites_and_nobody_is_two_things(self) -> None:
        settings = SimulationConfig(strict=0.2, spent=0.1, other_unit=0.1, poisoned=1)
        kinds = tempers(settings, seed=0, sites=SITES[:20])
        assert list(kinds) == SITES[:20]
        assert Counter(kinds.values()) == {
            Temper.WILLING: 11, Temper.STRICT: 4, Temper.SPENT: 2, Temper.OTHER_UNIT: 2, Temper.POISONED: 1
        }  # fmt: skip

    def test_the_order_of_the_sites_does_not_matter_and_the_seed_does(self) -> None:
        settings = SimulationConfig(strict=0.3)
        assert tempers(settings, seed=0, sites=SITES[:50]) == tempers(settings, seed=0, sites=SITES[49::-1])
        assert tempers(settings, seed=0, sites=SITES[:50]) != tempers(settings, seed=1, sites=SITES[:50])

    def test_at_least_one_site_is_neither_poisoned_nor_unwilling(self) -> None:
        assert set(tempers(None, seed=0, sites=["a"]).values()) == {Temper.WILLING}
        with pytest.raises(ConfigError, match="no site that is willing") as caught:
            tempers(SimulationConfig(poisoned=2), seed=0, sites=["a", "b"])
        assert caught.value.hint


def test_the_label_after_the_last_is_the_first() -> None:
    records = some_records(40)
    wrong = flipped(records, labels=3)
    assert wrong.texts == records.texts and not (wrong.labels == records.labels).any()
    assert set(wrong.labels) == {0, 1, 2}


def test_only_a_site_poisoned_by_flipping_gets_wrong_labels(tmp_path: Path) -> None:
    sites = {f"site-{number}": some_records(30, seed=number) for number in range(1, 5)}
    for poison, changed in ((Poison.FLIP, 1), (Poison.SCALE, 0)):
        config = small_config(tmp_path, simulation={"poisoned": 1, "poison": poison.value})
        trained = with_flipped_labels(config, sites)
        assert list(trained) == list(sites)
        assert sum(not np.array_equal(trained[name].labels, sites[name].labels) for name in sites) == changed
    assert with_flipped_labels(small_config(tmp_path), sites) is sites
