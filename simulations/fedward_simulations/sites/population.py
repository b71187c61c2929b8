"""Virtual sites: each with its own data, keys, policy, ledger and gate, on one shared, resident model.

A virtual site is a real :class:`~fedward_client.round.Site`. Two things differ from a hospital's: its randomness is
seeded (a named waiver, written into every guarantee), and its declared numbers are derived from the data it was dealt.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_client.books.audit import AuditLine, Kind
from fedward_client.data import Records, SiteData, nominal, split_validation
from fedward_client.policy import SEEDED_RANDOMNESS, SitePolicy
from fedward_client.release import Gate
from fedward_client.round import Replies, Site
from fedward_client.trainers import FixedTrainer
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.codec import new_key
from fedward_common.config import RunConfig
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.randomness import SeededRandom
from fedward_simulations.prepare import Prepared
from fedward_simulations.sites.behaviour import Behaviour
from fedward_simulations.sites.ledgers import Export
from fedward_simulations.sites.spool import Spool

__all__ = ["Population", "Watcher", "site_data"]

MAX_UPDATE_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """What the simulator shows of its virtual sites: caching progress, and true reasons of refusals."""

    caching: Callable[[str, int, int], None]
    note: Callable[[str], None]


def site_data(records: Records, *, config: RunConfig) -> SiteData:
    """A virtual site's data: nominal units declared, validation units split off by a keyed hash."""
    key = hashlib.sha256(b"fedward simulated unit key").digest()  # never of the seed: a unit keeps its side for life
    fraction = config.privacy.validation_fraction
    return SiteData(
        records=records,
        nominal_units=nominal(records.unit_count),
        validation=split_validation(records.unit_ids, key=key, fraction=fraction),
    )


def _records(held: SiteData, *, config: RunConfig) -> int:
    sizes = held.records_per_unit[held.training_units]
    return int(np.minimum(sizes, config.privacy.max_records_per_unit).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """All virtual sites of a run, by name. ``records``: what a pass over all training units of a site reads."""

    sites: Mapping[str, Site]
    keys: Mapping[str, Ed25519PublicKey]
    ledgers: Mapping[str, Ledger]
    nominal_units: Mapping[str, int]
    records: Mapping[str, int]

    @classmethod
    def build(
        cls,
        prepared: Prepared,
        data: Mapping[str, SiteData],
        *,
        operator: Ed25519PublicKey,
        watcher: Watcher,
        inputs: Mapping[str, SiteInputs],
        entries: Mapping[str, list[dict[str, Any]]] | None = None,
        keys: Mapping[str, Ed25519PrivateKey] | None = None,
        behaviour: Behaviour | None = None,
        outbox: Callable[[str], Replies] | None = None,
    ) -> Population:
        """Set every site up.

        Args:
          prepared: bundle and shared model.
          data: each site's data.
          operator: the key that plans will be signed with.
          watcher: receives progress and reasons.
          inputs: each site's token ids and feature cache.
          entries: ledger entries of a checkpoint, to go on from.
          keys: signing keys by site; fresh ones otherwise.
          behaviour: what each site allows and has spent before, and its clock; every site is willing without.
          outbox: of a site; without, all keep their newest replies in one file that has no name.
        """
        config = prepared.bundle.config
        budget = Budget(epsilon=config.privacy.epsilon, delta=config.privacy.delta)
        past = entries or {}
        ledgers = {name: Ledger.restore(past.get(name, []), budget=budget) for name in data}
        keys = keys or {name: new_key() for name in data}
        if behaviour:
            behaviour.burden(ledgers)
        policy = _policy(prepared)
        sites, outbox_of = {}, outbox or Spool().outbox
        for name, held in data.items():
            randomness = SeededRandom(seed=config.seed, site=name)
            sites[name] = Site(
                policy=behaviour.policy(name, policy) if behaviour else policy,
                operator=operator,
                ledger=ledgers[name],
                trainers=FixedTrainer(
                    trainer=LocalTrainer(
                        model=prepared.model,
                        data=held,
                        inputs=inputs[name],
                        randomness=randomness,
                        progress=partial(watcher.caching, name),
                    )
                ),
                gate=Gate(
                    key=keys[name],
                    nominal_units=held.nominal_units,
                    max_update_bytes=policy.max_update_bytes,
                    ledger=ledgers[name],
                ),
                outbox=outbox_of(name),
                audit=_Noted(site=name, watcher=watcher),
                clock=behaviour.now if behaviour else time.time,
            )
        return cls(
            sites=sites,
            keys={name: key.public_key() for name, key in keys.items()},
            ledgers=ledgers,
            nominal_units={name: held.nominal_units for name, held in data.items()},
            records={name: _records(held, config=config) for name, held in data.items()},
        )

    @property
    def exports(self) -> dict[str, Export]:
        """Every site's ledger entries as JSON, from a number on."""
        return {name: ledger.export for name, ledger in self.ledgers.items()}

    def epsilon_by_site(self, run_id: str, *, delta: float) -> dict[str, float]:
        """What the run cost at each site, computed from its ledger's events."""
        return {name: ledger.spent(run_id, delta=delta) for name, ledger in self.ledgers.items()}


@dataclass(frozen=True, kw_only=True)
class _Noted:
    """An audit trail that shows the true reason of a refusal, and keeps nothing: no data here is a real site's."""

    site: str
    watcher: Watcher

    def write(self, line: AuditLine) -> None:
        if line.kind is Kind.REFUSAL:
            self.watcher.note(f"{self.site} refused: {line.code}: {line.reason}")

    def check_usable(self) -> None:
        pass


def _policy(prepared: Prepared) -> SitePolicy:
    # a virtual site's admin allows exactly what the run file asks for, and waives real randomness by name
    config = prepared.bundle.config
    return SitePolicy(
        unit=config.privacy.unit,
        base_fingerprints=frozenset({prepared.base.fingerprint}),
        target_modules=frozenset(config.adapter.target_modules),
        max_rank=config.adapter.rank,
        max_epsilon=config.privacy.epsilon,
        max_delta=config.privacy.delta,
        max_clip_norm=config.privacy.clip_norm,
        max_steps=sum(stage.rounds * stage.local_steps for stage in config.stages),
        max_records_per_unit=config.privacy.max_records_per_unit,
        max_update_bytes=MAX_UPDATE_BYTES,
        minimum_units=config.partition.minimum_units,
        waivers=frozenset({SEEDED_RANDOMNESS}),
    )
