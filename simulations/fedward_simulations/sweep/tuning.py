"""Privacy of tuning: what all runs of a sweep would cost one unit together, at real sites.

A table of results is chosen from, so every run behind it was spent, also one that failed. Figures come from the events
that the runs reserved. This module knows no folders and no results.

Example:
    >>> run = {"data": {"train": "notes.csv"}, "task": {"labels": ["yes", "no"]}}
    >>> configs = [RunConfig.model_validate(run | {"seed": seed}) for seed in (0, 1)]
    >>> cost = composed([Spent(config=config, epsilons={"ward": 8.0}) for config in configs])[0]
    >>> cost.runs, cost.sum_epsilon, cost.sum_delta, 8 < cost.pld_epsilon < 16
    (2, 16.0, 2e-05, True)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedward_client.policy import SEEDED_RANDOMNESS
from fedward_common.config import PartitionMethod, Placement, RunConfig
from fedward_common.errors import FedwardError
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.grants import Quote
from fedward_common.privacy.guarantee import Unit
from fedward_common.report import rounded_up

__all__ = ["DIGITS", "Composed", "Spent", "composed", "sentences"]

DIGITS = 3  # of an epsilon in a sweep's table and sentences, so that one run has one figure in both
UNKNOWN = "a run that did not end does not say how many sites it has, among which units are split"

SEVERAL = "units lie at several sites in one run"
GROWN = "runs were added after others had begun, and what is chosen by results does not compose so"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One run that began: its run file, and the epsilon of each site; None where it did not end and nobody knows.

    ``sites``: how many the data makes of a natural partition, where ``epsilons`` does not tell; None: nobody knows.
    """

    config: RunConfig
    epsilons: Mapping[str, float] | None
    sites: int | None = None


@dataclass(frozen=True, kw_only=True)
class Composed:
    """What runs of one privacy unit cost together.

    ``sum_epsilon`` at ``sum_delta`` holds for every unit, at whichever site each run placed it. ``by_site`` adds up by
    the sites' names. ``pld_epsilon`` is at ``sum_delta`` too; None where ``pld_missing`` says why. No sums either, and
    for that reason, where it is not known at how many sites a unit lies.
    """

    unit: str
    runs: int
    sum_epsilon: float | None
    sum_delta: float | None
    by_site: Mapping[str, float]
    pld_epsilon: float | None
    pld_missing: str = ""


def composed(runs: Iterable[Spent], *, grown: bool = False) -> list[Composed]:
    """What all these runs cost together, one figure for each kind of privacy unit.

    Args:
      runs: that began.
      grown: whether some were added after others had begun, so that the choice of them may rest on results.

    Guarantees:
      - The sums are those of the runs' own epsilons and deltas: basic composition.
      - A run that did not end counts with all that it reserved.
      - No figure is given that is too low: where a unit may lie at several sites, all of them count, or there is none.
      - The composition of the events never exceeds the sum; there is none for runs that were chosen by results.

    Source: Dwork et al. 2006, "Our data, ourselves", theorem 1 (the sums); for the events see ``accounting.epsilon``.
    """
    held = list(runs)
    units = dict.fromkeys(run.config.privacy.unit for run in held)
    return [_composed_of(unit, [run for run in held if run.config.privacy.unit is unit], grown) for unit in units]


def _composed_of(unit: Unit, runs: Sequence[Spent], grown: bool) -> Composed:
    names = dict.fromkeys(site for run in runs for site in run.epsilons or ())
    by_site = {site: math.fsum(_at(run, site) for run in runs) for site in names}
    known = [count for count in map(_shares, runs) if count is not None]
    total = delta = found = None
    if len(known) < len(runs):
        missing = UNKNOWN
    else:
        total = math.fsum(_worst(run) * count for run, count in zip(runs, known, strict=True))
        delta = math.fsum(run.config.privacy.delta * count for run, count in zip(runs, known, strict=True))
        found, missing = _by_events(runs, delta, grown) if max(known) == 1 else (None, SEVERAL)
        found = None if found is None else min(found, total)
    return Composed(
        unit=unit.value,
        runs=len(runs),
        sum_epsilon=total,
        sum_delta=delta,
        by_site=by_site,
        pld_epsilon=found,
        pld_missing=missing,
    )


def _at(run: Spent, site: str) -> float:
    return _reserved(run.config) if run.epsilons is None else run.epsilons.get(site, 0.0)


def _worst(run: Spent) -> float:
    return _reserved(run.config) if run.epsilons is None else max(run.epsilons.values(), default=0.0)


def _reserved(config: RunConfig) -> float:
    try:
        return Quote.of(config.terms).epsilon
    except FedwardError:  # no noise meets its terms, so that no site ever began
        return 0.0


def _shares(run: Spent) -> int | None:
    """At how many sites of one run a unit may lie, each of which spends on its part; None where nobody knows."""
    if run.config.partition.units is not Placement.SPLIT or run.config.privacy.unit is Unit.RECORD:
        return 1
    if run.epsilons:
        return len(run.epsilons)
    natural = run.config.partition.method is PartitionMethod.NATURAL
    return run.sites if natural else run.config.partition.sites


def _by_events(runs: Sequence[Spent], delta: float, grown: bool) -> tuple[float | None, str]:
    """The cost of all events together: valid where a sweep's runs are fixed beforehand."""
    if grown and len(runs) > 1:
        return None, GROWN
    try:
        events = [event for run in runs for event in Quote.of(run.config.terms).events]
        return epsilon(_sided(runs, events), delta=delta), ""
    except FedwardError as error:
        return None, str(error)


def _sided(runs: Sequence[Spent], events: list[GaussianSum]) -> list[GaussianSum]:
    # a unit keeps its side while its id and the fraction stay; where one of them is swept, it may pay for both sides
    splits = {(run.config.privacy.validation_fraction, run.config.data.train, run.config.data.unit) for run in runs}
    if len(splits) == 1:
        return events
    return [replace(event, side=Side.TRAINING) for event in events]


def sentences(costs: Sequence[Composed], configs: Sequence[RunConfig], *, per_site: bool) -> list[str]:
    """What a person must read before choosing from the table."""
    lines = [_cost(cost) for cost in costs]
    if len(costs) > 1:
        lines.append("Runs with different privacy units are composed apart: their epsilons mean different things.")
    lines.append(
        f"Waived in every run: {SEEDED_RANDOMNESS}. A simulation's noise follows from its seed, and runs with the same "
        "seed draw the same noise, so nothing protects what these runs released; the figures are those of the same "
        "runs at real sites, whose randomness is secure."
    )
    lines.append(_tested(configs))
    if per_site:
        lines.append("Figures by site are exact, on the sites' validation units: no guarantee covers them.")
    return lines


def _cost(cost: Composed) -> str:
    what = f"Tuning spends: on real data the epsilons of all {cost.runs} runs that began compose."
    if cost.runs == 1:
        what = "Tuning spends: on real data the epsilon of the 1 run that began counts."
    if cost.sum_epsilon is None:
        return f"{what} What a {cost.unit} has spent is not known: {cost.pld_missing}."
    sums = f"epsilon {rounded_up(cost.sum_epsilon, digits=DIGITS)} at delta {cost.sum_delta:g}"
    what = f"{what} By basic composition (sums) a {cost.unit} has {sums}"
    if cost.pld_epsilon is None:
        return f"{what}. No composition of their events: {cost.pld_missing}."
    found = rounded_up(cost.pld_epsilon, digits=DIGITS)
    return f"{what}; by composition of their events (PLD) epsilon {found} at the same delta."


def _tested(configs: Sequence[RunConfig]) -> str:
    line = "Accuracy is exact, on the coordinator's own data, outside every guarantee; choosing the best by it flatters"
    held_out = any(config.data.test is None for config in configs)
    if held_out and len({config.seed for config in configs}) > 1:
        return f"{line}. Every seed holds out other records: with data.test all runs are measured on the same."
    return f"{line}."
