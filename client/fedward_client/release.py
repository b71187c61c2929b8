"""The gate: the only module whose output leaves a site.

Four things pass: tensors of the agreed spec that a ``PrivateSum`` made, metrics that a ``PrivateMetric`` made, public
metadata (plan id, the guarantee, the declared nominal units, the ledger's head), and codes of a closed enum. The gate
takes typed values and signs them; it has no argument through which a count, a loss, a text or an exception could pass.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.codec import encode_reply, key_fingerprint
from fedward_common.errors import SpecMismatch
from fedward_common.privacy.guarantee import Guarantee
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.round import NO_PLAN, Code, Refusal, RoundPlan, Update

__all__ = ["Gate"]


class Gate:
    """Turns privatised results and codes into the signed bytes that leave."""

    HEARTBEAT: ClassVar[bytes] = b"here"  # said at fixed times while a plan is worked on; no step, no count, no time

    def __init__(self, *, key: Ed25519PrivateKey, nominal_units: int, max_update_bytes: int, ledger: Ledger) -> None:
        """Keep the site's signing key, its declared number of units, its limit on an update's size, and its ledger.

        Of the ledger the gate reads the head alone, which each update carries.
        """
        self._key = key
        self._ledger = ledger
        self._nominal_units = nominal_units
        self._max_bytes = max_update_bytes

    @cached_property
    def fingerprint(self) -> str:
        """Of the site's public key: who a plan must be addressed to."""
        return key_fingerprint(self._key.public_key())

    def update(
        self,
        plan: RoundPlan,
        spec: AdapterSpec,
        *,
        delta: Adapter,
        guarantee: Guarantee,
        metrics: MetricSums | None,
    ) -> bytes:
        """Sign an update.

        Guarantees:
          - Only tensors of the plan's trained groups leave, finite ones, within the size limit.
          - Metrics leave only when the plan asked for them.

        Raises:
          SpecMismatch, NonFiniteUpdate: the result is not what was agreed; nothing leaves.
        """
        if delta.spec.digest != spec.subset(plan.training.groups).digest or 4 * delta.spec.size > self._max_bytes:
            raise SpecMismatch("the result is not of the agreed spec", hint="this is a fault of the trainer")
        if (metrics is not None) != plan.evaluate:
            raise SpecMismatch("metrics and plan disagree", hint="this is a fault of the trainer")
        delta.check_finite()
        update = Update(
            plan_id=plan.plan_id,
            delta=delta,
            guarantee=guarantee,
            nominal_units=self._nominal_units,
            metrics=metrics,
            ledger_head=self._ledger.head,
        )
        return encode_reply(update, key=self._key)

    def refusal(self, plan: RoundPlan | None, code: Code) -> bytes:
        """Sign a refusal; without a plan, to bytes in which none could be read."""
        return encode_reply(Refusal(plan_id=plan.plan_id if plan else NO_PLAN, code=code), key=self._key)
