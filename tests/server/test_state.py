from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedward_common.config import ServerOptimiser
from fedward_common.errors import SpecMismatch
from fedward_common.round import Aggregate
from fedward_server.state import State, advance
from support.nouns import HEAD, SPEC, START, adapter_of, plan_from, update_for

Vector = NDArray[np.float64]

PLAN = plan_from()
RATE = 0.05


def aggregate_of(*updates: tuple[list[float], float]) -> Aggregate:
    """The sum of a few heads' updates at their weights."""
    total = Aggregate.empty(HEAD)
    for values, weight in updates:
        total = total + Aggregate.of(update_for(PLAN, values), weight=weight)
    return total


def test_sgd_is_fedavg_by_hand() -> None:
    aggregate = aggregate_of(([1, 0, 0, 0, 0, 4], 1.0), ([5, 0, 8, 0, 0, 0], 3.0))
    after = advance(State.initial(START), aggregate, optimiser=ServerOptimiser.SGD, learning_rate=0.5)
    mean = np.array([4.0, 0.0, 6.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(after.adapter.vector[:6], START.vector[:6] + 0.5 * mean, rtol=1e-7)
    assert after.finished == 1


def test_a_learning_rate_of_one_adds_the_mean_delta() -> None:
    aggregate = aggregate_of(([1, 2, 3, 4, 5, 6], 7.0))
    after = advance(State.initial(START), aggregate, optimiser=ServerOptimiser.SGD, learning_rate=1.0)
    np.testing.assert_array_equal(after.adapter.subset(["head"]).vector, START.vector[:6] + np.arange(1, 7))


def test_adam_is_torchs_adam_on_minus_the_mean_delta() -> None:
    # the step is float64 here, so it is compared where the adapter's float32 does not hide it: start from zero and
    # let torch take its steps in float64 from the same float32 means
    deltas = np.random.default_rng(4).normal(size=(6, HEAD.size)).astype(np.float32)
    state = State.initial(adapter_of([0.0] * 9))
    parameter = torch.zeros(HEAD.size, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=RATE, betas=(0.9, 0.999), eps=1e-12)
    for delta in deltas:
        before, torch_before = state.adapter.vector[:6].astype(np.float64), parameter.detach().numpy().copy()
        state = advance(state, aggregate_of((delta.tolist(), 2.0)), optimiser=ServerOptimiser.ADAM, learning_rate=RATE)
        parameter.grad = -torch.tensor(delta, dtype=torch.float64)
        adam.step()
        moved = state.adapter.vector[:6] - before
        np.testing.assert_allclose(moved, parameter.detach().numpy() - torch_before, rtol=0, atol=1e-7)
    inside = adam.state[parameter]
    np.testing.assert_allclose(state.moments.first[:6], -inside["exp_avg"].numpy(), rtol=1e-9)
    np.testing.assert_allclose(state.moments.second[:6], inside["exp_avg_sq"].numpy(), rtol=1e-9)
    ours = step_of(state.moments.first[:6], state.moments.second[:6], 6)
    theirs = step_of(-inside["exp_avg"].numpy(), inside["exp_avg_sq"].numpy(), int(inside["step"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(state.adapter.vector[:6], parameter.detach().numpy(), rtol=0, atol=1e-6)


def step_of(first: Vector, second: Vector, steps: int) -> Vector:
    """Adam's step, as the paper writes it."""
    return np.asarray(first / (1 - 0.9**steps) / np.sqrt(second / (1 - 0.999**steps)))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_adams_first_step_is_the_rate_in_the_deltas_direction_whatever_its_scale(scale: float) -> None:
    aggregate = aggregate_of(([scale, -scale, 2 * scale, 0, scale, scale], 1.0))
    after = advance(State.initial(adapter_of([0.0] * 9)), aggregate, optimiser=ServerOptimiser.ADAM, learning_rate=RATE)
    expected = RATE * np.array([1, -1, 1, 0, 1, 1])
    np.testing.assert_allclose(after.adapter.vector[:6], expected, rtol=1e-6)


@pytest.mark.parametrize("optimiser", ServerOptimiser)
def test_tensors_outside_the_aggregate_are_unchanged(optimiser: ServerOptimiser) -> None:
    state = State.initial(START)
    for _ in range(3):
        state = advance(state, aggregate_of(([1.0] * 6, 1.0)), optimiser=optimiser, learning_rate=RATE)
    np.testing.assert_array_equal(state.adapter.tensors["layer.lora_B"], START.tensors["layer.lora_B"])
    assert not state.moments.first[6:].any()
    assert not state.moments.second[6:].any()
    assert state.moments.steps["layer.lora_B"] == 0
    assert (state.adapter.vector[:6] != START.vector[:6]).all()


def test_adam_counts_the_steps_of_each_tensor() -> None:
    state = State.initial(START)
    for _ in range(2):
        state = advance(state, aggregate_of(([1.0] * 6, 1.0)), optimiser=ServerOptimiser.ADAM, learning_rate=RATE)
    later = Aggregate.empty(SPEC.subset(["adapter"]))
    delta = adapter_of([1.0, 1.0, 1.0], later.spec)
    later = later + Aggregate.of(update_for(PLAN, delta=delta), weight=1.0)
    after = advance(state, later, optimiser=ServerOptimiser.ADAM, learning_rate=RATE)
    assert dict(after.moments.steps) == {"head.bias": 2, "head.weight": 2, "layer.lora_B": 1}
    np.testing.assert_allclose(after.adapter.vector[6:], START.vector[6:] + RATE, rtol=1e-6)


@pytest.mark.parametrize("optimiser", ServerOptimiser)
def test_nothing_passed_in_is_changed(optimiser: ServerOptimiser) -> None:
    state = advance(
        State.initial(START), aggregate_of(([1.0] * 6, 1.0)), optimiser=ServerOptimiser.ADAM, learning_rate=RATE
    )
    aggregate = aggregate_of(([1, 2, 3, 4, 5, 6], 3.0))
    kept = (state.moments.first.copy(), state.moments.second.copy(), dict(state.moments.steps), aggregate.total.copy())
    digest = state.adapter.digest
    first = advance(state, aggregate, optimiser=optimiser, learning_rate=RATE)
    np.testing.assert_array_equal(state.moments.first, kept[0])
    np.testing.assert_array_equal(state.moments.second, kept[1])
    assert (state.moments.steps, state.finished) == (kept[2], 1)
    np.testing.assert_array_equal(aggregate.total, kept[3])
    assert replace(state.adapter, vector=state.adapter.vector.copy()).digest == digest
    assert advance(state, aggregate, optimiser=optimiser, learning_rate=RATE).adapter.digest == first.adapter.digest


@pytest.mark.parametrize("optimiser", ServerOptimiser)
def test_an_aggregate_of_another_adapter_is_refused(optimiser: ServerOptimiser) -> None:
    other = replace(SPEC, rank=2).subset(["head"])
    with pytest.raises(SpecMismatch):
        advance(State.initial(START), Aggregate.empty(other), optimiser=optimiser, learning_rate=RATE)
