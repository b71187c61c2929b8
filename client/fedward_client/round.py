"""The whole life of a round at a site, on one page: verify, admit, reserve, start, train, store, write down, release.

    bytes -> signature, addressee, shapes, digests -> policy -> one grant for the whole run -> this round marked started
          -> data opened: drawn, clipped, noised, stepped -> gate -> stored -> audit line -> signed bytes

The data work in the middle is yielded, so that whoever drives many sites may compute it for all of them at once;
``Site.answer`` computes it on the spot.

Whatever goes wrong after the policy said yes is the one code ``unavailable``; the true reason goes to the site's own
audit log. A plan id that was served is answered with the stored bytes, without touching data. A round that failed after
the data was opened is spent, and holds its run at this site until the site's own operator clears it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedward_client.books.audit import LONGEST_REASON, AuditLine, AuditTrail, Kind, reason_of
from fedward_client.policy import SEEDED_RANDOMNESS, Denied, SitePolicy
from fedward_client.release import Gate
from fedward_client.trainers import Trainers
from fedward_client.training import LocalResult, LocalWork
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_plan, key_fingerprint
from fedward_common.errors import BadSignature, BudgetError, MessageError, OutputError, PrivacyError, SpecMismatch
from fedward_common.privacy.events import GaussianSum, merged
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Grant
from fedward_common.privacy.guarantee import Guarantee
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.mechanism import PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import SecureRandom
from fedward_common.round import Code, RoundPlan

__all__ = ["Answering", "MemoryOutbox", "Replies", "Site"]

Answering: TypeAlias = Generator[LocalWork, LocalResult, bytes]  # at most one work out, its result in; then the reply

LOG = logging.getLogger(__name__)
ABOUT = ("run_id", "round", "plan_id", "adapter_digest")  # what an audit line says of a plan


class Replies(Protocol):
    """Where finished replies are kept, to be sent again byte for byte."""

    def store(self, run_id: str, plan_id: str, reply: bytes) -> None:
        """Keep a reply; a durable outbox has it on disk when this returns."""
        ...

    def find(self, plan_id: str) -> bytes | None:
        """The reply of this plan, or None."""
        ...


class MemoryOutbox:
    """The newest reply, in memory: for simulation, where a crash loses the sites as well."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._newest: tuple[str, bytes] | None = None

    def store(self, run_id: str, plan_id: str, reply: bytes) -> None:
        """Keep a reply in place of the one before."""
        self._newest = (plan_id, reply)

    def find(self, plan_id: str) -> bytes | None:
        """The reply of this plan, or None."""
        return self._newest[1] if self._newest and self._newest[0] == plan_id else None


@dataclass(frozen=True, kw_only=True)
class _Mechanisms:
    """How data may be touched in one round, and the events that say so: both from the same values."""

    step: PrivateSum
    steps: int
    metric: PrivateMetric | None

    @property
    def events(self) -> tuple[GaussianSum, ...]:
        return merged([self.step.event] * self.steps + ([self.metric.event] if self.metric else []))


class _Refused(Exception):
    """A no that plan and policy alone decide."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Site:
    """One site's side of every run: ``answer(bytes) -> bytes``, the Door's other side. One message at a time.

    Guarantees:
      - Nothing is parsed before the operator's signature holds, and a plan for another site is no plan.
      - What a run may cost is reserved, and the round marked started, before data is opened; nothing is refunded.
      - An update is stored, and a line about it written down, before it is handed over.
      - A refusal's code depends on plan and policy only, or is ``unavailable``.
      - A served plan id is answered with the same bytes again.
    """

    def __init__(
        self,
        *,
        policy: SitePolicy,
        operator: Ed25519PublicKey,
        ledger: Ledger,
        trainers: Trainers,
        gate: Gate,
        outbox: Replies,
        audit: AuditTrail,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire a site together, and settle what a crash cut off by what the outbox holds.

        A reply that cannot be read settles nothing: its plan stays cut off, its run is held, and a line says so.

        Args:
          policy: outranks every plan.
          operator: the key that plans must be signed with.
          ledger: reserves and records what is spent.
          trainers: models and data; with ``SecureRandom``, or a seeded one where the policy waives it by name.
          gate: makes whatever leaves.
          outbox: keeps finished replies.
          audit: receives what left, and the true reason of every refusal; stays at the site.
          clock: seconds since the epoch.

        Raises:
          PrivacyError: the trainers draw from randomness that can be repeated, without the waiver.
        """
        if not isinstance(trainers.randomness, SecureRandom) and SEEDED_RANDOMNESS not in policy.waivers:
            raise PrivacyError(
                "seeded randomness gives no privacy",
                hint=f"use SecureRandom; only a simulation may waive {SEEDED_RANDOMNESS!r}",
            )
        self._policy, self._operator, self._ledger = policy, operator, ledger
        self._trainers, self._gate, self._outbox, self._audit = trainers, gate, outbox, audit
        self._coordinator, self._clock = key_fingerprint(operator), clock
        self._lock = threading.Lock()
        for plan_id in ledger.unsettled():
            self._settle_if_stored(plan_id)

    def _settle_if_stored(self, plan_id: str) -> None:
        try:
            stored = self._outbox.find(plan_id)
        except OutputError as error:  # of this plan alone: it stays cut off, so its run is held
            self._write(
                Kind.HOLD, None, plan_id=plan_id, reason=f"a plan was cut off: {reason_of(error)}"[:LONGEST_REASON]
            )
            return
        if stored is not None:
            self._ledger.settle(plan_id, Outcome.RELEASED)

    def answer(self, data: bytes) -> bytes:
        """Serve one message: a signed plan in, a signed update or refusal out. Never raises on input."""
        reply = _alone(self.answering(data))
        return reply

    def answering(self, data: bytes) -> Answering:
        """Serve one message in two halves: up to the data work, which is yielded once it is paid for, and from there.

        Whoever drives this sends the work's result, or throws what went wrong: then the round is spent, as it is when
        the generator is closed. The site serves no other message in between.
        """
        with self._lock:
            reply = yield from self._answer(data)
            return reply

    def check_usable(self) -> None:
        """Raise where the disk refused a write of the books: from then on every plan is answered ``unavailable``."""
        self._ledger.check_usable()
        self._audit.check_usable()

    # ---- verify and admit: public things alone -----------------------------------------
    def _answer(self, data: bytes) -> Answering:
        plan: RoundPlan | None = None
        try:
            plan, adapter = self._read(data)
            stored = self._outbox.find(plan.plan_id)
            self._admit(plan, adapter)
            if stored is not None:
                return self._resend(plan, adapter, stored)
            reply = yield from self._serve(plan, adapter)
            return reply
        except _Refused as refused:
            return self._refuse(plan, refused.code, str(refused))
        except Exception as error:
            return self._refuse(plan, Code.UNAVAILABLE, reason_of(error))

    def _read(self, data: bytes) -> tuple[RoundPlan, Adapter]:
        try:
            plan, adapter = decode_plan(data, public_key=self._operator)
            adapter.check_finite(largest=self._policy.max_magnitude)
        except BadSignature as error:
            raise _Refused(Code.BAD_SIGNATURE, str(error)) from None
        except MessageError as error:
            raise _Refused(Code.SPEC_MISMATCH, str(error)) from None
        if plan.site != self._gate.fingerprint:
            raise _Refused(Code.BAD_SIGNATURE, "the plan is signed for another site")
        return plan, adapter

    def _admit(self, plan: RoundPlan, adapter: Adapter) -> None:
        verdict = self._policy.admit(plan, adapter.spec, now=self._clock())
        if isinstance(verdict, Denied):
            raise _Refused(verdict.code, verdict.reason)
        try:
            adapter.spec.subset(plan.training.groups)
        except SpecMismatch as error:
            raise _Refused(Code.SPEC_MISMATCH, str(error)) from None
        if not self._trainers.fits(adapter.spec, public_seed=plan.public_seed):
            raise _Refused(Code.SPEC_MISMATCH, "the adapter is not of this site's model")

    def _resend(self, plan: RoundPlan, adapter: Adapter, stored: bytes) -> bytes:
        # stored, but never handed over, where a crash or a full disk came between: then it is settled first
        outcome = self._ledger.outcome(plan.plan_id)
        if outcome is Outcome.FAILED:
            raise BudgetError("the plan failed at this site", hint="it is spent and never trained again")
        reply = self._hand_over(Kind.RESEND, plan, adapter, stored)
        if outcome is None:
            self._ledger.settle(plan.plan_id, Outcome.RELEASED)
        return reply

    # ---- pay, then open the data ----------------------------------------------------------
    def _serve(self, plan: RoundPlan, adapter: Adapter) -> Answering:
        if not self._ledger.knows(plan.ledger_head):
            raise BudgetError(
                "the coordinator holds a ledger head that this ledger never had: it was set back, or is another's",
                hint="fedward-client ledger reconcile counts what the coordinator's witness knows",
            )
        self._audit.check_usable()  # nothing is spent on what could not be written down afterwards
        grant = self._grant(plan)
        mechanisms = self._mechanisms(plan, grant)
        self._ledger.start(grant, plan.plan_id, events=mechanisms.events)
        try:
            result = yield self._work(plan, adapter, mechanisms)
            reply = self._update(plan, adapter, mechanisms, result)
            self._outbox.store(plan.run_id, plan.plan_id, reply)
        except BaseException as error:
            self._ledger.settle(plan.plan_id, Outcome.FAILED)
            self._write(Kind.HOLD, plan, reason=reason_of(error))
            raise
        reply = self._hand_over(Kind.RELEASE, plan, adapter, reply)
        self._ledger.settle(plan.plan_id, Outcome.RELEASED)
        return reply

    def _grant(self, plan: RoundPlan) -> Grant:
        quote = self._ledger.quote(plan.terms)
        if any(grant.run_id == plan.run_id for grant in self._ledger.grants()):
            return self._ledger.reserve(quote, run_id=plan.run_id)
        units, count = self._trainers.units()  # in a run's first round: who is in the data, and nothing else of it
        self._check_data(count)
        return self._ledger.reserve(quote, run_id=plan.run_id, units=units)

    def _mechanisms(self, plan: RoundPlan, grant: Grant) -> _Mechanisms:
        calibration = grant.quote.calibration
        return _Mechanisms(
            step=PrivateSum.for_stage(
                plan.terms, calibration, stage_index=plan.stage, nominal_units=self._trainers.nominal_units
            ),
            steps=plan.training.local_steps,
            metric=PrivateMetric.for_run(calibration, loss_cap=self._trainers.loss_cap) if plan.evaluate else None,
        )

    def _check_data(self, units: int) -> None:
        # compares with the true number of units: whatever the answer, the wire says 'unavailable'
        if units < self._policy.minimum_units:
            raise PrivacyError("the data has fewer units than minimum_units", hint="add data or lower minimum_units")
        # the site's own number is compared: a plan's could be moved to find the count
        if self._policy.max_delta >= 1 / units:
            raise PrivacyError("policy.run_delta is not below 1 / units", hint="lower policy.run_delta in site.toml")

    def _work(self, plan: RoundPlan, adapter: Adapter, mechanisms: _Mechanisms) -> LocalWork:
        return LocalWork(
            trainer=self._trainers.open(plan, adapter.spec, partial(self._ledger.taking_part, plan.run_id)),
            round=plan.round,
            adapter=adapter,
            training=plan.training,
            step=mechanisms.step,
            metric=mechanisms.metric,
        )

    def _update(self, plan: RoundPlan, adapter: Adapter, mechanisms: _Mechanisms, result: LocalResult) -> bytes:
        guarantee = Guarantee(
            unit=plan.terms.unit,
            delta=plan.terms.delta,
            events=mechanisms.events,
            waivers=tuple(sorted(self._policy.waivers)),
        )
        return self._gate.update(plan, adapter.spec, delta=result.delta, guarantee=guarantee, metrics=result.metrics)

    # ---- write down, then hand over -------------------------------------------------------
    def _hand_over(self, kind: Kind, plan: RoundPlan, adapter: Adapter, reply: bytes) -> bytes:
        self._write(
            kind,
            plan,
            update_digest=hashlib.sha256(reply).hexdigest(),
            size=len(reply),
            tensors=adapter.spec.subset(plan.training.groups).tensors,
        )
        return reply

    def _refuse(self, plan: RoundPlan | None, code: Code, reason: str) -> bytes:
        try:
            self._write(Kind.REFUSAL, plan, code=code.value, reason=reason[:LONGEST_REASON])
        except Exception as error:  # what cannot be written down is answered with the code that says nothing
            LOG.error("a refusal could not be written down: %s; it was: %s", reason_of(error), reason)
            code = Code.UNAVAILABLE
        return self._gate.refusal(plan, code)

    def _write(self, kind: Kind, plan: RoundPlan | None, **fields: Any) -> None:
        about = {name: getattr(plan, name) for name in ABOUT} if plan else {}
        line = AuditLine(
            kind=kind,
            coordinator=self._coordinator,
            ledger_sequence=self._ledger.sequence,
            ledger_head=self._ledger.head,
            **about,
            **fields,
        )
        self._audit.write(line)


def _alone(answering: Answering) -> bytes:
    # nobody else's work to compute it with: on the spot
    try:
        work = next(answering)
        try:
            result = work.done()
        except BaseException as error:
            answering.throw(error)
        else:
            answering.send(result)
    except StopIteration as over:
        reply: bytes = over.value
        return reply
    raise RuntimeError("a site yielded a second work")
