"""A round of 50 clients by several engines in turn, and how long each takes until its first client has answered.

An engine is whatever gives rounds, one at a time: ``by`` makes one of the engines that people choose. All of them are
open, and warm, while the rounds of one alternate with the rounds of the others.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fedward_client.data import Records
from fedward_common.codec import new_key
from fedward_common.config import (
    AdapterConfig,
    DataConfig,
    Method,
    ModelConfig,
    PartitionConfig,
    PrivacyConfig,
    RoundsConfig,
    RunConfig,
    StageConfig,
    TaskConfig,
)
from fedward_common.errors import OutputError, RunStopped
from fedward_common.round import RoundRecord
from fedward_server.checkpoint import Checkpoints
from fedward_server.evaluation import NoEvaluation
from fedward_server.loop import Coordinator, EnrolledSite
from fedward_server.records import RoundLog
from fedward_server.state import State
from fedward_simulations.bench.table import Table, middle
from fedward_simulations.dealing.sources import Source
from fedward_simulations.device import chosen
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.run import Workbench, cohort_of, serving
from fedward_simulations.sites.population import Population, Watcher

__all__ = ["ENGINES", "Opener", "by", "measure", "workbench"]

Round: TypeAlias = Callable[[], float]  # a whole round, plans to advanced state; its seconds
Opener: TypeAlias = Callable[[Workbench], AbstractContextManager[Round]]

CLIENTS, TOKENS, CLASSES, RANK = 50, 16, 21, 8
RECORDS = (8, 2)
LONGEST_S = 600.0


def by(engine: Engine, *, clients: int = 0) -> Opener:
    """One of the engines that people choose; so many clients at once, or as many as fit."""

    @contextmanager
    def opened(bench: Workbench) -> Iterator[Round]:
        operator, keys = new_key(), {name: new_key() for name in bench.data}
        population = Population.build(
            bench.prepared,
            bench.data,
            operator=operator.public_key(),
            watcher=Watcher(caching=lambda site, done, total: None, note=_complain),
            inputs=bench.inputs,
            keys=keys,
        )
        computing = Computing(engine=engine, clients=clients)
        with (
            tempfile.TemporaryDirectory() as place,
            serving(
                bench,
                population,
                computing,
                cohort_of(bench, computing, note=_complain),
                operator=operator,
                keys=keys,
                note=_complain,
            ) as (grid, nodes, _),
        ):
            kept = _State(Path(place), bench.start().state)
            coordinator = Coordinator(
                bundle=bench.prepared.bundle,
                key=operator,
                sites={node: EnrolledSite(name=name, key=population.keys[name]) for node, name in nodes.items()},
                evaluator=NoEvaluation(),
                observer=_Nobody(),
                checkpoints=kept,
                log=RoundLog(Path(place) / "rounds.jsonl"),
                stopping=lambda: kept.done,
            )
            yield lambda: kept.next(coordinator, grid)

    return opened


ENGINES: dict[str, Opener] = {
    engine.value: by(engine) for engine in Engine if engine is not Engine.RAY or find_spec("ray")
}


def measure(
    *,
    engines: Mapping[str, Opener] = ENGINES,
    repeats: int = 5,
    clients: int = CLIENTS,
    model: ModelConfig | None = None,
) -> Table:
    """Time rounds of all engines in turn, after one of each that is not counted.

    Args:
      engines: by name; ratios are those of ``ray`` over each, where it is installed.
      repeats: rounds of each.
      clients: in a round.
      model: the base; MiniLM without one.
    """
    rows = [row for records in RECORDS for row in _rounds(engines, records, repeats, clients, model)]
    rows += [_first(name, repeats) for name in engines if name in ENGINES and model is None]
    return Table(
        title=f"A round of {clients} clients by each engine",
        head=("what", "seconds, median (range)", "Ray over it"),
        rows=tuple(rows),
        note=f"MiniLM, {TOKENS} tokens, LoRA of rank {RANK} and head, one private step; {repeats} rounds of each "
        "engine in turn, all warm. Until the first client: from the start of a process.",
    )


def _rounds(
    engines: Mapping[str, Opener], records: int, repeats: int, clients: int, model: ModelConfig | None
) -> list[tuple[str, ...]]:
    bench = workbench(records, clients=clients, model=model)
    took: dict[str, list[float]] = {name: [] for name in engines}
    with ExitStack() as stack:
        rounds = {name: stack.enter_context(opener(bench)) for name, opener in engines.items()}
        for _ in range(repeats + 1):
            for name, one in rounds.items():
                took[name].append(one())
    counted = {name: seconds[1:] for name, seconds in took.items()}
    slow = counted.get(Engine.RAY.value)
    return [
        (f"{name}, {records} records a client", middle(seconds, digits=3), _over(slow, seconds))
        for name, seconds in counted.items()
    ]


def _over(slow: list[float] | None, seconds: list[float]) -> str:
    return middle([one / other for one, other in zip(slow, seconds, strict=True)]) if slow else "-"


def _first(name: str, repeats: int) -> tuple[str, ...]:
    return (f"{name}, until the first client has answered", middle([_start(name) for _ in range(repeats)]), "-")


def _start(name: str) -> float:
    began = time.perf_counter()
    call = [sys.executable, "-m", "fedward_simulations.bench.ray", name]
    done = subprocess.run(call, capture_output=True, text=True, timeout=LONGEST_S, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise OutputError(f"the engine {name} did not answer: {done.stderr[-500:]}", hint="run it by hand")
    return float(done.stdout.split()[-1]) - began


def workbench(records: int, *, clients: int = CLIENTS, model: ModelConfig | None = None) -> Workbench:
    """So many clients of so many records each."""
    config = RunConfig(
        name="bench",
        model=model or ModelConfig(max_tokens=TOKENS),
        task=TaskConfig(labels=tuple(f"label {number}" for number in range(CLASSES))),
        adapter=AdapterConfig(method=Method.LORA, rank=RANK),
        data=DataConfig(train="none"),
        partition=PartitionConfig(minimum_units=1),
        privacy=PrivacyConfig(delta=1e-5, validation_fraction=0.0),
        rounds=RoundsConfig(minimum=clients, deadline_s=LONGEST_S),
        stages=(StageConfig(name="both", train=("head", "adapter"), rounds=100, learning_rate=0.1),),
    )
    held = {f"site-{number}": _records(records, number) for number in range(clients)}
    source = Source(sites=held, test=_records(CLASSES, clients), digest="0" * 64)
    return Workbench.open(config, source, device=chosen("auto"))


def _records(count: int, seed: int) -> Records:
    words = np.array(["fever", "cough", "chest", "pain", "left", "acute", "renal", "skin"])
    drawn = np.random.default_rng(seed).choice(words, (count, TOKENS))
    return Records(
        texts=tuple((" ".join(row),) for row in drawn),  # cut at max_tokens
        labels=np.arange(count, dtype=np.int64) % CLASSES,
        units=np.arange(count, dtype=np.int64),
        unit_ids=tuple(f"{seed}-{number}" for number in range(count)),
        sites=None,
    )


class _State(Checkpoints):
    """Keeps the last state in memory, and lets a coordinator do one round at a time."""

    def __init__(self, folder: Path, state: State) -> None:
        super().__init__(folder)
        self._state, self.done = state, False

    def save(self, state: State, **about: Any) -> None:
        self._state, self.done = state, True

    def next(self, coordinator: Coordinator, grid: Any) -> float:
        self.done = False
        began = time.perf_counter()
        with suppress(RunStopped):
            coordinator.run(grid, self._state)
        return time.perf_counter() - began


class _Nobody:
    """Watches nothing, but says what goes wrong."""

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        pass

    def answered(self, site: str, outcome: str) -> None:
        if outcome != "update":
            _complain(f"{site}: {outcome}")

    def round_finished(self, record: RoundRecord) -> None:
        pass

    def note(self, text: str) -> None:
        _complain(text)


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _until_first(name: str) -> None:
    with ENGINES[name](workbench(RECORDS[0], clients=1)) as one:
        one()
        sys.stdout.write(f"{time.perf_counter()}\n")


if __name__ == "__main__":
    _until_first(sys.argv[1])
