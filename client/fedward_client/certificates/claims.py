"""What a certificate claims: everything in it that follows from the entries of a ledger, computed by one function.

The same function runs when a certificate is made and when it is verified, so the two cannot disagree. It knows neither
keys nor files. Entries that tell how a round ended are never shown: that may depend on data.

Example:
    >>> from fedward_common.privacy.facts import Held
    >>> is_shown(Held(run_id="run-1"))
    False
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any, Final, Self

from fedward_common.errors import BudgetError, PrivacyError
from fedward_common.privacy import accounting, noise
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.facts import Bearer, Fact, Granted, Opened, Reconciled, fact_of
from fedward_common.privacy.grants import Filter, Grant
from fedward_common.privacy.journal import Entry
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum

__all__ = ["KIND", "READING", "SCHEMA", "Basis", "content_of", "is_shown"]

SCHEMA = 2
KIND = "fedward certificate"

NOISE: Final = {
    "deviation": "sigma (C + grid sqrt(d)) in each of the d coordinates of a sum",
    "grid": "the largest power of two that is at most 2^-20 sigma C",
    "rounding": "sum and noise are each rounded to the nearest multiple of the grid, then added as integers",
}
RULES: Final = {
    Filter.SUM: "the sum of the grants' (epsilon, delta): Rogers et al. 2016, arXiv:1605.08294, theorem 5.1",
    Filter.RENYI: "Renyi losses at one order fixed beforehand: Feldman and Zrnic 2021, arXiv:2008.11193",
}
READING: Final = {
    "a stranger can verify": [
        "who signed, given the site's public key from another source: the signature covers every byte of this file",
        "the chain: each ledger entry shown here hashes to its digest and names the entry before it; a later "
        "certificate of the same ledger shows the same entries, and perhaps more",
        "the arithmetic: every epsilon follows from the events of the grants, to four digits, and the life's from the "
        "filter rule and the budget",
        "with an opening from the site: which units the commitment is to, by their keyed digests",
    ],
    "a stranger cannot verify": [
        "that this code ran, or that its noise was random",
        "that the data is what the site says, or that a digest stands for a person",
        "that no other ledger exists, here or at another site with the same people",
        "what the ledger entries say that are not shown, or that nothing else left the site",
        "where life.basis is budget: that the ledger let no unit bear more than the budget",
    ],
}


class Basis(StrEnum):
    """What the bound for the data's life rests on."""

    GRANTS = "grants"  # as if one unit bore every grant
    BUDGET = "budget"  # the grants exceed it together, but no unit bears more: the ledger left units out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Books:
    """The facts that count, from the entries that are shown."""

    opened: Opened
    granted: tuple[Granted, ...]
    witnessed: tuple[Grant, ...]

    @classmethod
    def of(cls, facts: Sequence[Fact]) -> Self:
        """Those of some facts, which begin with the budget."""
        if not facts or not isinstance(facts[0], Opened):
            raise BudgetError("the ledger does not begin with its budget", hint="restore a true copy")
        heard = [fact for fact in facts if isinstance(fact, Reconciled)]
        return cls(
            opened=facts[0],
            granted=tuple(fact for fact in facts if isinstance(fact, Granted)),
            witnessed=tuple(grant for fact in heard for grant in fact.grants),
        )

    @property
    def grants(self) -> tuple[Grant, ...]:
        """Every grant that counts, also those that only a witness knew."""
        return (*(fact.grant for fact in self.granted), *self.witnessed)


def content_of(stated: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """The whole certificate: what is stated, and what follows from the entries.

    Args:
      stated: version of the accountant, code, commitment, date, head and sequence of the ledger, public key, run id,
        adapter digest and waivers, each where the certificate has it.
      entries: those of the ledger that ``is_shown`` picks.

    Raises:
      BudgetError: the entries do not begin with a budget, exceed it, or have no grant for the run.
      PrivacyError: units bear the run, and there is no commitment to them.
    """
    books = _Books.of([fact_of(entry.body) for entry in entries])
    _check_borne(books, stated)
    costs = [grant.quote.epsilon for grant in books.grants]
    run_id = stated["run"]["id"]
    own = [(grant, cost) for grant, cost in zip(books.grants, costs, strict=True) if grant.run_id == run_id]
    if not own:
        raise BudgetError("the ledger has no grant for this run", hint="name a run of `fedward-client ledger show`")
    return {
        "accounting": {
            **stated["accounting"],
            "accountant": "dp_accounting.pld.PLDAccountant",
            "neighbours": "data sets that differ by one unit: one has it, the other does not",
        },
        "code": stated["code"],
        "data": {**stated["data"], "scheme": "SHA-256 of a secret nonce and the sorted keyed digests of the units"},
        "issued": stated["issued"],
        "kind": KIND,
        "ledger": {**stated["ledger"], "entries": [entry.to_json() for entry in entries]},
        "life": _life(books, costs),
        "noise": NOISE,
        "public_key": stated["public_key"],
        "reading": READING,
        "run": {
            **stated["run"],
            "delta": math.fsum(grant.quote.terms.delta for grant, _ in own),
            "epsilon": _up(math.fsum(cost for _, cost in own)),
            "events": [row for grant, _ in own for row in _events(grant)],
            "unit": own[0][0].quote.terms.unit.value,
        },
        "schema": SCHEMA,
        "waivers": stated["waivers"],
    }


def _life(books: _Books, costs: Sequence[float]) -> dict[str, Any]:
    budget, quotes = books.opened.budget, [grant.quote for grant in books.grants]
    # What a witness added is borne also beyond the budget, so then only the grants bound a unit's loss.
    basis = Basis.GRANTS if budget.bears(quotes) or books.witnessed else Basis.BUDGET
    epsilon, delta = _composed(books, costs) if basis is Basis.GRANTS else (budget.epsilon, budget.delta)
    return {
        "basis": basis.value,
        "budget": budget.to_json(),
        "delta": delta,
        "epsilon": _up(epsilon),
        "grants": [
            {
                "delta": grant.quote.terms.delta,
                "epsilon": _up(cost),
                "loss_intervals": {side.value: _interval(grant, side) for side in _sides(grant)},
                "run_id": grant.run_id,
            }
            for grant, cost in zip(books.grants, costs, strict=True)
        ],
        "rule": RULES[budget.filter],
    }


def _composed(books: _Books, costs: Sequence[float]) -> tuple[float, float]:
    budget, quotes = books.opened.budget, [grant.quote for grant in books.grants]
    if budget.filter is Filter.SUM:
        return math.fsum(costs), math.fsum(quote.terms.delta for quote in quotes)
    return budget.spent(quotes, delta=budget.delta), budget.delta


def _check_borne(books: _Books, stated: Mapping[str, Any]) -> None:
    by_all = [fact.grant.quote for fact in books.granted if fact.bearer is Bearer.SOURCE]
    if not books.opened.budget.bears(by_all):
        raise BudgetError("the ledger's grants exceed its budget", hint="this is no ledger that fedward wrote")
    by_units = {fact.grant.run_id for fact in books.granted if fact.bearer is Bearer.UNITS}
    if stated["run"]["id"] in by_units and not stated["data"]["commitment"]:
        raise PrivacyError("units bear this run, and none are named", hint="give their digests from the register")


def _sides(grant: Grant) -> list[Side]:
    return [side for side in Side if any(event.side is side for event in grant.quote.events)]


def _interval(grant: Grant, side: Side) -> float:
    """The width of the accountant's grid of losses. Any other is as valid, but may differ in the fourth digit."""
    return accounting.loss_interval(tuple(event for event in grant.quote.events if event.side is side))


def _events(grant: Grant) -> Iterator[dict[str, Any]]:
    terms, found = grant.quote.terms, grant.quote.calibration
    for index, stage in enumerate(terms.stages):
        step = PrivateSum.for_stage(terms, found, stage_index=index, nominal_units=1)
        yield _event(stage.name, step.event, step.clip_norm, stage.steps)
    if terms.metrics.evaluations:
        metric = PrivateMetric.for_run(found, loss_cap=1.0)
        yield _event("evaluation", metric.event, metric.clip_norm, terms.metrics.evaluations)


def _event(name: str, event: GaussianSum, clip_norm: float, steps: int) -> dict[str, Any]:
    return {
        "clip_norm": float(clip_norm),
        "grid": noise.grid(sensitivity=clip_norm, noise_multiplier=event.noise_multiplier),
        "noise_multiplier": float(event.noise_multiplier),
        "sampling_rate": float(event.sampling_rate),
        "side": event.side.value,
        "stage": name,
        "steps": steps,
    }


def is_shown(fact: Fact) -> bool:
    """Say whether a certificate shows the entry of this fact: the budget, grants, and what a witness added."""
    return isinstance(fact, Opened | Granted | Reconciled)


def _up(epsilon: float) -> float:
    """Rounded up to six digits: never below what was computed, and far inside four digits."""
    exact = Decimal(epsilon)
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 5), rounding=ROUND_CEILING)) if epsilon else 0.0
