"""A site's records: taken from one table, checked, grouped into privacy units and split by a keyed hash.

Everything here stays at the site. This module knows nothing of models, plans, policies or messages, and its errors
name columns and row numbers only: never a text, a label, a unit or a count. Randomness is none of its business: the
validation side of a unit depends on its id and the site's key alone.

Example:
    >>> records = Records(texts=(("cough",), ("fever",), ("rash",)), labels=[0, 1, 0], units=[0, 0, 1],
    ...                   unit_ids=("p1", "p2"), sites=None)
    >>> site = SiteData(records=records, nominal_units=nominal(2), validation=np.array([False, True]))
    >>> site.training_units.tolist(), site.records_of(0).tolist(), site.nominal_units
    ([0], [0, 1], 1)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_client.tables import as_id, as_text, read_table
from fedward_common.config import DataConfig
from fedward_common.errors import DataError, PrivacyError

__all__ = ["Records", "SiteData", "load_records", "nominal", "read_unit_ids", "split_validation"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MINIMUM_KEY_BYTES = 16


# ---- records and units -----------------------------------------------------------
@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Checked records of one task, and the unit that each belongs to.

    Attributes:
      texts: one or two strings a record.
      labels: (n,) index into the task's labels.
      units: (n,) number of the record's unit, 0 to ``unit_count - 1``, every number in use.
      unit_ids: the lasting id of each unit: the value of the unit column, or the record's row number.
      sites: the site column's value of each record, where there is one.

    Guarantees:
      - The arrays are read-only copies.

    Raises:
      DataError: the parts do not fit together.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: Ints
    units: Ints
    unit_ids: tuple[str, ...]
    sites: tuple[str, ...] | None

    def __post_init__(self) -> None:
        """Copy the arrays and check that all parts fit together."""
        for name in ("labels", "units"):
            object.__setattr__(self, name, _frozen(getattr(self, name), np.int64))
        lengths = {len(part) for part in (self.texts, self.labels, self.units, self.sites) if part is not None}
        numbers = np.unique(self.units)
        _require(
            self.labels.ndim == self.units.ndim == 1 and len(lengths) == 1, "records have columns of unlike length"
        )
        _require(np.array_equal(numbers, np.arange(len(self.unit_ids))), "unit numbers are not 0, 1, 2, ...")
        _require(len(set(self.unit_ids)) == len(self.unit_ids), "two units share an id")
        _require(not (self.labels < 0).any(), "a label number is negative")

    def __len__(self) -> int:
        """Number of records."""
        return len(self.texts)

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return len(self.unit_ids)

    def select(self, indices: npt.ArrayLike) -> Records:
        """The records at these positions, in this order; units are numbered anew and keep their ids and order."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        kept, units = np.unique(self.units[chosen], return_inverse=True)
        return Records(
            texts=tuple(self.texts[index] for index in chosen),
            labels=self.labels[chosen],
            units=units,
            unit_ids=tuple(self.unit_ids[unit] for unit in kept),
            sites=None if self.sites is None else tuple(self.sites[index] for index in chosen),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteData:
    """What the training loop of one site sees.

    Attributes:
      records: the site's records.
      nominal_units: the round public number that the site declares; divisors and weights use it, never the true one.
      validation: (unit_count,) True where a unit serves validation only.
      left_out: (unit_count,) True where a unit is used for nothing, because its own budget cannot bear the run; None
        where every unit may take part.

    Raises:
      DataError: flags have not one entry a unit, or ``nominal_units`` is below 1.
    """

    records: Records
    nominal_units: int
    validation: Flags
    left_out: Flags | None = None

    def __post_init__(self) -> None:
        """Copy and check the flags, and lay out the records of each unit side by side."""
        for name in ("validation", "left_out"):
            flags = getattr(self, name)
            flags = np.zeros(self.records.unit_count, np.bool_) if flags is None else flags
            object.__setattr__(self, name, _frozen(flags, np.bool_))
            _require(flags.shape == (self.records.unit_count,), f"{name} flags do not match the units")
        _require(self.nominal_units >= 1, "nominal_units is below 1")

    @cached_property
    def _used(self) -> Flags:
        return ~np.asarray(self.left_out)

    @cached_property
    def training_units(self) -> Ints:
        """Unit numbers that may enter a training step."""
        return _frozen(np.flatnonzero(~self.validation & self._used), np.int64)

    @cached_property
    def validation_units(self) -> Ints:
        """Unit numbers that serve validation only."""
        return _frozen(np.flatnonzero(self.validation & self._used), np.int64)

    @cached_property
    def _by_unit(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.records.units, kind="stable")
        return _frozen(order, np.int64), _frozen(np.concatenate(([0], np.cumsum(self.records_per_unit))), np.int64)

    @cached_property
    def records_per_unit(self) -> Ints:
        """Number of records of each unit."""
        return _frozen(np.bincount(self.records.units, minlength=self.records.unit_count), np.int64)

    def records_of(self, unit: int) -> Ints:
        """Positions of the records of one unit, ascending."""
        order, offsets = self._by_unit
        return order[offsets[unit] : offsets[unit + 1]]


def nominal(count: int) -> int:
    """Round a number of units down to a coarse number, as a site's admin would declare it.

    At a real site a person types this number into the site file; only the simulator derives it from data.

    Args:
      count: true number of units.

    Returns:
      ``count`` rounded down to a multiple of 100 from 1000 on, of 50 from 200 on, of 10 from 20 on, else of 5; never 0.
    """
    step = next((step for least, step in ((1000, 100), (200, 50), (20, 10)) if count >= least), 5)
    return max(1, count // step * step)


def split_validation(unit_ids: Sequence[str], *, key: bytes, fraction: float) -> Flags:
    """Say which units serve validation, by a keyed hash of each unit's id.

    Args:
      unit_ids: lasting ids of the units.
      key: the site's secret, 16 to 64 bytes; the same for the life of the data.
      fraction: expected share of validation units, 0 to 1.

    Returns:
      (len(unit_ids),) True for validation.

    Guarantees:
      - A unit's side depends on its id, the key and the fraction alone: other units never move it.
      - A larger fraction only adds units to the validation side.

    Raises:
      PrivacyError: the key is too short to keep the split secret, or too long for BLAKE2b.
      DataError: the fraction is not between 0 and 1.
    """
    if not MINIMUM_KEY_BYTES <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise PrivacyError("the key of the validation split has not 16 to 64 bytes", hint="use 32 random bytes")
    if not 0 <= fraction <= 1:
        raise DataError(f"validation fraction is {fraction}", hint="give a number between 0 and 1")
    threshold = int(fraction * 2**64)
    return np.array([_hash(unit_id, key) < threshold for unit_id in unit_ids], dtype=np.bool_)


def _hash(unit_id: str, key: bytes) -> int:
    digest = hashlib.blake2b(unit_id.encode("utf-8", "surrogatepass"), key=key, digest_size=8, person=b"fedward-split")
    return int.from_bytes(digest.digest(), "big")


# ---- from a table to records -----------------------------------------------------
def load_records(data: DataConfig, labels: Sequence[str], *, source: str | None = None) -> Records:
    """Read and check the records of a task.

    Args:
      data: files and columns of the run file, or their like in a site file.
      labels: the public labels of the task; a record's label is its position in here.
      source: read this instead of ``data.train``.

    Returns:
      The records in the order of the file. Without ``data.unit`` every record is a unit, named by its row number.

    Raises:
      DataError: the table cannot be read, or a value is missing or not allowed; with column and row, never the value.
    """
    source = data.train if source is None else source
    wanted = (*data.text, data.label, *(name for name in (data.site, data.unit) if name))
    table = read_table(source, columns=tuple(dict.fromkeys(wanted)))
    texts = tuple(zip(*(_strings(table, name, source) for name in data.text), strict=True))
    ids = _strings(table, data.unit, source, read=as_id) if data.unit else [str(row + 1) for row in range(len(texts))]
    numbers = {unit_id: number for number, unit_id in enumerate(dict.fromkeys(ids))}
    return Records(
        texts=texts,
        labels=_label_numbers(_strings(table, data.label, source), labels, data.label, source),
        units=np.array([numbers[unit_id] for unit_id in ids], dtype=np.int64),
        unit_ids=tuple(numbers),
        sites=tuple(value.strip() for value in _strings(table, data.site, source)) if data.site else None,
    )


def read_unit_ids(data: DataConfig) -> tuple[tuple[str, ...] | None, int]:
    """Read who is in a table, and keep nothing else of it. ``read_table`` says what is parsed on the way.

    Args:
      data: file and columns.

    Returns:
      The lasting ids of the units in the order of their first row, or None without a unit column; and the number of
      units, of rows without a unit column.

    Raises:
      DataError: as ``load_records``.
    """
    column = data.unit or data.label
    table = read_table(data.train, columns=(column,))
    if data.unit is None:
        return None, len(table[column])
    ids = tuple(dict.fromkeys(_strings(table, data.unit, data.train, read=as_id)))
    return ids, len(ids)


def _strings(
    table: Mapping[str, list[Any]], column: str, source: str, *, read: Callable[[object], str | None] = as_text
) -> list[str]:
    return [_string(value, read, column, row, source) for row, value in enumerate(table[column], start=1)]


def _string(value: object, read: Callable[[object], str | None], column: str, row: int, source: str) -> str:
    try:
        text = read(value)
    except TypeError:
        hint = "fedward reads strings, numbers, truth values and dates"
        raise DataError(f"{source}: column {column!r} holds a list or object in row {row}", hint=hint) from None
    if text is None:
        hint = "fill the cell or leave the row out; rows count from 1, without a header"
        raise DataError(f"{source}: column {column!r} is empty in row {row}", hint=hint)
    return text


def _label_numbers(values: Sequence[str], labels: Sequence[str], column: str, source: str) -> Ints:
    numbers = {label: number for number, label in enumerate(labels)}
    for row, value in enumerate(values, start=1):
        if value not in numbers:
            raise DataError(
                f"{source}: column {column!r} holds a label in row {row} that task.labels does not declare",
                hint="`fedward-sim inspect FILE` shows the labels of a file",
            )
    return np.array([numbers[value] for value in values], dtype=np.int64)


# ---- small checks ----------------------------------------------------------------
def _frozen(values: npt.ArrayLike, kind: type[np.generic]) -> npt.NDArray[Any]:
    copy = np.array(values, dtype=kind)
    copy.setflags(write=False)
    return copy


def _require(condition: bool | np.bool_, what: str) -> None:
    if not condition:
        raise DataError(what, hint="build records with load_records, or pass parts that fit together")
