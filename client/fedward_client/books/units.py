"""The register of units on disk: which units share which history of grants, under keyed digests of their ids.

    units-<SHA-256 of the file>.bin   magic | header length u32 | header | digests 16 n | cohort numbers 4 n, u32 LE

The header is canonical JSON with the cohorts, a list of run ids each. Digests are keyed BLAKE2b, sorted, so a million
units take 20 MB and two seconds. A version never changes: a charge writes the next one beside it, and the ledger's
entry that names it makes it hold. A file that no entry names is what a crash left, and is removed.

Example:
    >>> import tempfile
    >>> register = UnitRegister(Path(tempfile.mkdtemp()), key=bytes(32))
    >>> register.adopt(register.charge(["p1", "p2"], run_id="run-1", bears=lambda history: True).digest)
    >>> register.taking_part("run-1", ["p3", "p2"]).tolist()
    [False, True]
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fedward_client.books.files import Files, disk_errors
from fedward_common.canonical import canonical
from fedward_common.errors import BudgetError, FedwardError, PrivacyError
from fedward_common.privacy import checks
from fedward_common.privacy.spending import Bears, Charge, History

__all__ = ["UnitRegister", "unit_digests"]

Digests: TypeAlias = npt.NDArray[np.bytes_]  # S16: two of them are equal where all 16 bytes are
Cohorts: TypeAlias = npt.NDArray[np.uint32]

SCHEMA = 1
MAGIC = b"FWUNITS\n"
LENGTH = struct.Struct("<I")
KEY_BYTES, DIGEST_BYTES, COHORT_BYTES = 32, 16, 4
UNIT, CHECK = b"fedward unit", b"fedward check"  # BLAKE2b's personalisation: one key, two functions
WHAT = "the register of units"
PREFIX, SUFFIX = "units-", ".bin"


def unit_digests(units: Sequence[str], *, key: bytes) -> Digests:
    """(n,) the keyed digest of each unit's id, in the order given."""
    fresh = hashlib.blake2b(digest_size=DIGEST_BYTES, key=key, person=UNIT).copy  # the key is taken in once
    digests = []
    for unit in units:
        state = fresh()
        state.update(unit.encode("utf-8", "surrogatepass"))
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), dtype=f"S{DIGEST_BYTES}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Version:
    """One state of the register; ``cohorts[i]`` is the number of the history of the unit ``digests[i]``."""

    digests: Digests
    cohorts: Cohorts
    histories: tuple[History, ...]

    @classmethod
    def empty(cls) -> Self:
        return cls(digests=np.zeros(0, dtype=f"S{DIGEST_BYTES}"), cohorts=np.zeros(0, dtype=np.uint32), histories=())

    def find(self, wanted: Digests) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Where each wanted digest, sorted, is or would be inserted, and whether it is there."""
        places = np.searchsorted(self.digests, wanted)
        inside = places < len(self.digests)
        inside[inside] = self.digests[places[inside]] == wanted[inside]
        return places, inside

    def bearing(self, run_id: str) -> npt.NDArray[np.bool_]:
        """(n,) True where a unit has the run in its history."""
        return np.array([run_id in history for history in (*self.histories, ())], dtype=np.bool_)[self.cohorts]

    def charged(self, units: Digests, run_id: str, bears: Bears) -> _Version:
        """The next state: each of these units that can bear the run has it in its history."""
        units = np.sort(units)
        units = units[np.concatenate([[True], units[1:] != units[:-1]])] if len(units) else units
        places, known = self.find(units)
        new = len(self.histories)  # the number of those who are not listed yet
        histories: list[History] = [*self.histories, ()]
        before = np.full(len(units), new, dtype=np.int64)
        before[known] = self.cohorts[places[known]]
        after = np.arange(len(histories))
        for number in np.unique(before).tolist():
            if bears(histories[number]):
                after[number] = len(histories)
                histories.append((*histories[number], run_id))
        moved = after[before]
        cohorts = self.cohorts.astype(np.int64)
        cohorts[places[known]] = moved[known]
        listed = ~known & (moved != new)
        return _Version(
            digests=np.insert(self.digests, places[listed], units[listed]),
            cohorts=np.insert(cohorts, places[listed], moved[listed]).astype(np.uint32),
            histories=tuple(histories),
        ).tidied()

    def tidied(self) -> _Version:
        """The same with histories in use only, equal ones once, in one order."""
        used = np.unique(self.cohorts)
        kept = sorted({self.histories[number] for number in used.tolist()})
        renumbered = np.zeros(len(self.histories), dtype=np.uint32)
        for number in used.tolist():
            renumbered[number] = kept.index(self.histories[number])
        return _Version(digests=self.digests, cohorts=renumbered[self.cohorts], histories=tuple(kept))

    def to_bytes(self, key_check: str) -> bytes:
        """The whole file; equal states give equal bytes."""
        header = canonical(
            {"histories": self.histories, "key_check": key_check, "schema": SCHEMA, "units": len(self.digests)}
        )
        cohorts = self.cohorts.astype("<u4").tobytes()
        return b"".join([MAGIC, LENGTH.pack(len(header)), header, self.digests.tobytes(), cohorts])

    @classmethod
    def from_bytes(cls, data: bytes, key_check: str) -> Self:
        """The state of a file.

        Raises:
          BudgetError: it is damaged, of another version, or under another key.
        """
        header, body = _header(data)
        if header["key_check"] != key_check:
            raise _other_key()
        count = checks.integer(header["units"], where="units")
        if len(body) != count * (DIGEST_BYTES + COHORT_BYTES):
            raise _damaged()
        histories = tuple(tuple(map(str, runs)) for runs in header["histories"])
        return cls(
            digests=np.frombuffer(body, dtype=f"S{DIGEST_BYTES}", count=count),
            cohorts=np.frombuffer(body, dtype="<u4", offset=count * DIGEST_BYTES).astype(np.uint32),
            histories=histories,
        )


class UnitRegister:
    """A site's register of units, in one folder, behind the ledger's lock.

    Guarantees:
      - An id stands in no file: only its digest under the site's key.
      - A version that the ledger names and that is missing, changed, or under another key is refused.
      - ``charge`` returns once its version is on disk.
    """

    def __init__(self, folder: Path, *, key: bytes, files: Files | None = None) -> None:
        """Nothing is read before ``adopt``.

        Args:
          folder: where the versions lie.
          key: 32 secret bytes, the same for the life of the data.
          files: the file layer.

        Raises:
          PrivacyError: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise PrivacyError("the digest key of the units is not 32 bytes", hint="restore the key from a backup")
        self._folder, self._key, self._files = folder, key, files or Files()
        self._check = hashlib.blake2b(CHECK, digest_size=DIGEST_BYTES, key=key, person=CHECK).hexdigest()
        self._digest, self._version = "", _Version.empty()

    @property
    def key_check(self) -> str:
        """Equal for equal keys; tells nothing else of them."""
        return self._check

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the version that holds; "" while no unit was ever charged."""
        return self._digest

    def adopt(self, digest: str) -> None:
        """Read the version that the ledger names, let it hold, and remove all others.

        Raises:
          BudgetError: it is missing, changed, or under another key; then nothing is removed.
          OutputError: the folder cannot be read or written.
        """
        with disk_errors(WHAT):
            names = self._files.names(self._folder)
            if digest and _name(digest) not in names:
                raise BudgetError(f"{WHAT} that the ledger names is missing", hint=RESTORE)
            if digest != self._digest:
                self._version = self._read(digest) if digest else _Version.empty()
                self._digest = digest
            for name in names:
                if name.startswith(PREFIX) and name.endswith(SUFFIX) and name != _name(digest):
                    self._files.remove(self._folder / name)
            self._files.remove_drafts(self._folder)

    def charge(self, units: Sequence[str], *, run_id: str, bears: Bears) -> Charge:
        """Write a version in which every one of these units that can bear the run has it in its history.

        Raises:
          OutputError: the disk refused; nothing changed.
        """
        version = self._version.charged(unit_digests(units, key=self._key), run_id, bears)
        data = version.to_bytes(self._check)
        digest = hashlib.sha256(data).hexdigest()
        with disk_errors(WHAT):
            self._files.create(self._folder / _name(digest), data)
        return Charge(digest=digest)

    def taking_part(self, run_id: str, units: Sequence[str]) -> npt.NDArray[np.bool_]:
        """(n,) True where a unit bears the run. It digests every id anew, so ask once a run, not in every round."""
        digests = unit_digests(units, key=self._key)
        order = np.argsort(digests)  # a search for sorted digests is eight times as fast
        places, known = self._version.find(digests[order])
        known[known] = self._version.bearing(run_id)[places[known]]
        taking = np.empty(len(units), dtype=np.bool_)
        taking[order] = known
        return taking

    def histories(self) -> tuple[History, ...]:
        """Every history that some unit has."""
        return self._version.histories

    def bearers(self, run_id: str) -> tuple[bytes, ...]:
        """The keyed digests, 16 bytes each and sorted, of the units that bear a run."""
        data = self._version.digests[self._version.bearing(run_id)].tobytes()
        return tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))

    def _read(self, digest: str) -> _Version:
        data = self._files.read(self._folder / _name(digest))
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged()
        return _Version.from_bytes(data, self._check)


RESTORE = "restore the site's folder from a backup, then reconcile the ledger with the coordinators' records"


def _name(digest: str) -> str:
    return f"{PREFIX}{digest}{SUFFIX}"


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    start = len(MAGIC) + LENGTH.size
    try:
        end = start + LENGTH.unpack_from(data, len(MAGIC))[0]
        header = checks.table(
            json.loads(data[start:end]), ("histories", "key_check", "schema", "units"), where="a register's header"
        )
    except (struct.error, ValueError, FedwardError):
        raise _damaged() from None
    if not data.startswith(MAGIC) or header["schema"] != SCHEMA:
        raise _damaged()
    return header, memoryview(data)[end:]


def _damaged() -> BudgetError:
    return BudgetError(f"{WHAT} is damaged, or not the one that the ledger names", hint=RESTORE)


def _other_key() -> BudgetError:
    return BudgetError(
        f"{WHAT} was written under another digest key",
        hint="restore the key from a backup: with another key all spending of units would be forgotten",
    )
