"""The nouns of one round: the plan that goes out, the update or refusal that comes back, the sum, and the record.

Frozen and keyword-only. Nothing here trains, sends or stores; nothing here knows Flower or torch.

Example:
    >>> Refusal(plan_id="0" * 64, code=Code.UNAVAILABLE).code.value
    'unavailable'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.checks import at_least, hex_digest, positive
from fedward_common.config import LocalOptimiser, Weights
from fedward_common.errors import SpecMismatch
from fedward_common.privacy.guarantee import Guarantee, PrivacyTerms
from fedward_common.privacy.mechanism import MetricSums

__all__ = [
    "NO_PLAN",
    "Aggregate",
    "Code",
    "Fold",
    "Refusal",
    "Reply",
    "RoundPlan",
    "RoundRecord",
    "Training",
    "Update",
]


NO_PLAN = "0" * 64  # the plan id of a refusal to bytes in which no plan could be read


class Code(StrEnum):
    """Why a site says no. Closed: all but the last depend on plan and policy alone, never on data."""

    BAD_SIGNATURE = "bad_signature"  # not signed, for this site, by the operator that it enrolled with
    SPEC_MISMATCH = "spec_mismatch"  # malformed, or tensors other than the announced ones
    TERMS_NOT_ALLOWED = "terms_not_allowed"  # the site's policy is stricter than the plan
    EXPIRED = "expired"  # the plan's time is over
    UNKNOWN_MODEL = "unknown_model"  # the site does not have, or does not allow, this base model
    UNAVAILABLE = "unavailable"  # everything that depends on data, ledger or machine


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a site trains in one round. What cannot affect privacy lives here, apart from the terms."""

    groups: tuple[str, ...]
    local_steps: int
    optimiser: LocalOptimiser
    learning_rate: float

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least("local_steps", self.local_steps, 1)
        positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What the coordinator asks of a site in one round; signed by the operator.

    ``round`` counts from 1 over the whole run; ``stage`` is an index into ``terms.stages``. ``evaluate`` asks for one
    noisy evaluation of the received adapter. There is no sigma in it: the site finds its own from the terms.

    ``site`` and ``ledger_head`` differ from site to site: the fingerprint of the key of the site that is asked, and the
    last ledger head that the coordinator has from it. ``states_min_sites`` is what the coordinator says about how many
    sites must answer; it is signed evidence, and no privacy rests on it.
    """

    run_id: str
    round: int
    stage: int
    spec_digest: str
    adapter_digest: str
    terms: PrivacyTerms
    training: Training
    evaluate: bool
    public_seed: int
    weights: Weights
    expires_at: float
    states_min_sites: int = 1
    site: str = ""
    ledger_head: str = ""

    def __post_init__(self) -> None:
        """Check ranges and that the stage exists and agrees with the training."""
        at_least("round", self.round, 1)
        at_least("states_min_sites", self.states_min_sites, 1)
        hex_digest("run_id", self.run_id)
        hex_digest("spec_digest", self.spec_digest)
        hex_digest("adapter_digest", self.adapter_digest)
        if self.ledger_head:
            hex_digest("ledger_head", self.ledger_head)
        if not 0 <= self.stage < len(self.terms.stages):
            raise SpecMismatch("the plan names a stage that its terms lack", hint="stages count from 0")
        if self.terms.stages[self.stage].local_steps != self.training.local_steps:
            raise SpecMismatch("the plan's training and terms disagree on local steps", hint="prepare the run again")

    @cached_property
    def plan_id(self) -> str:
        """Digest of what a site would do: not of attempt, cohort, expiry, addressee or heads.

        A site that has served a plan id sends the stored bytes again, so a retry can never buy a second look at data.
        """
        content = {
            "adapter_digest": self.adapter_digest,
            "evaluate": self.evaluate,
            "public_seed": self.public_seed,
            "round": self.round,
            "run_id": self.run_id,
            "spec_digest": self.spec_digest,
            "stage": self.stage,
            "terms": self.terms.to_json(),
            "training": {
                "groups": self.training.groups,
                # as after a trip over the wire: an integer that stands for a float must not change the id
                "learning_rate": float(self.training.learning_rate),
                "local_steps": self.training.local_steps,
                "optimiser": self.training.optimiser,
            },
            "weights": self.weights,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def addressed_to(self, site: str, *, ledger_head: str = "") -> RoundPlan:
        """The same plan for one site: its key's fingerprint, and the last head that the coordinator has from it."""
        return replace(self, site=site, ledger_head=ledger_head)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a site answers; signed by its trainer. ``delta`` is local minus global over the trained groups."""

    plan_id: str
    delta: Adapter
    guarantee: Guarantee
    nominal_units: int
    metrics: MetricSums | None = None
    ledger_head: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        hex_digest("plan_id", self.plan_id)
        at_least("nominal_units", self.nominal_units, 1)
        if self.ledger_head:  # the coordinator keeps it, signs it back and shows it to others: no words in it
            hex_digest("ledger_head", self.ledger_head)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A site's normal, typed no. The true reason stays in the site's audit log."""

    plan_id: str
    code: Code


Reply = Update | Refusal


@dataclass(frozen=True, kw_only=True, eq=False)
class Aggregate:
    """A weighted sum of deltas: a monoid, so updates are folded as they arrive and never kept.

    Guarantees:
      - ``empty(spec)`` is neutral and ``+`` is associative up to float64 rounding.
      - Memory is one float64 vector, whatever the number of updates.
    """

    spec: AdapterSpec
    total: NDArray[np.float64]
    weight: float = 0.0
    count: int = 0
    metrics: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    evaluated: int = 0

    @classmethod
    def empty(cls, spec: AdapterSpec) -> Aggregate:
        """The neutral element."""
        return cls(spec=spec, total=np.zeros(spec.size))

    @classmethod
    def of(cls, update: Update, *, weight: float) -> Aggregate:
        """One update at a weight that the coordinator has checked."""
        positive("weight", weight)
        return cls(
            spec=update.delta.spec,
            total=update.delta.vector.astype(np.float64) * weight,
            weight=weight,
            count=1,
            metrics=_vector(update.metrics) if update.metrics else np.zeros(3),
            evaluated=int(update.metrics is not None),
        )

    def __add__(self, other: Aggregate) -> Aggregate:
        """Fold two sums.

        Raises:
          SpecMismatch: they are of unlike specs.
        """
        if self.spec.digest != other.spec.digest:
            raise SpecMismatch("two aggregates of unlike specs do not add", hint="compare both spec digests")
        return Aggregate(
            spec=self.spec,
            total=self.total + other.total,
            weight=self.weight + other.weight,
            count=self.count + other.count,
            metrics=self.metrics + other.metrics,
            evaluated=self.evaluated + other.evaluated,
        )

    def mean(self) -> Adapter:
        """The weighted mean delta; zero where nothing was folded."""
        mean = np.empty(self.spec.size, np.float32)
        np.divide(self.total, max(self.weight, 1e-300), out=mean, casting="same_kind")  # no second float64 vector
        return Adapter(spec=self.spec, vector=mean)

    def site_metrics(self) -> dict[str, float] | None:
        """Accuracy and loss over all sites' validation units, from noisy sums; None where no site evaluated.

        All from noisy sums: accuracy is cut to [0, 1], loss (nats, capped at log(classes) a unit) to at least 0.
        """
        if not self.evaluated:
            return None
        correct, _, loss = self.metrics / max(float(self.metrics[1]), 1.0)
        return {
            "accuracy": float(np.clip(correct, 0.0, 1.0)),
            "loss": float(max(loss, 0.0)),
            "units": float(self.metrics[1]),
            "sites": float(self.evaluated),
        }


class Fold:
    """An aggregate while it grows. It owns its vector, so that an update is added in place.

    Guarantees:
      - The result is, to the bit, the sum of ``Aggregate.of`` over the same updates in the same order.
      - Adding an update takes no memory that grows with its size.
      - What was handed over no longer changes.

    Example:
        >>> spec = AdapterSpec(base_fingerprint="0" * 64, method="lora", rank=1, alpha=1.0, target_modules=("q",),
        ...                    groups={"head": ("head.bias",)}, tensors={"head.bias": (2,)})
        >>> fold = Fold(spec)
        >>> fold.count, fold.aggregate().weight
        (0, 0.0)
    """

    def __init__(self, spec: AdapterSpec) -> None:
        """Begin with the neutral element."""
        self._sum = Aggregate.empty(spec)

    @property
    def count(self) -> int:
        """Updates folded so far."""
        return self._sum.count

    def add(self, update: Update, *, weight: float) -> None:
        """Add one update at a weight that the coordinator has checked.

        Raises:
          SpecMismatch: the update is over other tensors.
        """
        positive("weight", weight)
        total, spec = self._sum.total, self._sum.spec
        if update.delta.spec.digest != spec.digest:
            raise SpecMismatch("an update of another spec does not add", hint="compare both spec digests")
        for part in spec.blocks():
            total[part] += update.delta.vector[part].astype(np.float64) * weight
        self._sum = replace(
            self._sum,
            weight=self._sum.weight + weight,
            count=self._sum.count + 1,
            metrics=self._sum.metrics + (_vector(update.metrics) if update.metrics else 0.0),
            evaluated=self._sum.evaluated + int(update.metrics is not None),
        )

    def aggregate(self) -> Aggregate:
        """Hand the sum over and freeze it: another ``add`` would change what was handed over, and fails."""
        self._sum.total.setflags(write=False)
        return self._sum


def _vector(metrics: MetricSums) -> NDArray[np.float64]:
    return np.array([metrics.correct, metrics.units, metrics.loss])


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What one attempt at a round did: one line of rounds.jsonl.

    ``refused`` and ``dropped`` count sites by code and by the coordinator's reason. ``evaluation`` comes from the
    coordinator's own data, outside every guarantee; ``sites`` from noisy sums, inside it. ``set_aside`` names the sites
    that kept failing and are asked but rarely from here on.
    """

    round: int
    stage: str
    attempt: int
    cohort: int
    replied: int
    refused: Mapping[str, int]
    dropped: Mapping[str, int]
    bytes_down: int
    bytes_up: int
    seconds: float
    update_norm: float
    adapter_digest: str
    abandoned: bool = False
    evaluation: Mapping[str, float] | None = None
    sites: Mapping[str, float] | None = None
    epsilon: float | None = None
    set_aside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """A list, as JSON has it, becomes a tuple."""
        object.__setattr__(self, "set_aside", tuple(self.set_aside))
