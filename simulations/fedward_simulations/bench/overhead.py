"""What a round costs besides training: at a site and at the coordinator, at about 100,000 trained numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.codec import PlanWriter, key_fingerprint
from fedward_common.config import AdapterConfig, DataConfig, Method, RunConfig, StageConfig, TaskConfig
from fedward_common.round import Fold, RoundPlan, Update
from fedward_server.admission import Admission, weight_of
from fedward_server.bundle import Bundle, run_id_of
from fedward_server.state import State, advance
from fedward_simulations.bench.ready import ReadySite
from fedward_simulations.bench.table import Table

__all__ = ["bundle_for", "measure"]

RANK, LAYERS, CLASSES = 8, 8, 2
AIM_MS = 5.0

PLAN, LAY_OUT, ADVANCE = ONCE = ("coordinator: plan", "coordinator: lay out the adapter", "coordinator: advance")
SIGN, SITE, ADMIT, FOLD = EACH_SITE = (
    "coordinator: address, encode, sign",
    "site: verify, decode, policy, ledger, gate, encode, sign",
    "coordinator: verify, decode, admit",
    "coordinator: fold",
)

T = TypeVar("T")
Took = dict[str, tuple[float, float]]  # step -> wall and CPU seconds


def measure(*, rounds: int = 50, width: int = 768) -> Table:
    """Time whole rounds of one site.

    Args:
      rounds: how many, after one that is not counted.
      width: of the adapted layers; 768 gives 99,842 numbers.
    """
    began = time.perf_counter()
    bench = ReadySite.build(bundle_for(rounds + 1, width))
    state = State.initial(bench.bundle.initial)
    _, state = _round(bench, state)
    first = time.perf_counter() - began
    took: list[Took] = []
    for _ in range(rounds):
        one, state = _round(bench, state)
        took.append(one)
    rows = [_row(step, [one[step] for one in took]) for step in took[0]]
    return Table(
        title=f"Overhead of a round, {bench.bundle.spec.size:,} trained numbers",
        head=("step", "ms, median", "ms, fastest", "CPU ms, median", "CPU ms, fastest"),
        rows=(
            *rows,
            _row("for each site", [_sum(one, EACH_SITE) for one in took]),
            _row("once a round, for all sites", [_sum(one, ONCE) for one in took]),
        ),
        note=f"Over {rounds} rounds; aim for each site: at most {AIM_MS:g} ms. Building the site and its first round, "
        f"which finds the noise for the whole run, took {first:.1f} s.",
    )


def _sum(one: Took, steps: Sequence[str]) -> tuple[float, float]:
    return sum(one[step][0] for step in steps), sum(one[step][1] for step in steps)


def _row(step: str, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
    wall, cpu = ([1e3 * seconds for seconds in column] for column in zip(*pairs, strict=True))
    figures = (statistics.median(wall), min(wall), statistics.median(cpu), min(cpu))
    return (step, *(f"{figure:.2f}" for figure in figures))


def _round(bench: ReadySite, state: State) -> tuple[Took, State]:
    took: Took = {}
    config = bench.bundle.config
    plan = _timed(took, PLAN, lambda: bench.plan(state))
    writer = _timed(took, LAY_OUT, lambda: _writer(bench, plan, state))
    parts = _timed(took, SIGN, lambda: writer.parts(_addressed(bench, plan)))
    data = parts.joined()
    reply = _timed(took, SITE, lambda: bench.site.answer(data))
    update = _timed(took, ADMIT, lambda: _admit(bench, plan, reply))
    fold = Fold(update.delta.spec)
    _timed(took, FOLD, lambda: fold.add(update, weight=weight_of(update, config.server.weights)))
    total = fold.aggregate()
    after = _timed(
        took,
        ADVANCE,
        lambda: advance(state, total, optimiser=config.server.optimiser, learning_rate=config.server.learning_rate),
    )
    return took, after


def _writer(bench: ReadySite, plan: RoundPlan, state: State) -> PlanWriter:
    writer = PlanWriter(state.adapter, key=bench.operator)
    writer.parts(plan)  # digests of the adapter are found once, by whoever comes first
    return writer


def _addressed(bench: ReadySite, plan: RoundPlan) -> RoundPlan:
    return plan.addressed_to(key_fingerprint(bench.key.public_key()))


def _admit(bench: ReadySite, plan: RoundPlan, reply: bytes) -> Update:
    spec = bench.bundle.spec.subset(plan.training.groups)
    doorkeeper = Admission(plan=plan, spec=spec, max_norm=bench.bundle.config.server.max_update_norm)
    verdict = doorkeeper.admit("site", reply, key=bench.key.public_key())
    if not isinstance(verdict, Update):
        raise RuntimeError(f"the bench's update was not admitted: {verdict}")
    return verdict


def _timed(took: Took, step: str, work: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    took[step] = (time.perf_counter() - wall, time.process_time() - cpu)
    return result


def bundle_for(rounds: int, width: int) -> Bundle:
    """A run of so many rounds over 8 layers of this width: 768 gives 99,842 numbers."""
    config = RunConfig(
        name="bench",
        task=TaskConfig(labels=("no", "yes")),
        adapter=AdapterConfig(method=Method.LORA, rank=RANK),
        data=DataConfig(train="none"),
        stages=(StageConfig(name="both", train=("head", "adapter"), rounds=rounds, evaluate_every=1),),
    )
    spec = _spec(config, width)
    return Bundle(
        run_id=run_id_of(config, nonce=bytes(32)), config=config, initial=Adapter.zeros(spec), frozen={}, base_name=""
    )


def _spec(config: RunConfig, width: int) -> AdapterSpec:
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (CLASSES, width), "head.bias": (CLASSES,)}
    for layer in range(LAYERS):
        shapes[f"layer.{layer}.lora_A"] = (RANK, width)
        shapes[f"layer.{layer}.lora_B"] = (width, RANK)
    head = ("head.bias", "head.weight")
    return AdapterSpec(
        base_fingerprint="0" * 64,
        method=config.adapter.method.value,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        target_modules=config.adapter.target_modules,
        groups={"head": head, "adapter": tuple(sorted(set(shapes) - set(head)))},
        tensors=shapes,
    )
