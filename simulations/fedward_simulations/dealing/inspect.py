"""What the columns of an unknown data file hold.

It is for a simulator's own data: a summary holds values and counts. This module prints nothing and knows nothing of
models or rounds.

Example:
    >>> table = {"note": [f"the patient of day {day} has a cough" for day in range(60)], "flu": ["yes", "no"] * 30}
    >>> summary = summarise(table)
    >>> [(column.name, column.kind.value) for column in summary.columns]
    [('note', 'text'), ('flu', 'category')]
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from fedward_client.tables import as_text, read_table
from fedward_common.errors import DataError
from fedward_simulations.dealing.sources import built_in, is_built_in

__all__ = ["Column", "Kind", "Summary", "inspect_file", "summarise"]


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
    """A whole file: its rows and columns, and the table itself for what no single column tells."""

    rows: int
    columns: tuple[Column, ...]
    table: Mapping[str, Sequence[object]] = field(repr=False, compare=False)

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


COUNTED_VALUES = 1000
NUMERIC_CATEGORIES = 20  # more distinct numbers than these are a measurement, not a class
TEXT_WORDS = 4


def inspect_file(source: str) -> Summary:
    """Summarise every column of a local file, a hub data set or the built-in data.

    Raises:
      DataError: the table cannot be read.
    """
    if not is_built_in(source):
        return summarise(read_table(source))
    texts, labels = built_in(source)
    return summarise({"text": texts, "label": labels})


def summarise(table: Mapping[str, Sequence[object]]) -> Summary:
    """Summarise columns of equal length."""
    columns = tuple(_column(name, values) for name, values in table.items())
    return Summary(rows=max((len(values) for values in table.values()), default=0), columns=columns, table=table)


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
