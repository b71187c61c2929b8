"""The audit log: what left, what was refused and why, written and fsynced before any byte is handed over.

Each line of a journal of its own says what happened, for whom, and where the ledger stood. It holds names, sizes and
digests, never a tensor's values, a record, or an epsilon: that is computed from the ledger when it is shown.

Example:
    >>> from fedward_common.privacy.journal import MemoryJournal
    >>> audit = Audit(MemoryJournal())
    >>> audit.write(AuditLine(kind=Kind.REFUSAL, run_id="run-1", code="expired", reason="the plan has expired"))
    >>> audit.lines()[0].line.reason
    'the plan has expired'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self

from fedward_common.errors import BudgetError, FedwardError
from fedward_common.privacy import checks
from fedward_common.privacy.journal import Entry, Journal

__all__ = ["LONGEST_REASON", "Audit", "AuditLine", "AuditTrail", "Kind", "NoAudit", "Written", "reason_of"]

SCHEMA = 1
LONGEST_REASON = 1000


class Kind(StrEnum):
    """What a line says."""

    OPENED = "opened"  # the books were opened, by this version of the code
    RELEASE = "release"  # an update is about to be handed over
    RESEND = "resend"  # a stored reply is about to be handed over again
    REFUSAL = "refusal"  # a refusal is about to be handed over
    HOLD = "hold"  # a run was held
    CLEAR = "clear"  # the site's operator cleared a run
    RECONCILE = "reconcile"  # a witness was heard
    POLICY = "policy"  # the policy differs from that of the line before
    KEYS = "keys"  # the signing key was replaced


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditLine:
    """One thing that happened. Fields that do not apply are empty.

    Args:
      kind: what it was.
      coordinator: fingerprint of the operator's key.
      run_id: of the run.
      round: counts from 1; 0 where there is none.
      plan_id: of the plan.
      adapter_digest: of the adapter that came with the plan.
      update_digest: SHA-256 (hex) of the bytes handed over.
      size: of these bytes.
      tensors: shape of each tensor in them, by name.
      ledger_sequence: number of ledger entries by then.
      ledger_head: digest of the last of them.
      code: what the other side is told.
      reason: the true one, for the site alone; never content of a record. See ``reason_of``.

    Raises:
      BudgetError: the reason is longer than 1,000 characters.
    """

    kind: Kind
    coordinator: str = ""
    run_id: str = ""
    round: int = 0
    plan_id: str = ""
    adapter_digest: str = ""
    update_digest: str = ""
    size: int = 0
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ledger_sequence: int = 0
    ledger_head: str = ""
    code: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Check the reason's length."""
        if len(self.reason) > LONGEST_REASON:
            raise BudgetError("an audit reason is too long", hint="give one sentence, without content of records")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        row: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        return {
            **row,
            "kind": self.kind.value,
            "schema": SCHEMA,
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The line of a JSON object, or ``BudgetError``."""
        try:
            row = dict(checks.table(value, (*FIELDS, "schema"), where="an audit line"))
            checks.within("an audit line's schema", row.pop("schema"), SCHEMA, SCHEMA)
            kind = checks.member(Kind, row.pop("kind"), where="kind")
            tensors = {str(name): tuple(map(int, shape)) for name, shape in dict(row.pop("tensors")).items()}
        except (FedwardError, TypeError, ValueError) as error:
            raise BudgetError(f"an audit line is malformed ({type(error).__name__})", hint="update fedward") from None
        return cls(kind=kind, tensors=tensors, **row)


FIELDS = tuple(AuditLine.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A line together with the journal entry that holds it: its time, place and digest."""

    entry: Entry
    line: AuditLine


class AuditTrail(Protocol):
    """Where a site writes down what it does."""

    def write(self, line: AuditLine) -> None:
        """Write a line; a durable trail has it on disk when this returns. Raises where it cannot."""
        ...

    def check_usable(self) -> None:
        """Raise where nothing more can be written: before anything is spent that would have to be."""
        ...


class Audit:
    """An audit trail in a journal: durable where the journal is."""

    def __init__(self, journal: Journal) -> None:
        """Keep the journal, which is the trail's own."""
        self._journal = journal

    def write(self, line: AuditLine) -> None:
        """Write a line.

        Raises:
          FedwardError: the journal cannot be written; then nothing may be handed over.
        """
        self._journal.append(line.to_json())

    def check_usable(self) -> None:
        """Raise where the journal is closed, or the disk refused a write of it."""
        self._journal.check_usable()

    def lines(self) -> tuple[Written, ...]:
        """Every line, oldest first.

        Raises:
          BudgetError: the journal is no longer what it was, or holds something else.
        """
        return tuple(
            Written(entry=entry, line=AuditLine.from_json(dict(entry.body))) for entry in self._journal.entries()
        )


class NoAudit:
    """A trail that keeps nothing: for simulation alone, where no data is real."""

    def write(self, line: AuditLine) -> None:
        """Forget the line."""

    def check_usable(self) -> None:
        """Always."""


def reason_of(error: BaseException) -> str:
    """What may be written down of an error: our own texts hold no content of records, a foreign one might."""
    if isinstance(error, FedwardError):
        return str(error)[:LONGEST_REASON]
    return f"internal error of type {type(error).__name__}"
