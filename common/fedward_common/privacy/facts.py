"""What a ledger's entries say, each as a type: opened, granted, started, settled, held, cleared, reconciled.

A fact says what happened, never what it cost. ``body_of`` and ``fact_of`` turn facts into the JSON bodies of a journal
and back; every body names its schema. Whether a fact may follow those before it is the ledger's affair.

Example:
    >>> fact_of(body_of(Held(run_id="run-1")))
    Held(run_id='run-1')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self, TypeAlias

from fedward_common.errors import BudgetError, FedwardError
from fedward_common.privacy import checks
from fedward_common.privacy.events import GaussianSum, events_from_json
from fedward_common.privacy.grants import Budget, Grant

__all__ = [
    "SCHEMA",
    "Bearer",
    "Cleared",
    "Fact",
    "Granted",
    "Held",
    "Opened",
    "Outcome",
    "Reconciled",
    "Settled",
    "Started",
    "body_of",
    "fact_of",
]

SCHEMA = 2


class Outcome(StrEnum):
    """How a started plan ended. Neither gives anything back."""

    RELEASED = "released"  # its update was handed over
    FAILED = "failed"  # nothing was handed over; the data was opened all the same


class Bearer(StrEnum):
    """Whose spending a grant is."""

    SOURCE = "source"  # the data source as a whole: every unit it has or will have
    UNITS = "units"  # the units that the register lists under the run, and no others


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The first entry: the budget, whose ledger this is, and the check value of the units' digest key."""

    budget: Budget
    owner: str
    key_check: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"budget": self.budget.to_json(), "key_check": self.key_check, "owner": self.owner}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("budget", "key_check", "owner"), where="an opening entry")
        return cls(
            budget=Budget.from_json(row["budget"]),
            owner=_short(row["owner"], where="owner"),
            key_check=_short(row["key_check"], where="key_check"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """A whole run was reserved; ``register`` is the digest of the register of units that holds from here on."""

    grant: Grant
    bearer: Bearer
    register: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**self.grant.to_json(), "bearer": self.bearer.value, "register": self.register}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("bearer", "quote", "register", "run_id"), where="a grant's entry")
        return cls(
            grant=Grant.from_json({"quote": row["quote"], "run_id": row["run_id"]}),
            bearer=checks.member(Bearer, row["bearer"], where="bearer"),
            register=_short(row["register"], where="register"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A plan is about to open the data."""

    run_id: str
    plan_id: str
    events: tuple[GaussianSum, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        events = [event.to_json() for event in self.events]
        return {"events": events, "plan_id": self.plan_id, "run_id": self.run_id}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("events", "plan_id", "run_id"), where="a start's entry")
        return cls(
            run_id=checks.text(row["run_id"], where="run_id"),
            plan_id=checks.text(row["plan_id"], where="plan_id"),
            events=events_from_json(row["events"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A started plan ended."""

    plan_id: str
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"outcome": self.outcome.value, "plan_id": self.plan_id}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("outcome", "plan_id"), where="a settlement's entry")
        return cls(
            plan_id=checks.text(row["plan_id"], where="plan_id"),
            outcome=checks.member(Outcome, row["outcome"], where="outcome"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """No plan of the run may start until the site's own operator clears it."""

    run_id: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"run_id": self.run_id}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("run_id",), where="a hold's entry")
        return cls(run_id=checks.text(row["run_id"], where="run_id"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleared:
    """The site's operator lets a held run go on; ``plans`` were cut off by a crash and count as failed."""

    run_id: str
    plans: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"plans": list(self.plans), "run_id": self.run_id}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("plans", "run_id"), where="a clearing's entry")
        return cls(run_id=checks.text(row["run_id"], where="run_id"), plans=_texts(row["plans"], where="plans"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciled:
    """A witness knew of these grants and heads, and this ledger did not: it is older than what really happened."""

    grants: tuple[Grant, ...]
    heads: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"grants": [grant.to_json() for grant in self.grants], "heads": list(self.heads)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """The fact of a JSON object, or ``MalformedMessage``."""
        row = checks.table(value, ("grants", "heads"), where="a reconciliation's entry")
        return cls(
            grants=tuple(Grant.from_json(item) for item in checks.rows(row["grants"], where="grants")),
            heads=_texts(row["heads"], where="heads"),
        )


Fact: TypeAlias = Opened | Granted | Started | Settled | Held | Cleared | Reconciled

KINDS: Final[Mapping[str, type[Fact]]] = {
    "clear": Cleared,
    "grant": Granted,
    "hold": Held,
    "open": Opened,
    "reconcile": Reconciled,
    "settle": Settled,
    "start": Started,
}
NAMES: Final = {kind: name for name, kind in KINDS.items()}


def body_of(fact: Fact) -> dict[str, Any]:
    """The journal body of a fact."""
    return {**fact.to_json(), "entry": NAMES[type(fact)], "schema": SCHEMA}


def fact_of(body: Mapping[str, Any]) -> Fact:
    """The fact of a journal body.

    Raises:
      BudgetError: of another schema or kind, or malformed.
    """
    if body.get("schema") != SCHEMA:
        raise BudgetError(
            "a ledger entry is of another schema", hint=f"this version reads schema {SCHEMA}; update fedward"
        )
    kind = KINDS.get(str(body.get("entry")))
    if kind is None:
        raise BudgetError("a ledger entry is of an unknown kind", hint="this version is older than the ledger")
    try:
        return kind.from_json({key: value for key, value in body.items() if key not in ("entry", "schema")})
    except BudgetError:
        raise
    except FedwardError as error:
        raise BudgetError(f"a ledger entry is malformed: {error}", hint=error.hint) from None


def _short(value: object, *, where: str) -> str:
    return "" if value == "" else checks.text(value, where=where)


def _texts(value: object, *, where: str) -> tuple[str, ...]:
    return tuple(checks.text(item, where=where) for item in checks.rows(value, where=where))
