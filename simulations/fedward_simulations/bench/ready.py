"""A real site whose trainer answers at once, for what is measured around training.

Everything but the training step is fedward's own: signature, codec, policy, ledger, gate. The trainer returns a
ready delta and ready metrics, whatever the plan asks it to train.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.books.audit import AuditLine, Kind
from fedward_client.installation.shelf import Books
from fedward_client.policy import SitePolicy
from fedward_client.release import Gate
from fedward_client.round import MemoryOutbox, Site
from fedward_client.trainers import FixedTrainer
from fedward_client.training import LocalTrainer
from fedward_common.adapter import Adapter
from fedward_common.codec import encode_plan, key_fingerprint, new_key
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import MetricSums, PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import SecureRandom
from fedward_common.round import RoundPlan, Training
from fedward_server.bundle import Bundle
from fedward_server.loop import plan_for
from fedward_server.state import State

__all__ = ["ReadySite"]

UNITS = 100  # few enough for any delta below 1 / 100
HOUR = 3600.0


class _ReadyTrainer:
    """Stands where a ``LocalTrainer`` stands."""

    def __init__(self, adapter: Adapter) -> None:
        self.spec_digest = adapter.spec.digest
        self.loss_cap = 1.0
        self.randomness = SecureRandom()
        self.data = SimpleNamespace(nominal_units=UNITS, records=SimpleNamespace(unit_count=UNITS))
        self._noise = np.random.default_rng(0).normal(0, 1e-3, adapter.spec.size).astype(np.float32)
        self._whole = Adapter(spec=adapter.spec, vector=self._noise)
        self._parts: dict[tuple[str, ...], Adapter] = {}

    def train(self, round: int, adapter: Adapter, training: Training, mechanism: PrivateSum) -> Adapter:
        if training.groups not in self._parts:
            self._parts[training.groups] = self._whole.subset(training.groups)
        return self._parts[training.groups]

    def evaluate(self, round: int, adapter: Adapter, metric: PrivateMetric, *, cap: PrivateSum) -> MetricSums:
        return MetricSums(correct=30.123456789, units=50.123456789, loss=40.123456789)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadySite:
    """A site, the operator that it trusts, and the key that it signs with."""

    bundle: Bundle
    operator: Ed25519PrivateKey
    key: Ed25519PrivateKey
    site: Site

    @classmethod
    def build(cls, bundle: Bundle, *, books: Books | None = None, key: Ed25519PrivateKey | None = None) -> ReadySite:
        """A site that allows exactly what the run file asks for; its books are in memory unless some are given."""
        privacy, operator, key = bundle.config.privacy, new_key(), key or new_key()
        policy = SitePolicy(
            unit=privacy.unit,
            base_fingerprints=frozenset({bundle.spec.base_fingerprint}),
            target_modules=frozenset(bundle.spec.target_modules),
            max_epsilon=privacy.epsilon,
            max_delta=privacy.delta,
        )
        trainer: Any = _ReadyTrainer(bundle.initial)
        ledger = books.ledger if books else Ledger.in_memory(Budget(epsilon=privacy.epsilon, delta=privacy.delta))
        site = Site(
            policy=policy,
            operator=operator.public_key(),
            ledger=ledger,
            trainers=FixedTrainer(trainer=cast(LocalTrainer, trainer)),
            gate=Gate(key=key, nominal_units=UNITS, max_update_bytes=policy.max_update_bytes, ledger=ledger),
            outbox=books.outbox if books else MemoryOutbox(),
            audit=books.audit if books else _Complaint(),
        )
        return cls(bundle=bundle, operator=operator, key=key, site=site)

    def plan(self, state: State) -> RoundPlan:
        """The plan of the round after ``state``."""
        return plan_for(self.bundle, state, expires_at=time.time() + HOUR)

    def signed(self, plan: RoundPlan, state: State) -> bytes:
        """The bytes that go down."""
        own = plan.addressed_to(key_fingerprint(self.key.public_key()))
        return encode_plan(own, state.adapter, key=self.operator)


class _Complaint:
    """An audit trail that ends the bench at the first refusal."""

    def write(self, line: AuditLine) -> None:
        if line.kind is Kind.REFUSAL:
            raise RuntimeError(f"the bench's site refused: {line.reason}")

    def check_usable(self) -> None:
        pass
