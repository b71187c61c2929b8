"""The cohort engine on an NVIDIA GPU: the same results, the same bits again, and sums that do not wait for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fedward_client.training import LocalResult, LocalWork
from fedward_common.config import LocalOptimiser
from fedward_common.privacy.mechanism import PrivateSum
from fedward_common.round import Training
from fedward_simulations.cohort.engine import Cohort
from fedward_simulations.cohort.gradients import Gradients, Outer
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.cohort.sums import ClippedSums
from fedward_simulations.device import chosen, held_bytes, peak_bytes
from fedward_simulations.engines import Precision
from fedward_simulations.run import Workbench
from support.cohort import METHODS, somewhere, trainer_of
from support.federation import small_bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]

STEP = PrivateSum(sampling_rate=0.7, noise_multiplier=1e-8, clip_norm=0.5, nominal_units=10, max_records_per_unit=2)
UNEVEN = (1, 30, 4, 0, 13)


@pytest.fixture(params=METHODS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    found = small_bench(tmp_path_factory.getbasetemp(), units=12, adapter=METHODS[request.param])
    found.prepared.model.to(chosen("auto"))
    yield found
    found.prepared.model.to("cpu")


def works(bench: Workbench, *groups: str, steps: int = 1) -> list[LocalWork]:
    wanted = Training(groups=groups, local_steps=steps, optimiser=LocalOptimiser.SGD, learning_rate=0.5)
    return [
        LocalWork(
            trainer=trainer_of(bench, number, units, per_unit=3),
            round=1,
            adapter=somewhere(bench),
            training=wanted,
            step=STEP,
            metric=None,
        )
        for number, units in enumerate(UNEVEN)
    ]


def silent(line: str) -> None:
    raise AssertionError(line)


def computed(wanted: list[LocalWork], precision: Precision = Precision.FLOAT32) -> list[LocalResult]:
    found = Cohort(note=silent, precision=precision).compute(wanted)
    assert all(isinstance(result, LocalResult) for result in found), found
    return [result for result in found if isinstance(result, LocalResult)]


def apart(ours: list[LocalResult], theirs: list[LocalResult]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max((one.delta - other.delta).l2_norm() / max(other.delta.l2_norm(), 1e-30) for one, other in pairs)


@pytest.mark.parametrize("groups", [("head",), ("adapter",), ("adapter", "head")])
def test_each_result_is_what_the_site_alone_gives_there_and_on_the_cpu(
    bench: Workbench, groups: tuple[str, ...]
) -> None:
    ours = computed(works(bench, *groups, steps=2))
    assert apart(ours, [work.done() for work in works(bench, *groups, steps=2)]) <= 1e-5
    bench.prepared.model.to("cpu")
    assert apart(ours, [work.done() for work in works(bench, *groups, steps=2)]) <= 1e-4


def test_the_same_works_give_the_same_bits(bench: Workbench) -> None:
    one, other = computed(works(bench, "adapter", "head")), computed(works(bench, "adapter", "head"))
    assert [result.delta.to_bytes() for result in one] == [result.delta.to_bytes() for result in other]


def test_bfloat16_points_the_same_way(bench: Workbench) -> None:
    exact, rough = computed(works(bench, "adapter")), computed(works(bench, "adapter"), Precision.BFLOAT16)
    for one, other in zip(exact, rough, strict=True):
        norms = one.delta.l2_norm() * other.delta.l2_norm()
        assert norms == 0 or float(one.delta.vector @ other.delta.vector) / norms > 0.99


def test_sums_do_not_wait_for_the_device() -> None:
    device = chosen("auto")
    drawn = [[np.array([0, 1]), np.array([2])], [], [np.array([number]) for number in range(20)]]
    flat = FlatRecords.of(drawn, lengths=[np.full(40, 3)] * 3)
    sums = ClippedSums(sites=3, slices=[slice(0, 6), slice(6, 8)], mechanism=STEP, device=device)
    rows: list[Gradients] = [
        Outer(left=torch.randn(len(flat), 2, device=device), right=torch.randn(len(flat), 3, device=device)),
        torch.randn(len(flat), 2, device=device),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums.add(rows, flat, slice(0, len(flat)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_of_the_device_is_told() -> None:
    held = torch.zeros(1_000_000, device=chosen("auto"))
    assert held_bytes()["device"] >= held.nbytes
    assert peak_bytes()["device"] >= held.nbytes
