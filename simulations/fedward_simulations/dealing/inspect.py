"""From an unknown data file to a run file that works: what its columns hold, and which serves as what.

It is for a simulator's own data: a summary holds values and counts, and a run file derived from data reveals some of
them, which the file says in its first lines. This module prints nothing and knows nothing of models or sites.

Example:
    >>> table = {"note": [f"the patient of day {day} has a cough" for day in range(60)], "flu": ["yes", "no"] * 30}
    >>> summary = summarise(table)
    >>> [(column.name, column.kind.value) for column in summary.columns]
    [('note', 'text'), ('flu', 'category')]
    >>> suggest(summary, "notes.csv").task.labels
    ('no', 'yes')
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from statistics import median
from typing import Any

from fedward_client.tables import as_text, read_table
from fedward_common.config import (
    DataConfig,
    PartitionConfig,
    PartitionMethod,
    PrivacyConfig,
    RunConfig,
    TaskConfig,
)
from fedward_common.errors import DataError
from fedward_common.privacy.guarantee import Unit

__all__ = ["Column", "Kind", "Summary", "inspect_file", "render_toml", "suggest", "summarise"]


class Kind(StrEnum):
    """What a column seems to hold."""

    TEXT = "text"  # free text
    CATEGORY = "category"  # values that come again
    ID = "id"  # short values, nearly all distinct
    NUMBER = "number"  # numbers that are no categories
    CONSTANT = "constant"  # one value, or none
    NESTED = "nested"  # lists or objects, which fedward does not read


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a file.

    Attributes:
      name: as in the file.
      kind: what it seems to hold.
      distinct: number of distinct values, empty cells not counted.
      empty: number of empty cells.
      median_words: median number of words of the cells that are not empty.
      counts: value and count, most frequent first; only where there are at most 1,000 distinct values.
    """

    name: str
    kind: Kind
    distinct: int
    empty: int
    median_words: float
    counts: tuple[tuple[str, int], ...]

    def common(self, count: int = 5) -> tuple[tuple[str, int], ...]:
        """The most frequent values of a category with their counts; nothing for other kinds."""
        return self.counts[:count] if self.kind is Kind.CATEGORY else ()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole file: its rows and columns."""

    rows: int
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
          DataError: there is none; the hint lists those there are.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(repr(column.name) for column in self.columns)
        raise DataError(f"the file has no column {name!r}", hint=f"its columns: {names}")


# ---- looking -----------------------------------------------------------------------
COUNTED_VALUES = 1000
NUMERIC_CATEGORIES = 20  # more distinct numbers than these are a measurement, not a class
TEXT_WORDS = 4


def inspect_file(source: str) -> Summary:
    """Summarise every column of a local file or hub data set.

    Raises:
      DataError: the table cannot be read.
    """
    return summarise(read_table(source))


def summarise(table: Mapping[str, Sequence[object]]) -> Summary:
    """Summarise columns of equal length."""
    columns = tuple(_column(name, values) for name, values in table.items())
    return Summary(rows=max((len(values) for values in table.values()), default=0), columns=columns)


def _column(name: str, values: Sequence[object]) -> Column:
    try:
        cells = [text for value in values if (text := as_text(value)) is not None]
    except TypeError:
        return Column(name=name, kind=Kind.NESTED, distinct=0, empty=0, median_words=0.0, counts=())
    counts = Counter(cells)
    words = float(median(len(cell.split()) for cell in cells)) if cells else 0.0
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(counts) <= COUNTED_VALUES else []
    return Column(
        name=name,
        kind=_kind(counts, words),
        distinct=len(counts),
        empty=len(values) - len(cells),
        median_words=words,
        counts=tuple(ranked),
    )


def _kind(counts: Counter[str], words: float) -> Kind:
    cells = counts.total()
    repeats = 2 * len(counts) <= cells
    if len(counts) <= 1:
        return Kind.CONSTANT
    if all(_is_number(value) for value in counts):
        return _kind_of_numbers(counts, cells)
    if repeats and (words < TEXT_WORDS or 5 * len(counts) <= cells):
        return Kind.CATEGORY
    return Kind.TEXT if words >= 2 else Kind.ID


def _kind_of_numbers(counts: Counter[str], cells: int) -> Kind:
    if len(counts) <= NUMERIC_CATEGORIES and 5 * len(counts) <= cells:
        return Kind.CATEGORY
    whole = all(re.fullmatch(r"\d+", value) for value in counts)
    return Kind.ID if whole and len(counts) == cells else Kind.NUMBER


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# ---- choosing ----------------------------------------------------------------------
TEXT_NAMES = "text note notes report narrative document sentence utterance message query phrase content review body"
LABEL_NAMES = "label labels class target category intent outcome diagnosis sentiment topic chapter answer y"
SITE_NAMES = "site hospital center centre clinic institution institute facility organisation organization"
SITE_NAMES += " region country county department ward"
PATIENT_NAMES = "patient subject mrn uniquepid pid participant"
PERSON_NAMES = "person user customer client member account author speaker"
TAILS = "id ids no nr num number name code key ref label"
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("texta", "textb"),
    ("text1", "text2"),
    ("title", "abstract"),
)
SITE_COUNTS = range(2, 201)
SITE_ROWS = 20
MOST_LABELS = 1000
LONGEST_LABEL = 200
PERSONS = 20
RECORDS_PER_UNIT = 4
UNITS_PER_SITE = 50


def suggest(
    summary: Summary,
    source: str,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    site: str | None = None,
    unit: str | None = None,
) -> RunConfig:
    """Choose columns and defaults that make a first run work.

    Args:
      summary: of the file.
      source: the file or hub name that goes into ``data.train``.
      text: text columns, where the choice is not to be made here.
      label: the label column, likewise.
      site: the site column, likewise.
      unit: the column of the privacy unit, likewise.

    Returns:
      A run file; what it does not set stays at its default.

    Raises:
      DataError: no column can serve as text or as label, or a named one does not exist.
    """
    units = _named(summary, unit) or _unit_column(summary)
    sites = _named(summary, site) or _site_column(summary, units)
    taken = [column for column in (units, sites) if column]
    texts = [summary.column(name) for name in text] or _text_columns(summary, label)
    labels = _named(summary, label) or _label_column(summary, [*taken, *texts])
    data = DataConfig(
        train=source,
        text=tuple(column.name for column in texts),
        label=labels.name,
        site=sites.name if sites else None,
        unit=units.name if units else None,
    )
    return RunConfig(
        schema_version=1,
        name=_run_name(source),
        task=TaskConfig(labels=_label_values(labels)),
        data=data,
        partition=_partition(summary, data, sites, units),
        privacy=_privacy(summary, units),
    )


def _named(summary: Summary, name: str | None) -> Column | None:
    return None if name is None else summary.column(name)


def _unit_column(summary: Summary) -> Column | None:
    for column in _by_name(summary.columns, PATIENT_NAMES):
        if column.distinct > 1:
            return column
    for column in _by_name(summary.columns, PERSON_NAMES):
        if column.distinct >= PERSONS and _repeats(summary, column):
            return column
    return None


def _site_column(summary: Summary, unit: Column | None) -> Column | None:
    for column in _by_name(summary.columns, SITE_NAMES):
        large = all(count >= SITE_ROWS for _, count in column.counts)
        if column is not unit and column.distinct in SITE_COUNTS and column.counts and large and not column.empty:
            return column
    return None


def _text_columns(summary: Summary, label: str | None) -> list[Column]:
    free = [column for column in summary.columns if column.kind is Kind.TEXT and column.name != label]
    plain = {_plain(column.name): column for column in summary.columns if column.kind is not Kind.NESTED}
    for first, second in PAIRS:
        if {first, second} <= plain.keys() and all(plain[name] in free for name in (first, second)):
            return [plain[first], plain[second]]
    candidates = _by_name(free, TEXT_NAMES) or free
    if not candidates:
        raise DataError("no column looks like free text", hint="name the text column yourself")
    return [max(candidates, key=lambda column: column.median_words)]


def _label_column(summary: Summary, taken: Iterable[Column]) -> Column:
    names = {column.name for column in taken}
    short = [column for column in summary.columns if column.name not in names and _is_class(column)]
    for column in _by_name(short, LABEL_NAMES):
        if column.kind is Kind.CATEGORY or (column.kind is Kind.ID and _repeats(summary, column)):
            return column
    elsewhere = _by_name(short, f"{SITE_NAMES} {PATIENT_NAMES} {PERSON_NAMES}")
    classes = [column for column in short if column.kind is Kind.CATEGORY and column not in elsewhere]
    if not classes:
        raise DataError("no column looks like a label", hint="name the label column yourself")
    return min(classes, key=lambda column: (column.empty, column.distinct))


def _is_class(column: Column) -> bool:
    values = [value for value, _ in column.counts]
    return 2 <= len(values) <= MOST_LABELS and all(len(value) <= LONGEST_LABEL for value in values)


def _label_values(column: Column) -> tuple[str, ...]:
    if not _is_class(column):
        hint = "a label column holds 2 to 1,000 distinct short values"
        raise DataError(f"column {column.name!r} does not look like a label", hint=hint)
    return tuple(sorted(value for value, _ in column.counts))


def _partition(summary: Summary, data: DataConfig, site: Column | None, unit: Column | None) -> PartitionConfig:
    if site:
        # rows of the smallest site, less what testing and several records of one patient take away
        least = min(count for _, count in site.counts) // RECORDS_PER_UNIT
        return PartitionConfig(method=PartitionMethod.NATURAL, minimum_units=max(1, min(20, least)))
    left = (1 - data.test_fraction) * (unit.distinct if unit else summary.rows)
    return PartitionConfig(sites=max(1, min(10, int(left / UNITS_PER_SITE))))


def _privacy(summary: Summary, unit: Column | None) -> PrivacyConfig:
    delta = min(1e-5, float(f"1e{math.floor(math.log10(1 / (10 * max(1, summary.rows))))}"))
    if unit is None:
        return PrivacyConfig(epsilon=8.0, delta=delta)
    cap = RECORDS_PER_UNIT if _repeats(summary, unit) else 1
    return PrivacyConfig(unit=Unit.PATIENT, epsilon=8.0, delta=delta, max_records_per_unit=cap)


def _repeats(summary: Summary, column: Column) -> bool:
    return column.distinct < summary.rows - column.empty


def _run_name(source: str) -> str:
    stem = PurePath(source.partition(":")[0]).name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:64] or "run"


def _by_name(columns: Iterable[Column], names: str) -> list[Column]:
    """Columns whose name ends in one of these words, like ``treating_hospital_id``, in the order of the words."""
    order = {word: rank for rank, word in enumerate(names.split())}
    pattern = re.compile(f"({'|'.join(order)})(?:s|{'|'.join(TAILS.split())})?")
    matches = [(pattern.fullmatch(_last_word(column.name)), column) for column in columns]
    ranked = [(order[match[1]], column) for match, column in matches if match]
    return [column for _, column in sorted(ranked, key=lambda item: item[0])]


def _last_word(name: str) -> str:
    """The last word that says what the column is about: ``age`` of ``patient_age``, ``patient`` of ``PatientID``."""
    words = _words(name)
    while len(words) > 1 and words[-1] in TAILS.split():
        words.pop()
    return words[-1] if words else ""


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z0-9]+", spaced.lower())


def _plain(name: str) -> str:
    return "".join(_words(name))


# ---- writing -----------------------------------------------------------------------
HEADER = """\
# Derived from the data by `fedward-sim inspect`: the labels and the choice of columns reveal something about it.
# For a real federation labels and columns are agreed beforehand, without a look at any site's records.
# Keys that are not here have the defaults of docs/run-file.md.
"""
# these are written even where they have their default, because a first user will want to turn them
COMMENTS = {
    "schema": "",
    "name": "names the output folder",
    "seed": "the same seed repeats the simulation bit by bit",
    "data.train": "",
    "data.test_fraction": "share of the units set aside for testing before sites are made",
    "data.text": "one column, or two that are read as a pair",
    "data.label": "",
    "data.site": "the partition below follows this column",
    "data.unit": "all records with one value here are protected together",
    "task.labels": "",
    "partition.method": "dirichlet (label skew), iid, pathological, quantity, or natural (data.site)",
    "partition.alpha": "smaller: labels more unequal between sites",
    "partition.sites": "virtual sites",
    "partition.minimum_units": "fewer at a site is an error",
    "privacy.unit": "what is protected: record or patient",
    "privacy.epsilon": "for the whole run at each site, metrics included",
    "privacy.delta": "well below 1 / units",
    "privacy.max_records_per_unit": "records of one unit that enter a step",
}
DIRICHLET_ONLY = ("partition.alpha", "partition.sites")
LINE = 100


def render_toml(config: RunConfig, summary: Summary) -> str:
    """Write a run file with short comments.

    Args:
      config: what to write; values at their default are left out, unless a first user will want to turn them.
      summary: of the file that ``config`` was derived from.

    Returns:
      TOML.

    Guarantees:
      - ``RunConfig.from_toml`` reads it back to an equal config.
      - Its first lines say that it is derived from the data.
    """
    everything = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    changed = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    described = COMMENTS | {f"data.{key}": note for key, note in _notes(config, summary).items()}
    table = _kept(everything, changed, "", lambda path: path in described and not _idle(path, config))
    return HEADER + "\n".join(_lines(table, "", described)) + "\n"


def _notes(config: RunConfig, summary: Summary) -> dict[str, str]:
    known = {column.name for column in summary.columns}
    words = [f"{summary.column(name).median_words:.0f}" for name in config.data.text if name in known]
    notes = {"train": f"{summary.rows} rows"} if known else {}
    if words:
        notes["text"] = f"{COMMENTS['data.text']}; median length {' and '.join(words)} words"
    return notes


def _idle(path: str, config: RunConfig) -> bool:
    return path in DIRICHLET_ONLY and config.partition.method is PartitionMethod.NATURAL


def _kept(
    everything: dict[str, Any], changed: dict[str, Any], above: str, wanted: Callable[[str], bool]
) -> dict[str, Any]:
    """The changed and the wanted keys, in the order of the schema."""
    result: dict[str, Any] = {}
    for key, value in everything.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            inner = _kept(value, changed.get(key, {}), f"{path}.", wanted)
            result |= {key: inner} if inner else {}
        elif key in changed or wanted(path):
            result[key] = value
    return result


def _lines(table: dict[str, Any], above: str, comments: Mapping[str, str]) -> list[str]:
    """Plain keys first, then tables, then lists of tables, as TOML demands."""
    lines: list[str] = []
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and not _holds_tables(value)}
    for key, value in plain.items():
        comment = comments.get(f"{above}{key}", "")
        lines.append(f"{key} = {_value(value)}" + (f"  # {comment}" if comment else ""))
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *_lines(value, f"{key}.", comments)]
    for key, value in table.items():
        for row in value if _holds_tables(value) else ():
            lines += ["", f"[[{key}]]", *_lines(row, f"{key}.", comments)]
    return lines


def _holds_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value(value: Any) -> str:
    if isinstance(value, list):
        flat = f"[{', '.join(_value(item) for item in value)}]"
        rows = "".join(f"    {_value(item)},\n" for item in value)
        return flat if len(flat) <= LINE else f"[\n{rows}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
