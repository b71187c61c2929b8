"""A site's records: read from one table, checked, grouped into privacy units and split by a keyed hash.

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

import contextlib
import csv
import datetime
import decimal
import gzip
import hashlib
import json
import logging
import math
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_common.config import DataConfig
from fedward_common.errors import DataError, PrivacyError

__all__ = ["Records", "SiteData", "as_text", "load_records", "nominal", "read_table", "split_validation"]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?::[\w.\[\]:%+-]+)?")
LOOKS_LIKE_A_FILE = re.compile(r"\.[A-Za-z]\w{0,9}$")
KNOWN = "fedward reads .csv, .tsv, .json, .jsonl, .ndjson and .parquet, each also with .gz"
SHOWN_COLUMNS = 40
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

    Raises:
      DataError: ``validation`` has not one entry a unit, or ``nominal_units`` is below 1.
    """

    records: Records
    nominal_units: int
    validation: Flags

    def __post_init__(self) -> None:
        """Copy and check the flags, and lay out the records of each unit side by side."""
        object.__setattr__(self, "validation", _frozen(self.validation, np.bool_))
        _require(self.validation.shape == (self.records.unit_count,), "validation flags do not match the units")
        _require(self.nominal_units >= 1, "nominal_units is below 1")

    @cached_property
    def training_units(self) -> Ints:
        """Unit numbers that may enter a training step."""
        return _frozen(np.flatnonzero(~self.validation), np.int64)

    @cached_property
    def validation_units(self) -> Ints:
        """Unit numbers that serve validation only."""
        return _frozen(np.flatnonzero(self.validation), np.int64)

    @cached_property
    def _by_unit(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.records.units, kind="stable")
        sizes = np.bincount(self.records.units, minlength=self.records.unit_count)
        return _frozen(order, np.int64), _frozen(np.concatenate(([0], np.cumsum(sizes))), np.int64)

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
    ids = (
        [value.strip() for value in _strings(table, data.unit, source)]
        if data.unit
        else [str(row + 1) for row in range(len(texts))]
    )
    numbers = {unit_id: number for number, unit_id in enumerate(dict.fromkeys(ids))}
    return Records(
        texts=texts,
        labels=_label_numbers(_strings(table, data.label, source), labels, data.label, source),
        units=np.array([numbers[unit_id] for unit_id in ids], dtype=np.int64),
        unit_ids=tuple(numbers),
        sites=tuple(value.strip() for value in _strings(table, data.site, source)) if data.site else None,
    )


def as_text(value: object) -> str | None:
    """The text of a cell, or None where the cell is empty (null, NaN, or white space alone).

    Raises:
      TypeError: a list, an object or bytes.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float | decimal.Decimal | datetime.date | datetime.time):
        raise TypeError(f"a cell of type {type(value).__name__} has no text")
    text = str(value)
    return text if text.strip() else None


def _strings(table: Mapping[str, list[Any]], column: str, source: str) -> list[str]:
    return [_string(value, column, row, source) for row, value in enumerate(table[column], start=1)]


def _string(value: object, column: str, row: int, source: str) -> str:
    try:
        text = as_text(value)
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


# ---- from a file to a table ------------------------------------------------------
def read_table(source: str, *, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Read a table, all but JSON through Hugging Face ``datasets``, leaving no copy in its cache.

    JSON is parsed here: where the types in a column differ, that library takes the string ``"007"`` for the number 7.

    Args:
      source: a local CSV, TSV, JSON (lines) or Parquet file, plain or gzip; or else a hub name, ``name``, ``org/name``
        or ``org/name:split`` (default split ``train``). Cells of CSV and TSV are strings as they stand in the file;
        what a JSON row leaves out is None.
      columns: names wanted, in this order; None for all.

    Returns:
      Column name to its values, all of one length, at least one row. Class numbers of hub data come as class names.

    Guarantees:
      - No copy of a local file is left on disk, also after an error. (Hub data stays in the hub client's cache.)
      - No code that comes with a data set runs.

    Raises:
      DataError: no such file, unknown format, damaged or empty file, missing column, hub out of reach.
    """
    with tempfile.TemporaryDirectory(prefix="fedward-") as folder, _quiet(), _explained(source):
        private = Path(folder)
        return _read_local(source, columns, private) if _is_local(source) else _read_hub(source, columns, private)


def _choose(source: str, present: Sequence[str], wanted: Sequence[str] | None, rows: int) -> Sequence[str]:
    if not rows:
        raise _no_records(source)
    for name in wanted or ():
        if name not in present:
            shown = ", ".join(repr(column) for column in present[:SHOWN_COLUMNS])
            raise DataError(f"{source} has no column {name!r}", hint=f"its columns: {shown}")
    return wanted or present


def _is_local(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{source} is a folder", hint=f"name one file; {KNOWN}")
    if path.exists():
        return True
    if HUB_NAME.fullmatch(source) and not LOOKS_LIKE_A_FILE.search(source.partition(":")[0]):
        return False
    raise DataError(f"{source} does not exist", hint="paths count from the current folder")


def _read_local(source: str, columns: Sequence[str] | None, private: Path) -> dict[str, list[Any]]:
    suffix = _suffix(source)
    kind = SUFFIXES[suffix]
    # a link under a plain name: the library would take brackets and stars of the real one for a pattern
    path = private / f"table{suffix}"
    _place(Path(source), path)
    if not path.stat().st_size:
        raise _no_records(source)
    if kind == "json":
        return _read_json(path, source, columns)
    options = _csv_options(path, source) if kind == "csv" else {}
    return _load(source, columns, private, kind, data_files={"train": [str(path)]}, split="train", **options)


def _suffix(source: str) -> str:
    suffix = Path(source.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(f"{source} has an unknown ending", hint=KNOWN)
    return suffix


def _place(source: Path, target: Path) -> None:
    if not source.name.lower().endswith(".gz"):
        target.symlink_to(source.resolve())
        return
    with gzip.open(source) as packed, target.open("wb") as plain:
        shutil.copyfileobj(packed, plain)


def _load(source: str, columns: Sequence[str] | None, private: Path, name: str, **options: Any) -> dict[str, list[Any]]:
    import datasets

    table = datasets.load_dataset(name, cache_dir=str(private / "cache"), **options)
    chosen = _choose(source, table.column_names, columns, table.num_rows)
    return {column: _class_names(table[column][:], table.features[column]) for column in chosen}


def _class_names(values: list[Any], feature: Any) -> list[Any]:
    names = getattr(feature, "names", None)
    return values if names is None else [names[value] if value is not None and value >= 0 else None for value in values]


def _read_json(path: Path, source: str, columns: Sequence[str] | None) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        text = stream.read()
    array = text.lstrip().startswith("[")
    rows = json.loads(text) if array else [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is no object")
    if "\\ud" in text.lower():
        json.dumps(rows, ensure_ascii=False).encode()  # half a surrogate pair would fail only in the tokenizer
    present = list(dict.fromkeys(key for row in rows for key in row))
    return {name: [row.get(name) for row in rows] for name in _choose(source, present, columns, len(rows))}


def _no_records(source: str) -> DataError:
    return DataError(f"{source} has no records", hint="it must hold at least one row, in CSV and TSV below a header")


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Whatever a parser throws may quote a record: only its class is looked at, and it is not passed on."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        what, hint = _reason(error)
        raise DataError(f"{source} cannot be read: {what}", hint=hint) from None


def _reason(error: Exception) -> tuple[str, str]:
    causes = [error, *_causes(error)]
    if any(isinstance(cause, UnicodeError) for cause in causes):
        return "it is not UTF-8", "save it with the encoding UTF-8"
    if any(isinstance(cause, EOFError | gzip.BadGzipFile | zlib.error) for cause in causes):
        return "it is not a whole gzip file", "copy or compress it again"
    system = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system:
        return system, "check that you may read the file and that the disk has room"
    return "it is damaged or not in its format", "check that it is complete and that its ending fits its content"


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _csv_options(path: Path, source: str) -> dict[str, Any]:
    """Check that every row has as many cells as the header, which pandas lets pass, and ask for cells as strings."""
    import datasets

    separator = SEPARATORS[path.suffix]
    with path.open(encoding="utf-8-sig", newline="") as lines, _long_fields():
        rows = (row for row in csv.reader(lines, delimiter=separator, strict=True) if row)
        header = [name or f"column {number}" for number, name in enumerate(next(rows, []), start=1)]
        lengths = [len(cells) for cells in rows]
    ragged = next((row for row, length in enumerate(lengths, start=1) if length != len(header)), None)
    if not lengths:
        raise _no_records(source)
    if len(set(header)) != len(header):
        raise DataError(f"{source}: two columns share a name", hint="give every column a name of its own")
    if ragged is not None:
        hint = "a text that holds the separator, a quote or a line break must be quoted"
        raise DataError(f"{source}: row {ragged} has not as many cells as the header", hint=hint)
    features = datasets.Features({name: datasets.Value("string") for name in header})
    return {"sep": separator, "names": header, "header": 0, "features": features, "keep_default_na": False}


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_hub(source: str, columns: Sequence[str] | None, private: Path) -> dict[str, list[Any]]:
    name, _, split = source.partition(":")
    try:
        return _load(source, columns, private, name, split=split or "train")
    except DataError:
        raise
    except Exception:  # offline, unknown, gated or with code of its own: the same remedy
        raise DataError(
            f"{source} is no local file and no data set that could be fetched under this name",
            hint="check the path, or the name, its split (org/name:split) and the network",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor log lines nor warnings: the libraries' own quote what they failed on."""
    import datasets
    import huggingface_hub.utils

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    barred = [tool for tool in (datasets.utils, huggingface_hub.utils) if not tool.are_progress_bars_disabled()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            for tool in barred:
                tool.disable_progress_bars()
            yield
        finally:
            for tool in barred:
                tool.enable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# ---- small checks ----------------------------------------------------------------
def _frozen(values: npt.ArrayLike, kind: type[np.generic]) -> npt.NDArray[Any]:
    copy = np.array(values, dtype=kind)
    copy.setflags(write=False)
    return copy


def _require(condition: bool | np.bool_, what: str) -> None:
    if not condition:
        raise DataError(what, hint="build records with load_records, or pass parts that fit together")
