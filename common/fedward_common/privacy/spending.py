"""Whose spending is whose: which units share which history of grants.

A unit's history is the list of runs that it took part in. A register keeps the histories of all units, under keyed
digests of their ids, so that data which grew, shrank or moved keeps its spending. ``Register`` is the interface;
``MemoryRegister`` is for simulation and tests. This module knows no budget: the ledger says what a history can bear.

Example:
    >>> register = MemoryRegister()
    >>> charge = register.charge(["p1", "p2"], run_id="run-1", bears=lambda history: True)
    >>> register.adopt(charge.digest)
    >>> register.taking_part("run-1", ["p2", "p3"]).tolist(), register.histories()
    ([True, False], (('run-1',),))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fedward_common.canonical import canonical
from fedward_common.errors import BudgetError

__all__ = ["Bears", "Charge", "History", "MemoryRegister", "Register", "nobody_bears"]

History: TypeAlias = tuple[str, ...]  # run ids, oldest first
Bears: TypeAlias = Callable[[History], bool]
Flags: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """A staged version of a register: it holds once the ledger has named its digest."""

    digest: str


class Register(Protocol):
    """The histories of a site's units.

    Guarantees:
      - ``charge`` changes nothing that holds; ``adopt`` makes a staged version the one that holds.
      - A unit that was ever charged stays charged, whether or not it is in the data today.
    """

    @property
    def key_check(self) -> str:
        """Equal for equal digest keys; "" without a key."""
        ...

    @property
    def digest(self) -> str:
        """Of the version that holds; "" while no unit was ever charged."""
        ...

    def adopt(self, digest: str) -> None:
        """Let this version hold and drop all others, or ``BudgetError`` when it is missing or differs."""
        ...

    def charge(self, units: Sequence[str], *, run_id: str, bears: Bears) -> Charge:
        """Stage a version in which every one of these units that can bear the run has it in its history.

        A unit that cannot is left out, silently, also where none can: a refusal would tell that one came who can.
        """
        ...

    def taking_part(self, run_id: str, units: Sequence[str]) -> Flags:
        """(n,) True where a unit bears the run; a unit that came later does not."""
        ...

    def histories(self) -> tuple[History, ...]:
        """Every history that some unit has."""
        ...


class MemoryRegister:
    """A register in memory, without a key."""

    def __init__(self) -> None:
        """Nobody is charged yet."""
        self._digest = ""
        self._versions: dict[str, Mapping[str, History]] = {"": {}}

    @property
    def key_check(self) -> str:
        """There is no key."""
        return ""

    @property
    def digest(self) -> str:
        """Of the version that holds."""
        return self._digest

    def adopt(self, digest: str) -> None:
        """Let this version hold and drop all others."""
        if digest not in self._versions:
            raise BudgetError("the register of units is not the ledger's", hint="restore it together with the ledger")
        self._digest, self._versions = digest, {digest: self._versions[digest]}

    def charge(self, units: Sequence[str], *, run_id: str, bears: Bears) -> Charge:
        """Stage a version in which every unit that can bear the run has it in its history."""
        held = self._versions[self._digest]
        able = {history: bears(history) for history in {held.get(unit, ()) for unit in units}}
        charged = {unit: (*held.get(unit, ()), run_id) for unit in units if able[held.get(unit, ())]}
        version = {**held, **charged}
        digest = hashlib.sha256(canonical(version)).hexdigest()
        self._versions[digest] = version
        return Charge(digest=digest)

    def taking_part(self, run_id: str, units: Sequence[str]) -> Flags:
        """(n,) True where a unit bears the run."""
        held = self._versions[self._digest]
        return np.fromiter((run_id in held.get(unit, ()) for unit in units), dtype=np.bool_, count=len(units))

    def histories(self) -> tuple[History, ...]:
        """Every history that some unit has."""
        return tuple(sorted(set(self._versions[self._digest].values())))


def nobody_bears() -> BudgetError:
    """The refusal of a run that no unit could bear, whatever its history."""
    return BudgetError(
        "no unit's budget can bear the run: it is beyond the budget of each",
        hint="ask for a run with a smaller epsilon or delta; a budget is never raised",
    )
