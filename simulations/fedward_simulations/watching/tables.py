"""Plain tables for people and pipes: the columns of a data file, the metrics of an adapter.

Lines of text without escape codes. Names and values that a reader may need whole stand last in their line, so that a
narrow terminal wraps them and nothing is ever cut.

Example:
    >>> from fedward_simulations.dealing.inspect import summarise
    >>> for line in columns_lines(summarise({"flu": ["yes", "no", "no", "no"] * 2})):
    ...     print(line)
    8 rows
    <BLANKLINE>
    kind      distinct  empty  median words  column
    category         2      0             1  flu
    <BLANKLINE>
    Most common values of flu (2 in all)
      6  no
      2  yes
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedward_common.report import printable
from fedward_simulations.watching.lines import write_line

if TYPE_CHECKING:
    from fedward_simulations.dealing.inspect import Column, Summary

__all__ = ["aligned", "columns_lines", "metrics_lines", "print_columns", "print_metrics"]

GAP = "  "
PER_CLASS = ("precision", "recall", "f1")


def print_columns(summary: Summary) -> None:
    """What ``inspect`` found in a file, as plain text of any width: nothing is cut."""
    for line in columns_lines(summary):
        write_line(sys.stdout, line)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """What ``eval`` measured, as plain text of any width: nothing is cut."""
    for line in metrics_lines(metrics):
        write_line(sys.stdout, line)


def columns_lines(summary: Summary) -> list[str]:
    """Rows, one line a column, and the most common values of categories."""
    head = ("kind", "distinct", "empty", "median words", "column")
    rows = [
        (column.kind.value, f"{column.distinct:,}", f"{column.empty:,}", f"{column.median_words:g}", column.name)
        for column in summary.columns
    ]
    values = (line for column in summary.columns for line in _values(column))
    return ["1 row" if summary.rows == 1 else f"{summary.rows:,} rows", "", *aligned([head, *rows], left=1), *values]


def metrics_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The overall figures, then one line a class; keys that ``metrics`` lacks are left out."""
    known = (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("majority_accuracy", "commonest label"))
    facts = [(label, f"{metrics[key]:.4f}") for key, label in known if key in metrics]
    if "records" in metrics:
        facts.append(("records", f"{metrics['records']:,}"))
    classes = [
        (*(f"{row[key]:.4f}" for key in PER_CLASS), f"{row['support']:,.0f}", label)
        for label, row in metrics.get("per_class", {}).items()
    ]
    table = aligned([(*PER_CLASS, "support", "label"), *classes], left=0) if classes else []
    return [*(f"{label:<17}{figure}" for label, figure in facts), *[""] * bool(classes), *table]


def _values(column: Column) -> Iterable[str]:
    common = column.common()
    if not common:
        return
    yield ""
    yield f"Most common values of {printable(column.name)} ({column.distinct:,} in all)"
    yield from (f"  {line}" for line in aligned([(f"{count:,}", value) for value, count in common], left=0))


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of aligned cells: the first ``left`` columns and the last one to the left, the others to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        *figures, last = row
        padded = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(figures, widths, strict=False))
        ]
        lines.append(GAP.join([*padded, last]))
    return lines
