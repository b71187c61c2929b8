from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedward_client.data import Records
from fedward_client.training import LocalTrainer, UnitOptimizer
from fedward_common.adapter import Adapter
from fedward_common.config import LocalOptimiser
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.privacy.randomness import Purpose, SeededRandom
from fedward_common.round import Training
from fedward_simulations.run import Workbench
from support.federation import small_bench

METHODS = {
    "core": {"method": "core", "rank": 4, "alpha": 16.0},
    "lora": {"method": "lora", "rank": 4, "alpha": 16.0},
    "frozen A": {"method": "lora", "rank": 4, "alpha": 16.0, "freeze_a": True},
}


def trainer_of(bench: Workbench, *, batch_size: int = 64, **data: Any) -> LocalTrainer:
    name = "site-1"
    return LocalTrainer(
        model=bench.prepared.model,
        data=replace(bench.data[name], **data) if data else bench.data[name],
        inputs=bench.inputs[name],
        randomness=SeededRandom(seed=1, site=name),
        batch_size=batch_size,
    )


def a_sum(**changes: Any) -> PrivateSum:
    values: dict[str, Any] = {
        "sampling_rate": 1.0,
        "noise_multiplier": 1e-8,  # the sum itself shows through
        "clip_norm": 0.5,
        "nominal_units": 1,
        "max_records_per_unit": 3,
    }
    return PrivateSum(**(values | changes))


def training(*groups: str, steps: int = 1) -> Training:
    return Training(groups=groups, local_steps=steps, optimiser=LocalOptimiser.SGD, learning_rate=1.0)


def somewhere(bench: Workbench) -> Adapter:
    """An adapter away from the start, where every group has a gradient."""
    spec = bench.prepared.bundle.spec
    return Adapter(spec=spec, vector=np.random.default_rng(5).normal(0, 0.2, spec.size).astype(np.float32))


def by_hand(bench: Workbench, groups: tuple[str, ...], mechanism: PrivateSum) -> np.ndarray[Any, Any]:
    """Minus the clipped sum over units of the gradient of each unit's mean loss, one record at a time by autograd."""
    model, data, texts = bench.prepared.model, bench.data["site-1"], bench.inputs["site-1"].texts
    model.load(somewhere(bench))
    parameters = model.select(groups)
    total = torch.zeros(sum(p.numel() for p in parameters)).double()
    for unit in data.training_units:
        gradient = torch.zeros_like(total)
        own = data.records_of(int(unit))
        for record in own:
            batch = texts.batch(np.array([record]), device=model.device)
            label = torch.tensor([int(data.records.labels[record])])
            loss = functional.cross_entropy(model(batch.ids, batch.mask), label) / len(own)
            gradient += torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        total += gradient * min(1.0, mechanism.clip_norm / (float(gradient.norm()) * (1 + 1e-5)))
    return -total.numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [("head",), ("adapter",), ("adapter", "head")])
@pytest.mark.parametrize("per_unit", [1, 3])
def test_clipped_sums_equal_one_record_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, method: str, groups: tuple[str, ...], per_unit: int
) -> None:
    bench = small_bench(tmp_path_factory.getbasetemp(), units=12, per_unit=per_unit, adapter=METHODS[method])
    delta = trainer_of(bench).train(1, somewhere(bench), training(*groups), a_sum())
    expected = by_hand(bench, groups, a_sum())
    assert np.linalg.norm(delta.vector - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_patient_may_straddle_physical_batches(tmp_path: Path, batch_size: int) -> None:
    bench = small_bench(tmp_path, units=12, per_unit=3)
    start = somewhere(bench)
    whole = trainer_of(bench).train(1, start, training("adapter"), a_sum())
    straddling = trainer_of(bench, batch_size=batch_size).train(1, start, training("adapter"), a_sum())
    assert np.linalg.norm(straddling.vector - whole.vector) <= 1e-5 * whole.l2_norm()


def test_each_unit_moves_the_sum_by_at_most_the_clip_norm(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=12, per_unit=3)
    start = somewhere(bench)
    mechanism = a_sum(clip_norm=0.01)
    everyone = trainer_of(bench).train(1, start, training("head"), mechanism)
    validation = bench.data["site-1"].validation.copy()
    for unit in bench.data["site-1"].training_units:
        without = validation.copy()
        without[unit] = True  # out of training
        others = trainer_of(bench, validation=without).train(1, start, training("head"), mechanism)
        assert (everyone - others).l2_norm() <= 0.01 * (1 + 1e-4)


def test_an_empty_draw_is_noise_alone(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=12)
    everyone_validates = np.ones_like(bench.data["site-1"].validation)
    trainer = trainer_of(bench, validation=everyone_validates)
    mechanism = a_sum(noise_multiplier=1.0, nominal_units=10)
    delta = trainer.train(1, bench.prepared.bundle.initial, training("adapter"), mechanism)
    noise = SeededRandom(seed=1, site="site-1").stream(round=1, step=0, purpose=Purpose.NOISE)
    expected = -mechanism.release(np.zeros(delta.spec.size), noise)
    np.testing.assert_allclose(delta.vector, expected, rtol=1e-6)


@pytest.mark.parametrize("groups", [("head",), ("adapter",)])
def test_a_planted_nan_record_contributes_zero(
    tmp_path: Path, groups: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = small_bench(tmp_path, units=12)
    start = somewhere(bench)
    victim = int(bench.data["site-1"].training_units[3])
    record = bench.data["site-1"].records_of(victim)
    without = bench.data["site-1"].validation.copy()
    without[victim] = True
    clean = trainer_of(bench, validation=without).train(1, start, training(*groups), a_sum())

    model = bench.prepared.model
    token_of_victim = bench.inputs["site-1"].texts.tokens[int(record[0])]
    true_features: Callable[..., torch.Tensor] = model.features

    def poisoned(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        found = true_features(ids, mask)
        rows = [torch.equal(i[m.bool()], torch.from_numpy(token_of_victim)) for i, m in zip(ids, mask, strict=True)]
        return torch.where(torch.tensor(rows)[:, None], torch.nan, 1.0) * found

    monkeypatch.setattr(model, "features", poisoned)
    planted = trainer_of(bench)
    bench.inputs["site-1"].forget()
    delta = planted.train(1, start, training(*groups), a_sum())
    delta.check_finite()
    assert np.linalg.norm(delta.vector - clean.vector) <= 1e-5 * clean.l2_norm()


def test_local_steps_draw_and_noise_anew(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=12)
    start = somewhere(bench)
    mechanism = a_sum(noise_multiplier=1.0)
    one = trainer_of(bench).train(1, start, training("head"), mechanism)
    two = trainer_of(bench).train(1, start, training("head", steps=2), mechanism)
    other_round = trainer_of(bench).train(2, start, training("head"), mechanism)
    assert not np.allclose(two.vector, 2 * one.vector)
    assert not np.allclose(one.vector, other_round.vector)


def test_the_same_round_is_bit_identical(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=12)
    start = somewhere(bench)
    mechanism = a_sum(noise_multiplier=1.0, sampling_rate=0.5)
    first, second = (trainer_of(bench).train(1, start, training("adapter"), mechanism) for _ in range(2))
    assert first.digest == second.digest


def test_the_optimiser_divides_by_the_declared_number(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    mechanism = a_sum(nominal_units=50, sampling_rate=0.5, noise_multiplier=1e-6)
    optimizer = UnitOptimizer(torch.optim.SGD([parameter], lr=1.0), mechanism=mechanism)
    optimizer.totals[0] += torch.tensor([25.0, 0.0, -50.0])
    optimizer.release(SeededRandom(seed=0, site="a").stream(round=1, step=0, purpose=Purpose.NOISE))
    np.testing.assert_allclose(parameter.detach().numpy(), [-1.0, 0.0, 2.0], atol=1e-5)


def test_features_are_computed_once_while_the_head_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench(tmp_path, units=12)
    start = somewhere(bench)
    calls: list[int] = []
    trainer = LocalTrainer(
        model=bench.prepared.model,
        data=bench.data["site-1"],
        inputs=bench.inputs["site-1"],
        randomness=SeededRandom(seed=1, site="site-1"),
        progress=lambda done, total: calls.append(done),
    )
    for round in (1, 2):
        trainer.train(round, start, training("head"), a_sum())
    assert calls == [len(bench.data["site-1"].records)]
    delta = trainer.train(3, start, training("adapter"), a_sum())
    moved = start.replaced(start.subset(("adapter",)) + delta)
    trainer.train(4, moved, training("head"), a_sum())
    assert len(calls) == 2


def test_evaluation_averages_a_unit_and_counts_validation_units_only(tmp_path: Path) -> None:
    from fedward_common.privacy.mechanism import PrivateMetric

    bench = small_bench(tmp_path, units=40, per_unit=3)
    trainer = trainer_of(bench)
    metric = PrivateMetric(noise_multiplier=1e-6, loss_cap=trainer.loss_cap)
    sums = trainer.evaluate(1, bench.prepared.bundle.initial, metric, cap=a_sum())
    units = len(bench.data["site-1"].validation_units)
    assert 0 < units < 40
    assert sums.units == pytest.approx(units, abs=1e-3)
    assert sums.loss == pytest.approx(units * np.log(3), rel=1e-3)  # a zero head guesses uniformly
    assert 0 <= sums.correct <= units


def test_records_stay_a_frozen_input(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=12)
    before: Records = bench.data["site-1"].records
    labels = before.labels.copy()
    trainer_of(bench).train(1, bench.prepared.bundle.initial, training("head"), a_sum())
    np.testing.assert_array_equal(before.labels, labels)
