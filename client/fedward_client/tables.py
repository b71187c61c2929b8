"""Tables: a file or a hub data set as columns of values, whatever its format, without a trace of it left on disk.

Errors name columns, rows and files, never a value: what a parser throws may quote a record. This module does not know
what the columns mean.

Example:
    >>> as_text(7), as_text("  "), as_text(float("nan"))
    ('7', None, None)
    >>> as_id(12.0), as_id(" 12 "), as_id("12.0")
    ('12', '12', '12')
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import gzip
import json
import logging
import math
import re
import shutil
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedward_common.errors import DataError

__all__ = ["as_id", "as_text", "read_table"]

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?::[\w.\[\]:%+-]+)?")
LOOKS_LIKE_A_FILE = re.compile(r"\.[A-Za-z]\w{0,9}$")
KNOWN = "fedward reads .csv, .tsv, .json, .jsonl, .ndjson and .parquet, each also with .gz"
SHOWN_COLUMNS = 40
WHOLE = re.compile(r"(-?[0-9]{1,400})\.0+")  # how a column of integers is written once it went through floats


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
      - Of a local file only the columns wanted are kept. Of Parquet no other column is read; all of a CSV, TSV or JSON
        file is parsed, since nothing else finds its cells.
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
    options = _csv_options(path, source, columns) if kind == "csv" else _parquet_options(path, source, columns)
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


def _load(source: str, wanted: Sequence[str] | None, private: Path, name: str, **options: Any) -> dict[str, list[Any]]:
    import datasets

    table = datasets.load_dataset(name, cache_dir=str(private / "cache"), **options)
    chosen = _choose(source, table.column_names, wanted, table.num_rows)
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


def _parquet_options(path: Path, source: str, columns: Sequence[str] | None) -> dict[str, Any]:
    """Only what is wanted is read of the file; its footer alone says whether it is there."""
    import pyarrow.parquet

    if columns is None:
        return {}
    about = pyarrow.parquet.read_metadata(path)
    _choose(source, about.schema.to_arrow_schema().names, columns, about.num_rows)
    return {"columns": list(dict.fromkeys(columns))}


def _csv_options(path: Path, source: str, columns: Sequence[str] | None) -> dict[str, Any]:
    """Check that every row has as many cells as the header, which pandas lets pass, and ask for cells as strings.

    All cells are parsed, since only so a row's end is found; only those wanted are kept.
    """
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
    wanted = set(_choose(source, header, columns, len(lengths)))
    kept = [name for name in header if name in wanted]
    features = datasets.Features({name: datasets.Value("string") for name in kept})
    about = {"sep": separator, "names": header, "header": 0, "usecols": kept}
    return {**about, "features": features, "keep_default_na": False}


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


def as_id(value: object) -> str | None:
    """The lasting id in a cell, or None where the cell is empty.

    Guarantees:
      - One id has one spelling: without white space around it, in Unicode's NFC, and 12.0 as 12, also where it is text,
        so that it is the same whether a column is stored as text, as integers, as floats or as decimals. (Two ids that
        become one unit are protected together, which costs budget and no privacy.)

    Raises:
      TypeError: a list, an object or bytes.
    """
    if isinstance(value, float | decimal.Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    text = as_text(value)
    if text is None:
        return None
    text = unicodedata.normalize("NFC", text.strip())
    whole = WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole else text
