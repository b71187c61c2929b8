"""The whole life of a round at a site, on one page: verify, admit, reserve, start, train, release, settle.

    bytes -> signature, shapes, digests -> policy -> one grant for the whole run -> this round marked started
          -> data opened: drawn, clipped, noised, stepped -> gate -> stored -> signed bytes

Whatever goes wrong after the policy said yes is the one code ``unavailable``; the true reason goes to the site's own
log. A plan id that was served is answered with the stored bytes, without touching data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedward_client.policy import SEEDED_RANDOMNESS, Denied, SitePolicy
from fedward_client.release import Gate
from fedward_client.training import LocalTrainer
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_plan
from fedward_common.errors import BadSignature, FedwardError, MessageError, PrivacyError
from fedward_common.privacy.events import GaussianSum, merged
from fedward_common.privacy.guarantee import Guarantee
from fedward_common.privacy.ledger import Grant, Ledger, Outcome
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import Randomness, SecureRandom
from fedward_common.round import Code, RoundPlan

__all__ = ["Site"]


@dataclass(frozen=True, kw_only=True)
class _Mechanisms:
    """How data may be touched in one round, and the events that say so: both from the same values."""

    step: PrivateSum
    steps: int
    metric: PrivateMetric | None

    @property
    def events(self) -> tuple[GaussianSum, ...]:
        return merged([self.step.event] * self.steps + ([self.metric.event] if self.metric else []))


class Site:
    """One site's side of every run: ``answer(bytes) -> bytes``, the Door's other side.

    Guarantees:
      - Nothing is parsed before the operator's signature holds, and a plan for another site is no plan.
      - What a run may cost is reserved, and the round marked started, before data is opened; nothing is refunded.
      - A refusal's code depends on plan and policy only, or is ``unavailable``.
      - A served plan id is answered with the same bytes again.
    """

    def __init__(
        self,
        *,
        policy: SitePolicy,
        operator: Ed25519PublicKey,
        ledger: Ledger,
        trainer: LocalTrainer,
        gate: Gate,
        randomness: Randomness,
        report: Callable[[str], None],
    ) -> None:
        """Wire a site together.

        Args:
          policy: outranks every plan.
          operator: the key that plans must be signed with.
          ledger: reserves and records what is spent.
          trainer: the data and the model.
          gate: makes whatever leaves.
          randomness: ``SecureRandom``, or a seeded one where the policy waives it by name.
          report: receives the true reason of every refusal; stays at the site.

        Raises:
          PrivacyError: randomness that can be repeated, without the waiver.
        """
        if not isinstance(randomness, SecureRandom) and SEEDED_RANDOMNESS not in policy.waivers:
            raise PrivacyError(
                "seeded randomness gives no privacy",
                hint=f"use SecureRandom; only a simulation may waive {SEEDED_RANDOMNESS!r}",
            )
        self._policy, self._operator, self._ledger = policy, operator, ledger
        self._trainer, self._gate, self._report = trainer, gate, report
        self._fingerprint = gate.fingerprint
        self._served: dict[str, bytes] = {}

    def answer(self, data: bytes) -> bytes:
        """Serve one message: a signed plan in, a signed update or refusal out. Never raises on input."""
        try:
            plan, adapter = decode_plan(data, public_key=self._operator)
            adapter.check_finite(largest=self._policy.max_magnitude)
        except BadSignature as error:
            return self._refuse(None, Code.BAD_SIGNATURE, str(error))
        except MessageError as error:
            return self._refuse(None, Code.SPEC_MISMATCH, str(error))
        if plan.site != self._fingerprint:
            return self._refuse(None, Code.BAD_SIGNATURE, "the plan is signed for another site")
        if plan.plan_id in self._served:
            return self._served[plan.plan_id]
        verdict = self._policy.admit(plan, adapter.spec, now=time.time())
        if isinstance(verdict, Denied):
            return self._refuse(plan, verdict.code, verdict.reason)
        if adapter.spec.digest != self._trainer.spec_digest:
            return self._refuse(plan, Code.SPEC_MISMATCH, "the adapter is not of this site's model")
        try:
            return self._serve(plan, adapter)
        except FedwardError as error:
            return self._refuse(plan, Code.UNAVAILABLE, str(error))
        except Exception as error:  # the text of a foreign exception may hold data: keep its type alone
            return self._refuse(plan, Code.UNAVAILABLE, f"internal error of type {type(error).__name__}")

    def _serve(self, plan: RoundPlan, adapter: Adapter) -> bytes:
        grant = self._ledger.reserve(self._ledger.quote(plan.terms), run_id=plan.run_id)
        mechanisms = self._mechanisms(plan, grant)
        self._check_data(plan)
        self._ledger.start(grant, plan.plan_id, events=mechanisms.events)
        try:
            reply = self._compute(plan, adapter, mechanisms)
        except BaseException:
            self._ledger.settle(plan.plan_id, Outcome.FAILED)
            raise
        self._served[plan.plan_id] = reply
        self._ledger.settle(plan.plan_id, Outcome.RELEASED)
        return reply

    def _mechanisms(self, plan: RoundPlan, grant: Grant) -> _Mechanisms:
        calibration = grant.quote.calibration
        return _Mechanisms(
            step=PrivateSum.for_stage(
                plan.terms, calibration, stage_index=plan.stage, nominal_units=self._trainer.data.nominal_units
            ),
            steps=plan.training.local_steps,
            metric=PrivateMetric.for_run(calibration, loss_cap=self._trainer.loss_cap) if plan.evaluate else None,
        )

    def _check_data(self, plan: RoundPlan) -> None:
        # compares with the true number of units: whatever the answer, the wire says 'unavailable'
        units = self._trainer.data.records.unit_count
        if units < self._policy.minimum_units:
            raise PrivacyError("the data has fewer units than minimum_units", hint="add data or lower minimum_units")
        if plan.terms.delta >= 1 / units:
            raise PrivacyError("delta is not below 1 / units", hint="ask the operator for a smaller privacy.delta")

    def _compute(self, plan: RoundPlan, adapter: Adapter, mechanisms: _Mechanisms) -> bytes:
        step, metric = mechanisms.step, mechanisms.metric
        metrics = self._trainer.evaluate(plan.round, adapter, metric, cap=step) if metric else None
        delta = self._trainer.train(plan.round, adapter, plan.training, step)
        guarantee = Guarantee(
            unit=plan.terms.unit,
            delta=plan.terms.delta,
            events=mechanisms.events,
            waivers=tuple(sorted(self._policy.waivers)),
        )
        return self._gate.update(plan, adapter.spec, delta=delta, guarantee=guarantee, metrics=metrics)

    def _refuse(self, plan: RoundPlan | None, code: Code, reason: str) -> bytes:
        self._report(f"{code}: {reason}")
        return self._gate.refusal(plan, code)
