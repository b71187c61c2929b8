"""Small nouns without torch: a spec, adapters, terms, a plan, an update; what codec and server tests are about.

Example:
    update = update_for(plan_of_spec(), vector=[1.0, 0.0, 0.0, 0.0, 0.0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.config import LocalOptimiser, Weights
from fedward_common.privacy.events import GaussianSum, Side
from fedward_common.privacy.guarantee import Guarantee, MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.round import RoundPlan, Training, Update

SPEC = AdapterSpec(
    base_fingerprint="ab" * 32,
    method="lora",
    rank=1,
    alpha=2.0,
    target_modules=("query",),
    groups={"head": ("head.bias", "head.weight"), "adapter": ("layer.lora_B",)},
    tensors={"head.weight": (2, 2), "head.bias": (2,), "layer.lora_B": (3, 1)},
)
HEAD = SPEC.subset(("head",))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TERMS = PrivacyTerms(
    epsilon=8.0,
    delta=1e-5,
    unit=Unit.RECORD,
    clip_norm=1.0,
    max_records_per_unit=1,
    stages=(
        StageTerms(name="head", sampling_rate=0.5, rounds=2, local_steps=1, noise_ratio=1.0),
        StageTerms(name="adapter", sampling_rate=0.1, rounds=3, local_steps=2, noise_ratio=0.3),
    ),
    metrics=MetricTerms(evaluations=1, share=1.0, validation_fraction=0.05),
)
TRAINING = Training(groups=("head",), local_steps=1, optimiser=LocalOptimiser.SGD, learning_rate=0.5)
GUARANTEE = Guarantee(
    unit=Unit.RECORD,
    delta=1e-5,
    events=(GaussianSum(side=Side.TRAINING, sampling_rate=0.5, noise_multiplier=2.0, count=2),),
    waivers=(),
)


def adapter_of(values: Sequence[float], spec: AdapterSpec = SPEC) -> Adapter:
    """The adapter with these numbers, in canonical order."""
    return Adapter(spec=spec, vector=np.array(values, np.float32))


START = adapter_of([0.5, -0.5, 1.0, 2.0, 3.0, 4.0, 0.25, 0.0, -0.0])


def plan_from(start: Adapter = START, **changes: Any) -> RoundPlan:
    """The first plan of a run, with fields replaced."""
    plan = RoundPlan(
        run_id="cd" * 32,
        round=1,
        stage=0,
        spec_digest=start.spec.digest,
        adapter_digest=start.digest,
        terms=TERMS,
        training=TRAINING,
        evaluate=False,
        public_seed=3,
        weights=Weights.NOMINAL,
        expires_at=1e9,
    )
    return replace(plan, **changes)


def update_for(plan: RoundPlan, values: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), **changes: Any) -> Update:
    """A head's update that answers ``plan``, with fields replaced."""
    update = Update(plan_id=plan.plan_id, delta=adapter_of(values, HEAD), guarantee=GUARANTEE, nominal_units=10)
    return replace(update, **changes)
