"""A site's books in one folder, used in the order in which a site must use them; no data, no model, no messages.

Example:
    with Desk(folder) as desk:
        desk.serve("run", "ab" * 32, print)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.books.audit import Audit, AuditLine, Kind
from fedward_client.books.files import Files
from fedward_client.books.journal import DurableJournal
from fedward_client.books.outbox import Outbox
from fedward_client.books.units import UnitRegister
from fedward_common.privacy.events import GaussianSum
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget, Quote
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.ledger import Ledger

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
UNIT_KEY = bytes(range(32))
BUDGET = Budget(epsilon=40.0, delta=1e-3)
UNITS = ("patient-1", "patient-2", "patient-3")
TERMS = PrivacyTerms(
    epsilon=4.0,
    delta=1e-5,
    unit=Unit.PATIENT,
    clip_norm=1.0,
    max_records_per_unit=1,
    stages=(StageTerms(name="head", sampling_rate=1.0, rounds=1000, local_steps=1, noise_ratio=1.0),),
    metrics=MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0),
)


@cache
def quoted(terms: PrivacyTerms = TERMS) -> Quote:
    """The quote of these terms, computed once."""
    quote = Quote.of(terms)
    quote.check()
    return quote


def plan(number: int) -> str:
    """A plan id."""
    return hashlib.sha256(b"plan %d" % number).hexdigest()


def reply_to(plan_id: str) -> bytes:
    """The reply that this site would give: bytes that tell which plan they belong to."""
    return f"update of {plan_id} ".encode() * 20


def step() -> tuple[GaussianSum, ...]:
    """What one plan does."""
    return (replace(quoted().events[0], count=1),)


class Desk:
    """All books of a site, opened or made. ``note`` hears what is about to happen and what has happened."""

    def __init__(
        self,
        folder: Path,
        files: Files | None = None,
        note: Callable[[Any], None] = lambda _: None,
        *,
        units: Sequence[str] | None = UNITS,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.files, self.note, self.units, self.clock = files or Files(), note, units, clock
        self._journals: list[DurableJournal] = []
        try:
            ledger, audit = self._journal(folder, "ledger"), self._journal(folder, "audit")
            register = UnitRegister(folder, key=UNIT_KEY, files=self.files)
            self.ledger = (
                Ledger.open(ledger, register) if ledger.head else Ledger.create(ledger, register, budget=BUDGET)
            )
            self.journal, self.audit = ledger, Audit(audit)
            self.outbox = Outbox(folder / "outbox", files=self.files)
        except BaseException:
            self.close()
            raise

    def _journal(self, folder: Path, name: str) -> DurableJournal:
        path = folder / f"{name}.jsonl"
        make = DurableJournal.open if path.exists() else DurableJournal.create
        self._journals.append(make(path, name=name, key=KEY, files=self.files, clock=self.clock))
        return self._journals[-1]

    def recover(self) -> None:
        """What a site does after a crash: a stored reply counts as released, and its operator clears the rest."""
        for plan_id in self.ledger.unsettled():
            found = self.outbox.find(plan_id) is not None
            self.ledger.settle(plan_id, Outcome.RELEASED if found else Outcome.FAILED)
        for run_id in self.ledger.held():
            self.ledger.clear(run_id)

    def serve(self, run_id: str, plan_id: str, send: Callable[[bytes], object]) -> None:
        """One round, in order: reserve, start, train, store, write down, send, settle."""
        reply = self.outbox.find(plan_id)
        if reply is not None:
            self.audit.write(AuditLine(kind=Kind.RESEND, run_id=run_id, plan_id=plan_id))
            send(reply)
            return
        self.note(("reserving", run_id))
        grant = self.ledger.reserve(quoted(), run_id=run_id, units=self.units)
        self.note(("reserved", run_id))
        self.note(("starting", plan_id))
        self.ledger.start(grant, plan_id, events=step())
        self.note(("started", plan_id))
        reply = reply_to(plan_id)
        self.outbox.store(run_id, plan_id, reply)
        self.audit.write(AuditLine(kind=Kind.RELEASE, run_id=run_id, plan_id=plan_id, size=len(reply)))
        send(reply)
        self.ledger.settle(plan_id, Outcome.RELEASED)

    def started(self) -> dict[str, str]:
        """Every plan that the ledger says was started, oldest first, and its run."""
        bodies = [entry.body for entry in self.journal.entries()]
        return {body["plan_id"]: body["run_id"] for body in bodies if body["entry"] == "start"}

    def written(self) -> set[str]:
        """Every plan whose reply the audit log says was about to be handed over."""
        kinds = (Kind.RELEASE, Kind.RESEND)
        return {written.line.plan_id for written in self.audit.lines() if written.line.kind in kinds}

    def close(self) -> None:
        for journal in self._journals:
            journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def recent(started: Mapping[str, str]) -> set[str]:
    """The newest plans of each run, whose replies are kept."""
    runs = {run: [plan_id for plan_id in started if started[plan_id] == run] for run in started.values()}
    return {plan_id for plans in runs.values() for plan_id in plans[-4:]}
