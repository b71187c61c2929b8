"""Bugs to plant in the product's code, each as small as a careless edit would be: what the promises' tests must find.

Each takes a ``MonkeyPatch`` and leaves the product broken until that is undone. Nothing here is used but by tests.

Example:
    with pytest.MonkeyPatch.context() as patch:
        no_noise(patch)
        with pytest.raises(AssertionError):
            check(...)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fedward_client.data
import fedward_simulations.sites.population
from fedward_client.data import Records, SiteData
from fedward_client.trainers import SiteTrainers
from fedward_client.training import LocalTrainer, PhysicalBatch, UnitOptimizer
from fedward_common.config import DataConfig
from fedward_common.privacy import noise
from fedward_common.privacy.events import GaussianSum
from fedward_common.privacy.facts import Fact, Opened, Outcome
from fedward_common.privacy.grants import Grant
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import MetricSums, PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import Purpose, SecureRandom, SeededRandom, Stream
from fedward_common.privacy.standing import Standing
from fedward_common.round import RoundPlan

Patch = pytest.MonkeyPatch


# ---- noise -----------------------------------------------------------------------
def no_noise(patch: Patch) -> None:
    """The total goes out as it is."""
    patch.setattr(noise, "add_noise", lambda total, **public: np.array(total, dtype=np.float64))


def noise_without_the_clip_norm(patch: Patch) -> None:
    """Sigma in place of sigma C."""
    honest = noise.add_noise

    def wrong(total: NDArray[Any], *, sensitivity: float, **public: Any) -> NDArray[np.float64]:
        return honest(total, sensitivity=1.0, **public)

    patch.setattr(noise, "add_noise", wrong)


def noise_a_tenth_too_small(patch: Patch) -> None:
    """As if the noise multiplier were 0.9 of what is accounted for."""
    honest = noise.add_noise

    def wrong(total: NDArray[Any], *, noise_multiplier: float, **public: Any) -> NDArray[np.float64]:
        return honest(total, noise_multiplier=0.9 * noise_multiplier, **public)

    patch.setattr(noise, "add_noise", wrong)


def noise_after_the_division(patch: Patch) -> None:
    """Noise of sigma C is added to the mean and not to the sum, and then divided once more."""

    def wrong(self: PrivateSum, total: NDArray[Any], stream: Stream) -> NDArray[np.float64]:
        mean = total / self.divisor
        honest = noise.add_noise(
            np.zeros(total.shape), sensitivity=self.clip_norm, noise_multiplier=self.noise_multiplier, stream=stream
        )
        return np.asarray(mean + honest / self.divisor**2, dtype=np.float64)

    patch.setattr(PrivateSum, "release", wrong)


def noise_of_the_first_step(patch: Patch) -> None:
    """Every step asks for the stream of step 0, in simulation."""
    honest = SeededRandom.stream

    def wrong(self: SeededRandom, *, round: int, step: int, purpose: Purpose) -> Stream:
        return honest(self, round=round, step=0 if purpose is Purpose.NOISE else step, purpose=purpose)

    patch.setattr(SeededRandom, "stream", wrong)


def noise_of_one_key(patch: Patch) -> None:
    """A real site draws its key once and keeps it."""
    key = b"k" * 32
    patch.setattr(SecureRandom, "stream", lambda self, **which: Stream(key))


# ---- sampling --------------------------------------------------------------------
def sampling_by_the_plans_seed(patch: Patch) -> None:
    """Who takes part follows from a number that the coordinator chose."""
    honest, public = SecureRandom.stream, SeededRandom(seed=3, site="")

    def wrong(self: SecureRandom, *, round: int, step: int, purpose: Purpose) -> Stream:
        source: Any = public.stream if purpose is Purpose.SAMPLING else honest.__get__(self)
        stream: Stream = source(round=round, step=step, purpose=purpose)
        return stream

    patch.setattr(SecureRandom, "stream", wrong)


def shuffled_batches(patch: Patch) -> None:
    """As many units in every step, as a shuffling data loader gives them."""

    def wrong(self: PrivateSum, population: int, stream: Stream) -> NDArray[np.int64]:
        return stream.choose(population, size=max(1, round(self.sampling_rate * population)))

    patch.setattr(PrivateSum, "draw_units", wrong)


def empty_draws_skipped(patch: Patch) -> None:
    """No unit, no step."""
    honest = UnitOptimizer.release

    def wrong(self: UnitOptimizer, stream: Stream) -> None:
        if any(bool(total.any()) for total in self.totals):
            honest(self, stream)

    patch.setattr(UnitOptimizer, "release", wrong)


# ---- clipping --------------------------------------------------------------------
def batch_clipped(patch: Patch) -> None:
    """The sum over a batch is clipped, and not each unit."""
    honest = UnitOptimizer._add

    def wrong(self: UnitOptimizer, units: list[torch.Tensor]) -> None:
        honest(self, [part.sum(dim=0, keepdim=True) for part in units])

    patch.setattr(UnitOptimizer, "_add", wrong)


def tensors_clipped_apart(patch: Patch) -> None:
    """Each tensor is clipped to C by itself, so that k of them have a norm of up to C sqrt(k)."""

    def wrong(self: UnitOptimizer, units: list[torch.Tensor]) -> None:
        for part, total in zip(units, self.totals, strict=True):
            total += _factors(self, part.norm(dim=1)).double() @ part.double()

    patch.setattr(UnitOptimizer, "_add", wrong)


def batches_clipped_apart(patch: Patch) -> None:
    """A unit that goes on in the next physical batch is clipped once in each."""
    honest = UnitOptimizer.accumulate

    def wrong(self: UnitOptimizer, batch: PhysicalBatch) -> None:
        honest(self, replace(batch, open_unit=-1))

    patch.setattr(UnitOptimizer, "accumulate", wrong)


def norms_in_bf16(patch: Patch) -> None:
    """As under autocast."""

    def wrong(self: UnitOptimizer, units: list[torch.Tensor]) -> None:
        norms = torch.stack([part.bfloat16().norm(dim=1) for part in units]).norm(dim=0)
        for part, total in zip(units, self.totals, strict=True):
            total += _factors(self, norms).double() @ part.double()

    patch.setattr(UnitOptimizer, "_add", wrong)


def _factors(optimizer: UnitOptimizer, norms: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(optimizer.mechanism.clip_factors(norms.float().numpy()))


# ---- units and declared numbers --------------------------------------------------
def unit_column_ignored(patch: Patch) -> None:
    """Every record is a unit, whatever the column says."""
    honest = fedward_client.data.load_records

    def wrong(data: DataConfig, labels: Any, **source: Any) -> Records:
        return honest(data.model_copy(update={"unit": None}), labels, **source)

    patch.setattr(fedward_client.data, "load_records", wrong)


def units_are_records_in_training(patch: Patch) -> None:
    """The loop reduces nothing: each record of a drawn unit is clipped and summed by itself."""
    honest = UnitOptimizer.accumulate

    def wrong(self: UnitOptimizer, batch: PhysicalBatch) -> None:
        alone = np.arange(len(batch.records), dtype=np.int64)
        honest(self, replace(batch, units=alone, shares=np.ones(len(alone), np.float32), open_unit=-1))

    patch.setattr(UnitOptimizer, "accumulate", wrong)


def divisor_from_the_true_count(patch: Patch) -> None:
    """The number of units that the site holds stands where the declared one should."""

    def count(self: SiteData) -> int:
        return self.records.unit_count

    patch.setattr(SiteData, "nominal_units", property(count, lambda self, declared: None), raising=False)


def trainer_divides_by_the_true_count(patch: Patch) -> None:
    """The same, deeper down: what is released and reported still names the declared number."""
    honest = LocalTrainer.train

    def wrong(self: LocalTrainer, round: int, adapter: Any, training: Any, mechanism: PrivateSum) -> Any:
        counted = replace(mechanism, nominal_units=self.data.records.unit_count)
        return honest(self, round, adapter, training, counted)

    patch.setattr(LocalTrainer, "train", wrong)


# ---- what leaves -----------------------------------------------------------------
def metrics_in_clear(patch: Patch) -> None:
    """All three sums go out as they are."""

    def wrong(self: PrivateMetric, correct: NDArray[Any], loss: NDArray[Any], stream: Stream) -> MetricSums:
        rows = self.contributions(correct, loss).sum(axis=0)
        return MetricSums(correct=float(rows[0]), units=float(rows[1]), loss=float(rows[2]) * self.loss_cap)

    patch.setattr(PrivateMetric, "measure", wrong)


def a_loss_in_clear(patch: Patch) -> None:
    """Only the loss is left without noise."""
    honest = PrivateMetric.measure

    def wrong(self: PrivateMetric, correct: NDArray[Any], loss: NDArray[Any], stream: Stream) -> MetricSums:
        total = float(self.contributions(correct, loss)[:, 2].sum()) * self.loss_cap
        return replace(honest(self, correct, loss, stream), loss=total)

    patch.setattr(PrivateMetric, "measure", wrong)


def a_count_in_clear(patch: Patch) -> None:
    """Only the number of validation units is left without noise."""
    honest = PrivateMetric.measure

    def wrong(self: PrivateMetric, correct: NDArray[Any], loss: NDArray[Any], stream: Stream) -> MetricSums:
        return replace(honest(self, correct, loss, stream), units=float(len(correct)))

    patch.setattr(PrivateMetric, "measure", wrong)


def metrics_split_by_seed(patch: Patch) -> None:
    """The validation side is drawn from a seed, by position, as a data loader's split is."""

    def wrong(unit_ids: Any, *, key: bytes, fraction: float) -> NDArray[np.bool_]:
        return np.random.default_rng(3).random(len(unit_ids)) < fraction

    patch.setattr(fedward_simulations.sites.population, "split_validation", wrong)


def a_real_site_splits_by_the_plans_seed(patch: Patch) -> None:
    """The same at a site that reads its own file: whoever picks the seed picks who validates."""
    honest = SiteTrainers._data

    def wrong(self: SiteTrainers, records: Records, plan: RoundPlan, taking_part: Any) -> SiteData:
        fraction = plan.terms.metrics.validation_fraction
        side = np.random.default_rng(plan.public_seed).random(records.unit_count) < fraction
        return replace(honest(self, records, plan, taking_part), validation=side)

    patch.setattr(SiteTrainers, "_data", wrong)


# ---- the ledger ------------------------------------------------------------------
def ledger_after_training(patch: Patch) -> None:
    """A round is marked started only when it is settled."""
    start, settle = Ledger.start, Ledger.settle
    waiting: dict[str, tuple[Grant, tuple[GaussianSum, ...]]] = {}

    def late(self: Ledger, grant: Grant, plan_id: str, *, events: tuple[GaussianSum, ...]) -> None:
        waiting[plan_id] = (grant, events)

    def wrong(self: Ledger, plan_id: str, outcome: Outcome) -> None:
        grant, events = waiting.pop(plan_id)
        start(self, grant, plan_id, events=events)
        settle(self, plan_id, outcome)

    patch.setattr(Ledger, "start", late)
    patch.setattr(Ledger, "settle", wrong)


def accountant_restarted(patch: Patch) -> None:
    """A ledger that is opened again knows its budget, and counts from zero."""
    honest = Standing.of.__func__  # type: ignore[attr-defined]

    def wrong(cls: type[Standing], facts: Iterable[Fact]) -> Standing:
        standing: Standing = honest(cls, [fact for fact in facts if isinstance(fact, Opened)])
        return standing

    patch.setattr(Standing, "of", classmethod(wrong))


def refund_after_failure(patch: Patch) -> None:
    """A run whose round failed gets everything back."""
    honest = Ledger.settle

    def wrong(self: Ledger, plan_id: str, outcome: Outcome) -> None:
        honest(self, plan_id, outcome)
        run_id, standing = self._standing.run_of[plan_id], self._standing
        if outcome is Outcome.FAILED:
            standing.grants.pop(run_id)
            standing.done.pop(run_id)
            standing.borne_by_all.remove(run_id)

    patch.setattr(Ledger, "settle", wrong)
