"""One simulated run, from a checked run file and read data to a finished run directory.

Everything between sites and coordinator passes the same ServerApp, ClientApp, plan, policy, gate and codec that a
deployment uses; only the Grid is in this process and the sites are virtual.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.app import client_app
from fedward_client.data import SiteData
from fedward_client.policy import SEEDED_RANDOMNESS
from fedward_client.training import SiteInputs
from fedward_common.codec import new_key
from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError, InputError, OutputError, PrivacyError, RunStopped
from fedward_common.privacy.grants import Quote
from fedward_server.app import server_app
from fedward_server.bundle import Bundle, run_id_of
from fedward_server.checkpoint import Checkpoint, Checkpoints
from fedward_server.export import export_adapter
from fedward_server.loop import Coordinator, EnrolledSite
from fedward_server.records import RoundLog
from fedward_server.state import State
from fedward_simulations.cohort.doors import CohortDoors
from fedward_simulations.cohort.engine import Cohort
from fedward_simulations.cohort.memory import sites_that_fit
from fedward_simulations.dealing.sources import Source
from fedward_simulations.device import peak_bytes
from fedward_simulations.engines import BY_DEFAULT, Computing, Engine
from fedward_simulations.evaluation import TestEvaluator
from fedward_simulations.grid import InProcessGrid, node_ids
from fedward_simulations.prepare import Prepared, prepare
from fedward_simulations.results.folders import StoppedRun, lay_out, write_summary
from fedward_simulations.results.report import draw_plots, load_rounds
from fedward_simulations.sites.behaviour import Behaviour, Carrier, SimulatedClock, Unreliable
from fedward_simulations.sites.faults import with_flipped_labels
from fedward_simulations.sites.ledgers import LedgerFile
from fedward_simulations.sites.population import Population, Watcher, site_data
from fedward_simulations.watching.events import RunView

if TYPE_CHECKING:
    import torch

    from fedward_simulations.ray.engine import RaySites

__all__ = ["Workbench", "cohort_of", "fedavg_bytes", "resume", "run", "serving"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """What runs on the same data and base may share: the model, token ids, cached features."""

    prepared: Prepared
    source: Source
    data: Mapping[str, SiteData]
    inputs: Mapping[str, SiteInputs]
    evaluator: TestEvaluator

    @classmethod
    def open(
        cls, config: RunConfig, source: Source, *, run_id: str | None = None, device: torch.device | None = None
    ) -> Workbench:
        """Load the base and set the data out: whatever can fail on bad input does so here, before anything is written.

        Args:
          config: a checked run file.
          source: what was read for it.
          run_id: of the run to continue; a fresh one otherwise.
          device: where the model computes; the CPU without.

        Raises:
          ModelError: the base cannot be used.
          PrivacyError: delta is too large for a site, or no noise meets the target.
        """
        trained = with_flipped_labels(config, source.sites)
        data = {name: site_data(records, config=config) for name, records in trained.items()}
        _check_promise(config, data)
        if config.rounds.minimum > len(data):
            raise ConfigError(
                f"rounds.minimum is {config.rounds.minimum}, but there are fewer sites", hint="lower rounds.minimum"
            )
        prepared = prepare(config, run_id=run_id, device=device)
        return cls(
            prepared=prepared,
            source=source,
            data=data,
            inputs={name: SiteInputs(prepared.base, held.records) for name, held in data.items()},
            evaluator=TestEvaluator(
                config=config,
                model=prepared.model,
                records=source.test,
                inputs=SiteInputs(prepared.base, source.test),
            ),
        )

    def with_config(self, config: RunConfig) -> Workbench:
        """The same data and model under another run file of the same base, data, adapter and partition."""
        bundle = replace(self.prepared.bundle, config=config, run_id=run_id_of(config, nonce=os.urandom(32)))
        prepared = replace(self.prepared, bundle=bundle)
        return replace(self, prepared=prepared, evaluator=replace(self.evaluator, config=config))

    def start(self) -> Checkpoint:
        """Where a new run begins."""
        bundle = self.prepared.bundle
        extra = {"data": self.source.digest, "seconds": 0.0, "sites": len(self.data), "ledgers_end": 0, "cohort": {}}
        return Checkpoint(run_id=bundle.run_id, state=State.initial(bundle.initial), heads={}, extra=extra)


def run(bench: Workbench, *, out: Path, view: RunView, computing: Computing = BY_DEFAULT) -> dict[str, Any]:
    """Simulate a run from round 1.

    Args:
      bench: the data and model.
      out: an empty or missing folder.
      view: watches.
      computing: by which engine.

    Returns:
      The summary, as in summary.json.

    Guarantees:
      - Same config, data, machine and computing: a bit-identical adapter, also across a stop and ``resume``.

    Raises:
      FedwardError: a run that cannot go on; the last checkpoint stands.
    """
    computing.check(bench.prepared.bundle.config)
    lay_out(out, bench.prepared.bundle)
    start = bench.start()
    start = replace(start, extra={**start.extra, "computing": computing.remembered})
    Checkpoints(out / "checkpoints").save(start.state, run_id=start.run_id, heads={}, extra=start.extra)
    return _continue(bench, start, out=out, view=view, computing=computing)


def resume(
    bench: Workbench, stopped: StoppedRun, *, out: Path, view: RunView, computing: Computing = BY_DEFAULT
) -> dict[str, Any]:
    """Go on from a stopped run's last checkpoint.

    Raises:
      OutputError: data or base model are not those of the stopped run.
    """
    computing.check(stopped.bundle.config)
    same_base = bench.prepared.bundle.initial.digest == stopped.bundle.initial.digest
    if not same_base or bench.source.digest != stopped.checkpoint.extra["data"]:
        raise OutputError(f"data or base model of the run in {out} changed since it stopped", hint="start a new run")
    RoundLog(out / "rounds.jsonl").rewind(finished=stopped.checkpoint.state.finished)
    return _continue(bench, stopped.checkpoint, out=out, view=view, computing=computing)


def _check_promise(config: RunConfig, data: Mapping[str, SiteData]) -> None:
    # a real site answers 'unavailable' to such a plan; whoever simulates should hear why at once
    for name, held in data.items():
        if config.privacy.delta >= 1 / held.records.unit_count:
            raise PrivacyError(
                f"privacy.delta {config.privacy.delta:g} is not below 1 / units at {name}",
                hint="a delta that large permits publishing whole units: choose a smaller one",
            )
    Quote.of(config.terms)


def _continue(bench: Workbench, start: Checkpoint, *, out: Path, view: RunView, computing: Computing) -> dict[str, Any]:
    began = time.perf_counter() - float(start.extra["seconds"])
    bundle = bench.prepared.bundle
    operator, keys = new_key(), {name: new_key() for name in bench.data}
    ledgers = LedgerFile(out / "ledgers.jsonl", end=int(start.extra["ledgers_end"]))
    clock = None if computing.engine is Engine.RAY else SimulatedClock(float(int(time.time())))
    behaviour = Behaviour.of(bundle.config, bench.data, keys=keys, operator=operator.public_key(), clock=clock)
    population = Population.build(
        bench.prepared,
        bench.data,
        operator=operator.public_key(),
        watcher=Watcher(caching=view.caching, note=view.note),
        inputs=bench.inputs,
        entries=ledgers.entries,
        keys=keys,
        behaviour=behaviour,
    )
    engine = cohort_of(bench, computing, known=start.extra["cohort"], note=view.note)
    with serving(bench, population, computing, engine, operator=operator, keys=keys, note=view.note) as served:
        grid, nodes, books = served
        carrier = behaviour.around(grid, nodes)

        def extra() -> dict[str, Any]:
            if isinstance(carrier, Unreliable):
                carrier.let_work()  # who was late has spent what a resumed run must know of
            return {
                **start.extra,
                "seconds": time.perf_counter() - began,
                "ledgers_end": ledgers.add(books.exports),
                "computing": computing.remembered,
                "cohort": {"sites": engine.sites, "tokens": engine.tokens},
            }

        coordinator = Coordinator(
            bundle=bundle,
            key=operator,
            sites={node: EnrolledSite(name=name, key=population.keys[name]) for node, name in nodes.items()},
            evaluator=bench.evaluator,
            observer=view,
            checkpoints=Checkpoints(out / "checkpoints"),
            log=RoundLog(out / "rounds.jsonl"),
            heads=dict(start.heads),
            missed=dict(start.missed),
            units=dict(start.units),
            extra=extra,
            spent=lambda: max(_epsilons(books, bundle).values()),
            clock=behaviour.now,
            sleep=behaviour.sleep,
            stopping=lambda: grid.ended,
        )
        view.started(config=bundle.config, sites=population.nominal_units, records=population.records, out=out)
        state = _drive(coordinator, carrier, start.state)
        epsilons = _epsilons(books, bundle)
    return _finish(bench, state, epsilons, out=out, seconds=lambda: time.perf_counter() - began)


@contextmanager
def serving(
    bench: Workbench,
    population: Population,
    computing: Computing,
    engine: Cohort,
    *,
    operator: Ed25519PrivateKey,
    keys: Mapping[str, Ed25519PrivateKey],
    note: Callable[[str], None],
) -> Iterator[tuple[RaySites | InProcessGrid, Mapping[int, str], RaySites | Population]]:
    """The Grid that reaches the sites, the site at each of its nodes, and who has their ledgers."""
    if computing.engine is not Engine.RAY:
        goal = bench.prepared.bundle.config.rounds.goal
        together = computing.engine is Engine.COHORT
        doors = CohortDoors(sites=population.sites, engine=engine, goal=goal) if together else None
        door_of = doors.door_of if doors else population.sites.__getitem__
        nodes = node_ids(population.sites)
        yield InProcessGrid(client_app(door_of), nodes, ahead=doors), nodes, population
        return
    with computing.started() as ready:  # first of all: Ray looks at its settings as it is imported
        from fedward_simulations.ray.engine import RaySites
        from fedward_simulations.ray.sites import Description

        told = Description.of(bench.prepared.bundle, bench.data, operator=operator.public_key(), keys=keys)
        entries = {name: export(0) for name, export in population.exports.items()}
        with RaySites.open(told, room=ready.room or {}, note=note, entries=entries) as sites:
            try:
                yield sites, sites.nodes, sites
            except RunStopped:
                hint = "look at Ray's logs, or leave --engine out; `fedward-sim run --resume` goes on"
                raise InputError("Flower's engine on Ray ended", hint=hint) from None


def _epsilons(books: RaySites | Population, bundle: Bundle) -> dict[str, float]:
    return books.epsilon_by_site(bundle.run_id, delta=bundle.config.privacy.delta)


def cohort_of(
    bench: Workbench,
    computing: Computing,
    *,
    known: Mapping[str, int] = MappingProxyType({}),
    note: Callable[[str], None],
) -> Cohort:
    """The cohort engine of a run, of the sizes that its checkpoint knows: the same sizes give the same bits."""
    share = 1 / computing.processes
    fits = sites_that_fit(bench.prepared.bundle.spec.size, bench.prepared.model.device, share=share)
    if computing.clients > fits:
        note(f"{computing.clients} clients at a time are too many for this machine: {fits} are computed together")
    sites = min(known.get("sites") or fits, computing.clients or fits)
    return Cohort(note=note, precision=computing.precision, sites=sites, tokens=known.get("tokens", 0), share=share)


def _drive(coordinator: Coordinator, grid: Carrier, state: State) -> State:
    finished: list[State] = []
    grid.drive(server_app(coordinator, state, done=finished.append))
    return finished[0]


def _finish(
    bench: Workbench, state: State, epsilons: Mapping[str, float], *, out: Path, seconds: Callable[[], float]
) -> dict[str, Any]:
    bundle, config = bench.prepared.bundle, bench.prepared.bundle.config
    metrics = bench.evaluator.final(state.adapter)
    rounds = load_rounds(out)
    summary = {
        "version": 1,
        "name": config.name,
        "accuracy": metrics.accuracy,
        "macro_f1": metrics.macro_f1,
        "majority_accuracy": metrics.majority_accuracy,
        "epsilon": max(epsilons.values()),
        "delta": config.privacy.delta,
        "unit": config.privacy.unit.value,
        "rounds": state.finished,
        "sites": len(bench.data),
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "fedavg_bytes_per_site_round": fedavg_bytes(bundle),
        "seconds": round(seconds(), 1),
        "adapter_digest": state.adapter.digest,
        "base_fingerprint": bench.prepared.base.fingerprint,
        "seed": config.seed,
        "run_id": bundle.run_id,
        "waivers": [SEEDED_RANDOMNESS],
        "peak_bytes": peak_bytes(),
        "epsilon_by_site": dict(epsilons),
        "out": str(out),
    }
    export_adapter(out / "adapter", state.adapter, bundle=bundle, summary=summary)
    write_summary(out, summary)
    draw_plots(out)
    return summary


def fedavg_bytes(bundle: Bundle) -> int:
    """What plain FedAvg of A, B and head would send to a site, and again from it, in each round, in float32."""
    spec = bundle.spec
    head = sum(math.prod(spec.tensors[name]) for name in spec.groups["head"])
    factors = sum(value.size for value in bundle.frozen.values())
    trained = spec.size - head
    return 4 * (head + factors + (0 if spec.method == "core" else trained))
