"""A small federation on the tiny base: real sites, real keys, real messages, a second a run.

Example:
    bench = small_bench(tmp_path)
    reply = site_of(bench).answer(plan_bytes(bench, key))
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.data import Records
from fedward_client.round import Site
from fedward_common.codec import encode_plan, key_fingerprint
from fedward_common.config import DataConfig, RunConfig
from fedward_common.round import RoundPlan
from fedward_server.loop import plan_for
from fedward_server.state import State
from fedward_simulations.dealing.sources import Source
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import Population, Watcher
from support.tiny import WORDS, tiny_base

LABELS = ("lung", "skin", "bone")
KEYS = {f"site-{n}": Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 100)}
SILENT = Watcher(caching=lambda site, done, total: None, note=lambda text: None)
STAGES: list[dict[str, Any]] = [
    {"name": "head", "train": ["head"], "rounds": 2, "evaluate_every": 2},
    {"name": "adapter", "train": ["adapter"], "rounds": 2, "sampling_rate": 0.5, "noise_ratio": 0.5},
]


def some_records(units: int, *, seed: int = 0, per_unit: int = 1) -> Records:
    """``units`` units of 1 to ``per_unit`` short texts, with labels that the words tell apart."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, per_unit + 1, units)
    owners = np.repeat(np.arange(units), sizes)
    labels = generator.integers(0, len(LABELS), len(owners))
    texts = tuple((" ".join([WORDS[l], *generator.choice(WORDS, generator.integers(1, 9))]),) for l in labels)  # noqa: E741
    return Records(
        texts=texts,
        labels=labels.astype(np.int64),
        units=owners.astype(np.int64),
        unit_ids=tuple(f"unit-{seed}-{number}" for number in range(units)),
        sites=None,
    )


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """A run of four rounds on the tiny base; ``changes`` replace whole tables."""
    table: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "seed": 3,
        "model": tiny_base(folder / "base").model_dump(),
        "task": {"labels": LABELS},
        "adapter": {"rank": 4, "alpha": 16.0},
        "data": DataConfig(train="memory").model_dump(),
        "partition": {"minimum_units": 5, "sites": 2},
        "privacy": {"validation_fraction": 0.2, "delta": 1e-3},
        "stages": STAGES,
    }
    return RunConfig.model_validate({**table, **changes})


def small_bench(folder: Path, *, sites: int = 2, units: int = 30, per_unit: int = 1, **changes: Any) -> Workbench:
    """A workbench of ``sites`` virtual sites with records made up for them."""
    config = small_config(folder, **changes)
    held = {f"site-{n}": some_records(units, seed=n, per_unit=per_unit) for n in range(1, sites + 1)}
    return Workbench.open(config, Source(sites=held, test=some_records(40, seed=99), digest="0" * 64))


def in_pairs(bench: Workbench) -> Workbench:
    """The same records with a second text beside each: that of the record before it."""

    def paired(records: Records) -> Records:
        others = (records.texts[-1], *records.texts)
        return replace(records, texts=tuple((*own, *other) for own, other in zip(records.texts, others, strict=False)))

    source = bench.source
    sites = {name: paired(records) for name, records in source.sites.items()}
    return Workbench.open(bench.prepared.bundle.config, replace(source, sites=sites, test=paired(source.test)))


def population_of(bench: Workbench, operator: Ed25519PrivateKey, *, watcher: Watcher = SILENT) -> Population:
    """The bench's virtual sites, enrolled with ``operator``."""
    return Population.build(
        bench.prepared,
        bench.data,
        operator=operator.public_key(),
        watcher=watcher,
        inputs=bench.inputs,
        keys={name: KEYS[name] for name in bench.data},
    )


def site_of(population: Population, name: str = "site-1") -> Site:
    """One virtual site."""
    return population.sites[name]


def plan_of(bench: Workbench, *, round: int = 1, to: str = "site-1", **changes: Any) -> RoundPlan:
    """The plan of a round that starts from the initial adapter, addressed to a site, with fields replaced."""
    bundle = bench.prepared.bundle
    state = replace(State.initial(bundle.initial), finished=round - 1)
    plan = plan_for(bundle, state, expires_at=time.time() + 3600)
    return replace(plan.addressed_to(key_fingerprint(KEYS[to].public_key())), **changes)


def plan_bytes(
    bench: Workbench, operator: Ed25519PrivateKey, *, round: int = 1, to: str = "site-1", **changes: Any
) -> bytes:
    """``plan_of``, signed, with the initial adapter."""
    return encode_plan(plan_of(bench, round=round, to=to, **changes), bench.prepared.bundle.initial, key=operator)
