"""The cohort engine against the sequential path: one result for each site, whatever is computed beside it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from fedward_client.training import LocalResult, LocalTrainer, LocalWork
from fedward_common.config import LocalOptimiser
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.round import Training
from fedward_simulations.cohort import engine, memory
from fedward_simulations.cohort.engine import Cohort
from fedward_simulations.cohort.gradients import FEW_ROWS, silenced, written_out
from fedward_simulations.cohort.source import Source
from fedward_simulations.cohort.stacking import Stack
from fedward_simulations.cohort.sums import ClippedSums
from fedward_simulations.run import Workbench
from support.cohort import METHODS, somewhere, trainer_of
from support.federation import small_bench

SIZES = {"even": (8, 8, 8), "uneven": (1, 30, 4, 0, 13), "single": (1,), "empty": (0, 0)}
ALMOST_NONE = 1e-8  # noise so small that the sums themselves are compared


def noisy(multiplier: float, **changes: Any) -> PrivateSum:
    values: dict[str, Any] = {
        "sampling_rate": 0.7,
        "noise_multiplier": multiplier,
        "clip_norm": 0.5,
        "nominal_units": 10,
        "max_records_per_unit": 2,
    }
    return PrivateSum(**(values | changes))


def training(*groups: str, steps: int = 1, optimiser: LocalOptimiser = LocalOptimiser.SGD) -> Training:
    return Training(groups=groups, local_steps=steps, optimiser=optimiser, learning_rate=0.5)


def works_of(
    bench: Workbench, sizes: tuple[int, ...], wanted: Training, *, multiplier: float = 1.0, **data: Any
) -> list[LocalWork]:
    return [
        LocalWork(
            trainer=trainer_of(bench, number, units, **data),
            round=1,
            adapter=somewhere(bench),
            training=wanted,
            step=noisy(multiplier),
            metric=PrivateMetric(noise_multiplier=1e-6, loss_cap=1.1),
        )
        for number, units in enumerate(sizes)
    ]


def silent(line: str) -> None:
    raise AssertionError(line)


def results(works: list[LocalWork], **engine: Any) -> list[LocalResult]:
    found = Cohort(note=silent, **engine).compute(works)
    assert all(isinstance(result, LocalResult) for result in found), found
    return [result for result in found if isinstance(result, LocalResult)]


def assert_same(ours: list[LocalResult], theirs: list[LocalResult]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.delta - other.delta).l2_norm() <= 1e-5 * max(other.delta.l2_norm(), 1e-30)
        assert (one.metrics is None) == (other.metrics is None)
        if one.metrics and other.metrics:
            assert one.metrics.correct == pytest.approx(other.metrics.correct, rel=1e-5, abs=1e-5)
            assert one.metrics.loss == pytest.approx(other.metrics.loss, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module", params=METHODS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return small_bench(tmp_path_factory.getbasetemp(), units=12, adapter=METHODS[request.param])


@pytest.mark.parametrize("groups", [("head",), ("adapter",), ("adapter", "head")])
@pytest.mark.parametrize("per_unit", [1, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_each_result_is_what_the_site_alone_would_give(
    bench: Workbench, groups: tuple[str, ...], per_unit: int, sizes: str
) -> None:
    # where somebody takes part, noise is so small that the sums themselves are compared
    multiplier = 1.0 if sizes == "empty" else ALMOST_NONE
    works = works_of(bench, SIZES[sizes], training(*groups), multiplier=multiplier, per_unit=per_unit)
    assert_same(results(works), [work.done() for work in works])


def test_noise_is_each_sites_own(bench: Workbench) -> None:
    works = works_of(bench, SIZES["uneven"], training("adapter", "head"))
    ours = results(works)
    assert_same(ours, [work.done() for work in works])
    assert len({result.delta.to_bytes() for result in ours}) == len(ours)


@pytest.mark.parametrize("optimiser", LocalOptimiser)
@pytest.mark.parametrize("groups", [("head",), ("adapter", "head")])
def test_several_local_steps_part_the_sites(
    bench: Workbench, groups: tuple[str, ...], optimiser: LocalOptimiser
) -> None:
    works = works_of(bench, SIZES["uneven"], training(*groups, steps=3, optimiser=optimiser), per_unit=3)
    assert_same(results(works), [work.done() for work in works])


def test_texts_may_be_pairs(bench: Workbench) -> None:
    works = works_of(bench, SIZES["uneven"], training("adapter"), multiplier=ALMOST_NONE, pairs=True)
    assert works[1].trainer.inputs.texts.types is not None
    assert_same(results(works), [work.done() for work in works])


@pytest.mark.parametrize("tokens", [1, 17, 40, 10_000])
def test_physical_batches_change_nothing(bench: Workbench, tokens: int) -> None:
    works = works_of(bench, SIZES["uneven"], training("adapter", "head"), multiplier=ALMOST_NONE, per_unit=3)
    assert_same(results(works, tokens=tokens), [work.done() for work in works])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_same_works_give_bit_identical_results(bench: Workbench, steps: int) -> None:
    works = works_of(bench, SIZES["uneven"], training("adapter", "head", steps=steps), per_unit=3)
    for one, other in zip(results(works), results(works), strict=True):
        assert one.delta.to_bytes() == other.delta.to_bytes()
        assert one.metrics == other.metrics


class Complaints(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def test_one_sites_fault_is_one_sites_outcome(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    works = works_of(bench, (5, 6, 7), training("adapter"))
    expected = [work.done() for work in works]
    honest = LocalTrainer.draw

    def faulty(self: LocalTrainer, *arguments: Any) -> Any:
        if self is works[1].trainer:
            raise RuntimeError("Jane Roe")
        return honest(self, *arguments)

    monkeypatch.setattr(LocalTrainer, "draw", faulty)
    first, second, third = Cohort(note=silent).compute(works)
    assert isinstance(second, RuntimeError)
    assert isinstance(first, LocalResult)
    assert isinstance(third, LocalResult)
    assert_same([first, third], [expected[0], expected[2]])


def test_whatever_fails_for_all_is_computed_one_by_one(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    works = works_of(bench, (5, 6, 7), training("adapter"))

    def fail(*arguments: Any) -> Any:
        raise IndexError("Jane Roe")

    monkeypatch.setattr(Source, "logits", fail)
    said = Complaints()
    found = Cohort(note=said).compute(works)
    assert said == ["the cohort failed (IndexError): its sites are computed one by one"]
    assert_same([result for result in found if isinstance(result, LocalResult)], [work.done() for work in works])


def test_out_of_memory_makes_batches_and_then_cohorts_smaller(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = works_of(bench, (5, 6, 7, 5), training("adapter", "head"), multiplier=ALMOST_NONE)
    honest, sizes = Source.logits, []

    def tight(self: Source, flat: Any, batch: slice) -> Any:
        sizes.append(len(self.trainers))
        if len(self.trainers) > 2:
            raise MemoryError
        return honest(self, flat, batch)

    monkeypatch.setattr(Source, "logits", tight)
    said = Complaints()
    found = Cohort(note=said, tokens=200).compute(works)
    assert said == [
        "out of memory: physical batches of 100 tokens from here on",
        "out of memory: physical batches of 50 tokens from here on",
        "out of memory: 2 clients at a time from here on",
    ]
    assert_same([result for result in found if isinstance(result, LocalResult)], [work.done() for work in works])
    assert max(sizes) == 4
    assert sizes[-1] == 2


def test_what_a_failed_attempt_held_is_free_before_the_next_and_its_size_is_remembered(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = works_of(bench, (5, 6, 7, 5), training("head"), multiplier=ALMOST_NONE)
    held: list[weakref.ref[Any]] = []
    sizes: list[int] = []
    honest = ClippedSums

    def tight(**arguments: Any) -> Any:
        assert not any(reference() is not None for reference in held), "a failed attempt is still in memory"
        sizes.append(arguments["sites"])
        made = honest(**arguments)
        if arguments["sites"] > 2:
            held.append(weakref.ref(made.totals))
            raise torch.OutOfMemoryError
        return made

    monkeypatch.setattr(engine, "ClippedSums", tight)
    said = Complaints()
    cohort = Cohort(note=said, tokens=200)
    for _ in range(2):
        found = cohort.compute(works)
        assert_same([result for result in found if isinstance(result, LocalResult)], [work.done() for work in works])
    assert sizes == [4, 2, 2, 2, 2]
    assert said == ["out of memory: 2 clients at a time from here on"]  # tokens do not decide where features are cached
    assert cohort.tokens == 200


def test_sizes_do_not_depend_on_what_was_drawn_or_what_is_free(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "whole_bytes", lambda device: 8_000_000)
    found = []
    for sizes in ((9,), (30, 4, 13)):
        cohort = Cohort(note=silent)
        cohort.compute(works_of(bench, sizes, training("adapter")))
        found.append(cohort.tokens)
    assert found[0] == found[1] < memory.CPU_TOKENS
    assert found[0].bit_count() == 1


def test_a_base_that_mixes_records_falls_back_and_says_so_and_sites_refuse_it(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = works_of(bench, (5, 6), training("adapter"), multiplier=ALMOST_NONE)
    model = bench.prepared.model
    honest = type(model).features

    def unpadded(self: Any, ids: Any, mask: Any, types: Any = None) -> Any:
        twice = (ids.repeat(2, 1), mask.repeat(2, 1), None if types is None else types.repeat(2, 1))
        return honest(self, *twice)[: len(ids)]

    monkeypatch.setattr(type(model), "features", unpadded)
    said = Complaints()
    found = Cohort(note=said).compute(works)
    assert [str(error) for error in found] == ["gradients are not of one record each"] * 2
    assert said == ["the base model mixes the records of a batch before a trained layer: sites are computed one by one"]


def test_the_model_is_left_as_it_was(bench: Workbench) -> None:
    works = works_of(bench, (5, 6), training("adapter", "head", steps=2))
    results(works)
    assert not any("forward" in vars(module) for module in bench.prepared.model.modules())


def test_silencing_a_record_changes_nothing_of_the_model(bench: Workbench) -> None:
    """What a layer reads may be a tensor of the base model's own, for all records the same."""
    model = bench.prepared.model
    stack, read = Stack(model=model, groups=("head",)), torch.ones(1, model.head.in_features)
    stack.expect(np.array([0, 0, 1]))
    with stack.in_place():
        model.head(read.expand(3, -1)).sum().backward()
    every = torch.ones(3, dtype=torch.bool)
    assert all(not written_out(silenced(part, every)).any() for part in stack.gradients())
    assert torch.equal(read, torch.ones_like(read))


def test_metrics_are_of_the_same_bits_whether_features_were_cached_or_not(bench: Workbench) -> None:
    """So a run that was resumed within a stage writes what it would have written."""
    once, again = (works_of(bench, (6, 9), training("head"), multiplier=ALMOST_NONE) for _ in range(2))
    for work in again:
        work.done()
    for compute in (results, lambda works: [work.done() for work in works]):
        cold = [work.metrics for work in compute(once)]
        assert cold == [work.metrics for work in compute(again)]


@pytest.mark.parametrize("per_unit", [1, 3])
def test_large_sites_train_a_head_together(bench: Workbench, per_unit: int) -> None:
    """More rows of one site than go into one matrix product, beside small sites; the second step has own weights."""
    wanted = training("head", steps=2)
    works = works_of(bench, (2 * FEW_ROWS, 3, 0), wanted, multiplier=1e-6, per_unit=per_unit)
    assert_same(results(works), [work.done() for work in works])
