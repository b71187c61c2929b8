"""Which updates count, and why not. Whatever a site sends, the worst it can do is not to count.

Every refusal of the coordinator has a typed reason; a run goes on. Weights are equal, or proportional to a number that
the site itself declares: then its weight is its own word. That number is capped, and is the same in all rounds of a
run; whether it is true is not found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from enum import StrEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedward_common.adapter import AdapterSpec
from fedward_common.codec import decode_reply
from fedward_common.config import Weights
from fedward_common.errors import BadSignature, MalformedMessage, NonFiniteUpdate, SpecMismatch
from fedward_common.round import NO_PLAN, Refusal, RoundPlan, Update

__all__ = ["Admission", "Drop", "weight_of"]

MAX_NOMINAL_UNITS = 100_000_000
MAX_METRIC = 1e12  # above any noisy sum over so many units; sums of a whole cohort's stay finite


class Drop(StrEnum):
    """Why an answer does not count."""

    UNKNOWN_SITE = "unknown_site"  # no key is enrolled for the node
    BAD_SIGNATURE = "bad_signature"  # not signed by that site's key
    MALFORMED = "malformed"  # not canonical bytes
    SPEC_MISMATCH = "spec_mismatch"  # tensors other than asked for
    WRONG_PLAN = "wrong_plan"  # an answer to another plan
    OTHER_GUARANTEE = "other_guarantee"  # of another unit or delta than the plan's terms
    DUPLICATE = "duplicate"  # the site was already counted in this round
    NOT_FINITE = "not_finite"  # NaN or infinity in tensors or metrics
    OTHER_UNITS = "other_units"  # declares another number of units than in its first counted update of the run
    TOO_LARGE = "too_large"  # norm, metrics or declared units beyond the limits
    NO_ANSWER = "no_answer"  # an error from the transport, or silence until the deadline
    LATE = "late"  # after the deadline
    NOT_NEEDED = "not_needed"  # the round had as many updates as it wanted before this site answered


@dataclass(kw_only=True)
class Admission:
    """The doorkeeper of one round. It remembers who was counted, nothing of what was sent.

    ``declared`` is the number of units that each site declared before, by name, where weights follow from it.
    """

    plan: RoundPlan
    spec: AdapterSpec
    max_norm: float
    declared: Mapping[str, int] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def admit(self, site: str, data: bytes, *, key: Ed25519PublicKey | None) -> Update | Refusal | Drop:
        """Judge one answer.

        Args:
          site: who the transport says it is from.
          data: the signed bytes.
          key: the site's enrolled key, or None.

        Returns:
          An update to fold, a refusal to count, or the reason why it is dropped.
        """
        if key is None:
            return Drop.UNKNOWN_SITE
        if site in self.counted:
            return Drop.DUPLICATE
        try:
            reply = decode_reply(data, public_key=key, spec=self.spec)
        except BadSignature:
            return Drop.BAD_SIGNATURE
        except SpecMismatch:
            return Drop.SPEC_MISMATCH
        except MalformedMessage:
            return Drop.MALFORMED
        verdict = self._judge_refusal(reply) if isinstance(reply, Refusal) else self._judge(reply, of=site)
        if not isinstance(verdict, Drop):
            self.counted.add(site)
        return verdict

    def _judge_refusal(self, refusal: Refusal) -> Refusal | Drop:
        # a site that could read no plan names none
        return refusal if refusal.plan_id in (self.plan.plan_id, NO_PLAN) else Drop.WRONG_PLAN

    def _judge(self, update: Update, *, of: str) -> Update | Drop:
        if update.plan_id != self.plan.plan_id:
            return Drop.WRONG_PLAN
        if (update.guarantee.unit, update.guarantee.delta) != (self.plan.terms.unit, self.plan.terms.delta):
            return Drop.OTHER_GUARANTEE
        try:
            update.delta.check_finite()
        except NonFiniteUpdate:
            return Drop.NOT_FINITE
        if update.metrics is not None and not np.isfinite(astuple(update.metrics)).all():
            return Drop.NOT_FINITE
        if (update.metrics is not None) != self.plan.evaluate:
            return Drop.MALFORMED
        if update.metrics is not None and np.abs(astuple(update.metrics)).max() > MAX_METRIC:
            return Drop.TOO_LARGE
        if update.delta.l2_norm() > self.max_norm or update.nominal_units > MAX_NOMINAL_UNITS:
            return Drop.TOO_LARGE
        if update.nominal_units != self.declared.get(of, update.nominal_units):
            return Drop.OTHER_UNITS
        return update


def weight_of(update: Update, weights: Weights) -> float:
    """What an admitted update counts: one, or its declared number of units."""
    return 1.0 if weights is Weights.EQUAL else float(update.nominal_units)
