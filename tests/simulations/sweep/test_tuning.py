from __future__ import annotations

from typing import Any

import pytest

from fedward_common.config import RunConfig
from fedward_common.privacy import accounting
from fedward_common.privacy.grants import Quote
from fedward_simulations.sweep.tuning import Composed, Spent, composed, sentences

RUN: dict[str, Any] = {
    "data": {"train": "notes.csv"},
    "task": {"labels": ["yes", "no"]},
    "stages": [{"name": "head", "train": ["head"], "rounds": 3, "evaluate_every": 3}],
}


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({**RUN, **changes})


def spent(epsilon: float, *, delta: float = 1e-5, **epsilons: float) -> Spent:
    return Spent(config=config(privacy={"epsilon": epsilon, "delta": delta}), epsilons=epsilons or None)


def test_the_sums_are_those_of_the_runs_own_epsilons_and_deltas_basic_composition() -> None:
    cost = composed([spent(1.0, north=0.9, south=0.8), spent(4.0, delta=1e-4, north=3.0, south=3.9)])[0]
    assert cost.sum_epsilon == pytest.approx(0.9 + 3.9)  # a unit may lie at either in either run
    assert cost.sum_delta == pytest.approx(1.1e-4)
    assert cost.by_site == pytest.approx({"north": 3.9, "south": 4.7})
    assert (cost.runs, cost.unit) == (2, "record")


def test_a_run_that_did_not_end_counts_with_all_that_it_reserved() -> None:
    ended, stopped = spent(2.0, ward=1.5), spent(2.0)
    reserved = Quote.of(stopped.config.terms).epsilon
    cost = composed([ended, stopped])[0]
    assert cost.sum_epsilon == pytest.approx(1.5 + reserved)
    assert cost.by_site == pytest.approx({"ward": 1.5 + reserved})


def test_the_composition_of_the_events_never_exceeds_the_sum() -> None:
    for count in (1, 2, 5):
        held = [Spent(config=config(seed=seed), epsilons={"ward": 7.99}) for seed in range(count)]
        cost = composed(held)[0]
        assert cost.pld_epsilon is not None and cost.sum_epsilon is not None and cost.sum_delta is not None
        assert cost.pld_epsilon <= cost.sum_epsilon
        events = [event for run in held for event in Quote.of(run.config.terms).events]
        assert cost.pld_epsilon == min(accounting.epsilon(events, delta=cost.sum_delta), cost.sum_epsilon)
        assert count < 5 or cost.pld_epsilon < 0.7 * cost.sum_epsilon


def test_where_the_sides_of_units_move_a_unit_pays_for_both() -> None:
    def cost(*fractions: float) -> Composed:
        return composed(
            Spent(config=config(seed=n, privacy={"validation_fraction": f}), epsilons={"ward": 7.9})
            for n, f in enumerate(fractions)
        )[0]

    apart, same = cost(0.1, 0.2), cost(0.1, 0.1)
    assert apart.pld_epsilon is not None
    assert same.pld_epsilon is not None
    assert apart.pld_epsilon > same.pld_epsilon


def test_where_ids_may_be_others_a_unit_pays_for_both_sides() -> None:
    def cost(*trains: str) -> Composed:
        held = ({"train": train} for train in trains)
        return composed(Spent(config=config(seed=n, data=d), epsilons={"ward": 7.9}) for n, d in enumerate(held))[0]

    apart, same = cost("notes.csv", "sorted.csv"), cost("notes.csv", "notes.csv")
    assert apart.pld_epsilon is not None
    assert same.pld_epsilon is not None
    assert apart.pld_epsilon > same.pld_epsilon


def test_runs_that_were_chosen_by_results_have_no_composition_of_events() -> None:
    held = [Spent(config=config(seed=seed), epsilons={"ward": 7.99}) for seed in range(3)]
    fixed, grown = composed(held)[0], composed(held, grown=True)[0]
    assert fixed.pld_epsilon is not None and grown.pld_epsilon is None
    assert grown.sum_epsilon == fixed.sum_epsilon
    assert "No composition of their events: runs were added" in sentences([grown], [], per_site=False)[0]
    assert composed(held[:1], grown=True)[0].pld_epsilon is not None


def test_units_at_several_sites_add_up_over_sites() -> None:
    split = config(
        privacy={"unit": "patient"},
        data={"train": "n.csv", "unit": "patient"},
        partition={"units": "split", "sites": 3},
    )
    cost = composed([Spent(config=split, epsilons={"a": 2.0, "b": 2.0, "c": 1.0})])[0]
    assert cost.sum_epsilon == pytest.approx(6.0)
    assert cost.sum_delta == pytest.approx(3e-5)
    assert cost.pld_epsilon is None
    assert "several sites" in sentences([cost], [split], per_site=False)[0]


def test_no_figure_is_given_that_is_too_low_where_a_unit_may_lie_at_several_sites_all_count_or_there_is_none() -> None:
    natural = config(
        privacy={"unit": "patient"},
        data={"train": "n.csv", "unit": "patient", "site": "ward"},
        partition={"units": "split", "method": "natural"},
    )
    reserved = Quote.of(natural.terms).epsilon
    ended = Spent(config=natural, epsilons={str(ward): 7.9 for ward in range(12)})
    cost = composed([ended, Spent(config=natural, epsilons=None, sites=12)])[0]
    assert cost.sum_epsilon == pytest.approx(12 * (7.9 + reserved))
    assert cost.sum_delta == pytest.approx(24e-5)
    cost = composed([ended, Spent(config=natural, epsilons=None)])[0]
    assert cost.sum_epsilon is cost.sum_delta is cost.pld_epsilon is None
    assert "What a patient has spent is not known: a run that did not end" in sentences([cost], [], per_site=False)[0]


def test_units_of_different_kinds_are_not_added() -> None:
    patients = config(privacy={"unit": "patient"}, data={"train": "n.csv", "unit": "patient"})
    held = [spent(2.0, ward=2.0), Spent(config=patients, epsilons={"ward": 8.0})]
    costs = composed(held)
    assert [(cost.unit, cost.runs) for cost in costs] == [("record", 1), ("patient", 1)]
    assert any("composed apart" in line for line in sentences(costs, [r.config for r in held], per_site=False))


def test_beyond_the_accountants_caps_the_sums_remain() -> None:
    held = [
        Spent(config=config(privacy={"epsilon": 1.0 + n / 100}), epsilons={"ward": 1.0 + n / 100}) for n in range(70)
    ]
    cost = composed(held)[0]
    assert cost.pld_epsilon is None
    assert "kinds of events" in cost.pld_missing
    assert cost.sum_epsilon == pytest.approx(sum(1.0 + n / 100 for n in range(70)))


def test_what_a_person_must_read() -> None:
    held = [Spent(config=config(seed=seed), epsilons={"ward": 7.9991}) for seed in (0, 1)]
    lines = sentences(composed(held), [run.config for run in held], per_site=True)
    text = " ".join(lines)
    assert "all 2 runs that began compose" in text
    assert "epsilon 15.999 at delta 2e-05" in text  # 15.9982, rounded up
    assert "seeded_randomness" in text
    assert "same seed draw the same noise" in text
    assert "Every seed holds out other records" in text
    assert "no guarantee covers them" in text
    tested = config(data={"train": "n.csv", "test": "t.csv"})
    assert "holds out" not in " ".join(sentences(composed(held), [tested], per_site=False))


def test_one_run_is_one_run() -> None:
    cost = composed([spent(2.0, ward=1.5)])
    assert "the epsilon of the 1 run that began counts" in sentences(cost, [], per_site=False)[0]


def test_nothing_ran_nothing_is_spent() -> None:
    assert composed([]) == []
