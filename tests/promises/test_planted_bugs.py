"""Bugs planted on purpose: for each, a named check of a promise goes red; without it the same check is green.

Statistical checks have fixed seeds where there is a seed to fix, and would fail by chance with probability at most 1e-6
under another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]
from torch.nn import functional

import fedward_client.data
import fedward_simulations.sites.population
from fedward_client.data import Records, SiteData
from fedward_client.trainers import SiteTrainers
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply, new_key
from fedward_common.config import DataConfig, LocalOptimiser
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import Randomness, SecureRandom, SeededRandom
from fedward_common.round import Training, Update
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import Population
from support import planted
from support.federation import KEYS, LABELS, SILENT, plan_bytes, plan_of, population_of, small_bench, some_records
from support.heard import heard_steps

FALSE_ALARM = 1e-6
SIGMA, C = 2.0, 0.5
BOTH = ("adapter", "head")
SEEDED = SeededRandom(seed=1, site="site-1")
Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What checks stand on: a folder, and a bench of one site with 9 units of 1 to 3 records, made once."""

    bench: Workbench
    folder: Path

    def data(self, *, everyone: bool = True, without: int | None = None) -> SiteData:
        """The site's data with every unit in training but one, or with none."""
        records = self.bench.data["site-1"].records
        validation = np.full(records.unit_count, not everyone)
        if without is not None:
            validation[without] = True
        return SiteData(records=records, nominal_units=8, validation=validation)

    def trainer(self, data: SiteData, *, randomness: Randomness = SEEDED, batch_size: int = 64) -> LocalTrainer:
        """A trainer over these data, whose records are the bench's or come with token ids of their own."""
        own = data.records is self.bench.data["site-1"].records
        inputs = self.bench.inputs["site-1"] if own else SiteInputs(self.bench.prepared.base, data.records)
        return LocalTrainer(
            model=self.bench.prepared.model, data=data, inputs=inputs, randomness=randomness, batch_size=batch_size
        )

    def train(
        self,
        trainer: LocalTrainer,
        mechanism: PrivateSum,
        *,
        round: int = 1,
        groups: tuple[str, ...] = BOTH,
        steps: int = 1,
    ) -> Vector:
        """Minus the sum of what the steps released."""
        plan = Training(groups=groups, local_steps=steps, optimiser=LocalOptimiser.SGD, learning_rate=1.0)
        return trainer.train(round, self.start, plan, mechanism).vector

    @property
    def start(self) -> Adapter:
        """An adapter at which every group has a gradient."""
        spec = self.bench.prepared.bundle.spec
        return Adapter(spec=spec, vector=np.random.default_rng(5).normal(0, 0.2, spec.size).astype(np.float32))


Check: TypeAlias = Callable[[Ground], None]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("planted")
    return Ground(bench=small_bench(folder, sites=1, units=9, per_unit=3), folder=folder)


def a_sum(**changes: Any) -> PrivateSum:
    """A step that shows the sum itself, where nothing else is said."""
    values: dict[str, Any] = {
        "sampling_rate": 1.0,
        "noise_multiplier": 1e-8,
        "clip_norm": C,
        "nominal_units": 1,
        "max_records_per_unit": 64,
    }
    return PrivateSum(**(values | changes))


# ---- noise -----------------------------------------------------------------------
def check_an_update_has_noise_of_the_declared_deviation(ground: Ground) -> None:
    """10,000 numbers of empty draws, chi-square both ways; false alarm 1e-6, an error of 5 % is found with 0.98."""
    mechanism = a_sum(noise_multiplier=SIGMA, nominal_units=8)
    trainer = ground.trainer(ground.data(everyone=False))
    size = ground.start.spec.size
    rounds = range(1, 1 + -(-10_000 // size))
    values = np.concatenate([ground.train(trainer, mechanism, round=round) for round in rounds]).astype(np.float64)
    statistic = float(((values / (SIGMA * C / 8)) ** 2).sum())
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, values.size) < 1 - FALSE_ALARM / 2


def check_every_step_draws_its_noise_anew(ground: Ground, randomness: Randomness = SEEDED) -> None:
    """The noise of 8 steps adds up to a variance of 8, not of 64; 1,304 numbers, chi-square, false alarm 1e-6."""
    mechanism = a_sum(noise_multiplier=SIGMA)
    trainer = ground.trainer(ground.data(everyone=False), randomness=randomness)
    values = np.concatenate([ground.train(trainer, mechanism, round=round, steps=8) for round in range(1, 9)])
    statistic = float((values.astype(np.float64) ** 2).sum()) / (8 * (SIGMA * C) ** 2)
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, values.size) < 1 - FALSE_ALARM / 2


def check_every_step_of_a_real_site_draws_its_noise_anew(ground: Ground) -> None:
    """With no seed to fix; false alarm 1e-6."""
    check_every_step_draws_its_noise_anew(ground, SecureRandom())


# ---- sampling --------------------------------------------------------------------
def check_the_coordinator_cannot_know_who_takes_part(ground: Ground) -> None:
    """Two real sites with the same data and plan draw unlike units; 9 units, 8 steps: equal with probability 2^-72."""
    data, seen = ground.data(), []
    for _ in range(2):
        trainer = ground.trainer(data, randomness=SecureRandom())
        with heard_steps() as steps:
            ground.train(trainer, a_sum(sampling_rate=0.5), groups=("head",), steps=8)
        seen.append([set(data.records.units[records].tolist()) for records in steps])
    assert seen[0] != seen[1]


def check_the_number_of_units_in_a_step_is_binomial(ground: Ground) -> None:
    """100 steps at a rate of 0.5: dispersion, both ways; false alarm 1e-6."""
    data = ground.data()
    with heard_steps() as steps:
        ground.train(ground.trainer(data), a_sum(sampling_rate=0.5), groups=("head",), steps=100)
    sizes = np.array([len(np.unique(data.records.units[records])) for records in steps])
    n = data.records.unit_count
    statistic = float(((sizes - n / 2) ** 2).sum() / (n / 4))
    assert len(sizes) == 100
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, 100) < 1 - FALSE_ALARM / 2


def check_an_empty_draw_takes_a_step_of_noise(ground: Ground) -> None:
    delta = ground.train(ground.trainer(ground.data(everyone=False)), a_sum(noise_multiplier=SIGMA))
    assert np.all(delta != 0)


# ---- clipping --------------------------------------------------------------------
def check_the_sum_is_of_units_clipped_one_by_one(ground: Ground) -> None:
    """Against autograd, one record at a time."""
    data, mechanism = ground.data(), a_sum(clip_norm=0.1)
    model, texts = ground.bench.prepared.model, ground.bench.inputs["site-1"].texts
    model.load(ground.start)
    parameters = model.select(("head",))
    total = torch.zeros(sum(p.numel() for p in parameters)).double()
    for unit in data.training_units:
        own = data.records_of(int(unit))
        batch = texts.batch(own, device=model.device)
        loss = functional.cross_entropy(model(batch.ids, batch.mask), torch.tensor(data.records.labels[own]))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        total += gradient * min(1.0, 0.1 / float(gradient.norm()))
    delta = ground.train(ground.trainer(data), mechanism, groups=("head",))
    assert np.linalg.norm(delta + total.numpy()) <= 1e-4 * float(total.norm())


def check_a_unit_moves_the_sum_by_at_most_the_clip_norm(ground: Ground) -> None:
    """All trained tensors jointly, to 1e-4; every unit is clipped here."""
    mechanism = a_sum(clip_norm=0.01)
    everyone = ground.train(ground.trainer(ground.data()), mechanism)
    for unit in range(6):
        others = ground.train(ground.trainer(ground.data(without=unit)), mechanism)
        assert 0.009 < np.linalg.norm(everyone - others) <= 0.01 * (1 + 1e-4)


def check_physical_batches_change_nothing(ground: Ground) -> None:
    """Batches of two records, so that units of three lie across two of them."""
    data, mechanism = ground.data(), a_sum(clip_norm=0.01)
    whole, straddling = (ground.train(ground.trainer(data, batch_size=size), mechanism) for size in (64, 2))
    assert np.linalg.norm(straddling - whole) <= 1e-4 * np.linalg.norm(whole)


# ---- units and declared numbers --------------------------------------------------
def file_of_patients(ground: Ground, *, patients: int) -> DataConfig:
    """A file of 40 rows in which every so many rows belong to one patient."""
    held = some_records(40, seed=7)
    names = [f"p{number % patients}" for number in range(40)]
    rows = [
        {"text": text[0], "label": LABELS[label], "patient": name}
        for text, label, name in zip(held.texts, held.labels, names, strict=True)
    ]
    file = ground.folder / f"{patients}-patients.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return DataConfig(train=str(file), text=("text",), label="label", unit="patient")


def check_a_patient_of_a_file_moves_the_sum_by_at_most_the_clip_norm(ground: Ground) -> None:
    """Four patients with ten records each, read from a file that has a column for them."""
    records = fedward_client.data.load_records(file_of_patients(ground, patients=4), LABELS)
    whole = _trained_on(ground, records)
    others = _trained_on(ground, records.select(range(0, 40, 4)))  # one patient's rows alone
    rest = _trained_on(ground, records.select([n for n in range(40) if n % 4]))
    assert np.linalg.norm(whole - rest) <= 0.01 * (1 + 1e-4)
    assert np.linalg.norm(others) == pytest.approx(0.01, rel=1e-4)


def _trained_on(ground: Ground, records: Records) -> Vector:
    data = SiteData(records=records, nominal_units=1, validation=np.zeros(records.unit_count, bool))
    return ground.train(ground.trainer(data), a_sum(clip_norm=0.01), groups=("head",))


def update_of(ground: Ground, *, units: int) -> Update:
    """What a whole site with this many units answers, under a plan that trains and evaluates."""
    bench, operator = small_bench(ground.folder, sites=1, units=units), new_key()
    population = population_of(bench, operator)
    reply = population.sites["site-1"].answer(plan_bytes(bench, operator, round=2))
    spec = bench.prepared.bundle.spec.subset(("head",))
    update = decode_reply(reply, public_key=population.keys["site-1"], spec=spec)
    if not isinstance(update, Update):  # no assertion: a check must not go red because the site refused
        raise RuntimeError("the site refused")
    return update


def check_the_divisor_is_the_declared_number(ground: Ground) -> None:
    """Sites with 30 and with 39 units both declare 30: their noise is the same, their sums differ by at most 69 C.

    Compared along the noise, which is far longer: a divisor of 39 would take 9 / 39 of it away.
    """
    first, second = (update_of(ground, units=units) for units in (30, 39))
    assert first.nominal_units == second.nominal_units == 30
    assert first.guarantee == second.guarantee
    along = float(second.delta.vector @ first.delta.vector) / first.delta.l2_norm() ** 2
    assert along == pytest.approx(1.0, abs=0.1)


# ---- what leaves -----------------------------------------------------------------
def check_no_number_of_an_update_is_a_count_or_a_loss(ground: Ground) -> None:
    """A head of zeros guesses uniformly: the true sums of all three metrics are whole numbers, noised ones are not."""
    update = update_of(ground, units=37)
    assert update.metrics is not None
    sums = np.array([update.metrics.correct, update.metrics.units, update.metrics.loss / np.log(len(LABELS))])
    assert np.all(np.abs(sums - np.rint(sums)) > 1e-6)
    assert update.nominal_units == 30


def check_the_side_of_a_patient_never_changes(ground: Ground) -> None:
    """Whoever else is there, and in whatever order."""
    records = ground.bench.data["site-1"].records
    config = ground.bench.prepared.bundle.config
    config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"validation_fraction": 0.5})})
    orders = (range(len(records)), range(len(records))[::-1], range(len(records))[len(records) // 3 :])
    sides: dict[str, set[bool]] = {}
    for order in orders:
        data = fedward_simulations.sites.population.site_data(records.select(list(order)), config=config)
        for name, side in zip(data.records.unit_ids, data.validation, strict=True):
            sides.setdefault(name, set()).add(bool(side))
    assert all(len(found) == 1 for found in sides.values())
    assert len(set().union(*sides.values())) == 2


def check_the_coordinator_does_not_choose_who_validates(ground: Ground) -> None:
    """A site that reads its own file, under plans with unlike public seeds and run ids."""
    config, base = ground.bench.prepared.bundle.config, ground.bench.prepared.base
    sides = set()
    for seed in (1, 2):
        plan = plan_of(ground.bench, public_seed=seed, run_id=f"{seed:064x}")
        trainers = SiteTrainers(
            columns=file_of_patients(ground, patients=40),
            labels=LABELS,
            nominal_units=40,
            models={base.fingerprint: Path(config.model.base)},
            pooling=base.pooling,
            max_tokens=base.max_tokens,
            split_key=b"k" * 32,
            randomness=SecureRandom(),
        )
        trainer = trainers.open(plan, ground.start.spec, lambda units: np.ones(len(units), bool))
        sides.add(tuple(trainer.data.validation.tolist()))
    assert len(sides) == 1
    assert len(set(sides.pop())) == 2


# ---- the ledger ------------------------------------------------------------------
RUN, OTHER_RUN = "c" * 64, "d" * 64


@dataclass(frozen=True, kw_only=True)
class Books:
    """A site whose budget bears one run, as it stands or taken up again from its ledger's entries."""

    bench: Workbench
    operator: Ed25519PrivateKey
    population: Population

    @classmethod
    def open(cls, ground: Ground) -> Books:
        """A new site."""
        operator = new_key()
        return cls(bench=ground.bench, operator=operator, population=population_of(ground.bench, operator))

    def resumed(self) -> Books:
        """The same site after a restart."""
        population = Population.build(
            self.bench.prepared,
            self.bench.data,
            operator=self.operator.public_key(),
            watcher=SILENT,
            inputs=self.bench.inputs,
            entries={name: export(0) for name, export in self.population.exports.items()},
            keys={name: KEYS[name] for name in self.bench.data},
        )
        return replace(self, population=population)

    @property
    def ledger(self) -> Ledger:
        """The site's."""
        return self.population.ledgers["site-1"]

    def answers(self, run_id: str) -> bool:
        """Whether the first plan of a run is answered with an update."""
        reply = self.population.sites["site-1"].answer(plan_bytes(self.bench, self.operator, run_id=run_id))
        spec = self.bench.prepared.bundle.spec.subset(("head",))
        return isinstance(decode_reply(reply, public_key=self.population.keys["site-1"], spec=spec), Update)


def check_a_round_is_in_the_ledger_before_data_is_opened(ground: Ground) -> None:
    books = Books.open(ground)
    honest, seen = LocalTrainer.train, []

    def listen(self: LocalTrainer, *arguments: Any) -> Adapter:
        seen.append((books.ledger.granted(RUN), books.ledger.events(RUN)))
        return honest(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTrainer, "train", listen)
        answered = books.answers(RUN)
    assert seen == [(books.ledger.granted(RUN), books.ledger.events(RUN))]
    assert answered
    assert books.ledger.events(RUN)


def check_a_resumed_site_remembers_what_it_spent(ground: Ground) -> None:
    books = Books.open(ground)
    answered = books.answers(RUN)
    again = books.resumed()
    assert again.ledger.events(RUN) == books.ledger.events(RUN)
    assert answered
    assert not again.answers(OTHER_RUN)  # there is no room for a second run


def check_a_failure_gives_nothing_back(ground: Ground) -> None:
    books = Books.open(ground)

    def fail(*arguments: Any) -> Adapter:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTrainer, "train", fail)
        failed = not books.answers(RUN)
    assert failed
    assert books.ledger.events(RUN)
    assert books.ledger.granted(RUN)
    assert not books.answers(OTHER_RUN)


BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Check]] = {
    "no noise": (planted.no_noise, check_an_update_has_noise_of_the_declared_deviation),
    "noise of the wrong scale: sigma for sigma C": (
        planted.noise_without_the_clip_norm,
        check_an_update_has_noise_of_the_declared_deviation,
    ),
    "noise of the wrong scale: a tenth too small": (
        planted.noise_a_tenth_too_small,
        check_an_update_has_noise_of_the_declared_deviation,
    ),
    "noise of the wrong scale: divided twice": (
        planted.noise_after_the_division,
        check_an_update_has_noise_of_the_declared_deviation,
    ),
    "noise not redrawn between steps": (planted.noise_of_the_first_step, check_every_step_draws_its_noise_anew),
    "noise not redrawn between steps of a real site": (
        planted.noise_of_one_key,
        check_every_step_of_a_real_site_draws_its_noise_anew,
    ),
    "sampling driven by the plan's seed": (
        planted.sampling_by_the_plans_seed,
        check_the_coordinator_cannot_know_who_takes_part,
    ),
    "shuffled instead of Poisson batches": (
        planted.shuffled_batches,
        check_the_number_of_units_in_a_step_is_binomial,
    ),
    "an empty draw skipped": (planted.empty_draws_skipped, check_an_empty_draw_takes_a_step_of_noise),
    "clipping of the batch instead of units": (planted.batch_clipped, check_the_sum_is_of_units_clipped_one_by_one),
    "clipping per tensor": (planted.tensors_clipped_apart, check_a_unit_moves_the_sum_by_at_most_the_clip_norm),
    "a unit straddling physical batches clipped twice": (
        planted.batches_clipped_apart,
        check_physical_batches_change_nothing,
    ),
    "norms in bf16": (planted.norms_in_bf16, check_a_unit_moves_the_sum_by_at_most_the_clip_norm),
    "unit column ignored": (
        planted.unit_column_ignored,
        check_a_patient_of_a_file_moves_the_sum_by_at_most_the_clip_norm,
    ),
    "unit column ignored in training": (
        planted.units_are_records_in_training,
        check_a_patient_of_a_file_moves_the_sum_by_at_most_the_clip_norm,
    ),
    "divisor from the true count": (planted.divisor_from_the_true_count, check_the_divisor_is_the_declared_number),
    "divisor from the true count, in the trainer": (
        planted.trainer_divides_by_the_true_count,
        check_the_divisor_is_the_declared_number,
    ),
    "counts and losses sent in clear": (planted.metrics_in_clear, check_no_number_of_an_update_is_a_count_or_a_loss),
    "a loss sent in clear": (planted.a_loss_in_clear, check_no_number_of_an_update_is_a_count_or_a_loss),
    "a count sent in clear": (planted.a_count_in_clear, check_no_number_of_an_update_is_a_count_or_a_loss),
    "metrics split by seed": (planted.metrics_split_by_seed, check_the_side_of_a_patient_never_changes),
    "metrics split by the plan's seed": (
        planted.a_real_site_splits_by_the_plans_seed,
        check_the_coordinator_does_not_choose_who_validates,
    ),
    "ledger written after training": (
        planted.ledger_after_training,
        check_a_round_is_in_the_ledger_before_data_is_opened,
    ),
    "accountant restarted after resume": (planted.accountant_restarted, check_a_resumed_site_remembers_what_it_spent),
    "refund after failure": (planted.refund_after_failure, check_a_failure_gives_nothing_back),
}


@pytest.mark.parametrize("check", dict.fromkeys(check for _, check in BUGS.values()), ids=lambda check: check.__name__)
def test_without_a_bug_the_check_is_green(ground: Ground, check: Check) -> None:
    check(ground)


@pytest.mark.parametrize("bug", BUGS)
def test_with_the_bug_the_check_goes_red(ground: Ground, bug: str) -> None:
    plant, check = BUGS[bug]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(AssertionError):
            check(ground)
