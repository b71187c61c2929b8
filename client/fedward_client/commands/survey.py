"""A look at a site's data: every row that would stop training, by number, and how many units there are.

``load_records`` stops at the first wrong cell; this lists them all, so that a file is mended in one go. What it returns
stays at the site. A problem names row and column, never what stands there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward_client.installation.site_file import SiteFile
from fedward_client.tables import as_id, as_text, read_table
from fedward_common.errors import DataError

__all__ = ["RowProblem", "Survey", "survey"]


@dataclass(frozen=True, kw_only=True, order=True)
class RowProblem:
    """A cell that cannot be used. Rows count from 1, without a header."""

    row: int
    column: str
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"row {self.row}: column {self.column!r} {self.what}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What was seen: counts are the true ones and must not leave the site."""

    records: int
    units: int
    largest_unit: int
    problems: tuple[RowProblem, ...]


def survey(site: SiteFile, folder: Path) -> Survey:
    """Read a site's table and check every cell that training would use.

    Args:
      site: names file, columns and labels.
      folder: of the site; a relative path counts from it.

    Raises:
      DataError: the file cannot be read at all, or lacks a column.
    """
    source = site.source(folder)
    if not source.exists():
        raise DataError(
            f"{source} does not exist", hint="data.path counts from the folder of site.toml, where it is relative"
        )
    columns = site.columns(folder)
    wanted = (*columns.text, columns.label, *((columns.unit,) if columns.unit else ()))
    table = read_table(str(source), columns=tuple(dict.fromkeys(wanted)))
    texts = {name: [_text(value, as_text) for value in table[name]] for name in table}
    rows = len(texts[columns.label])
    ids = [_text(value, as_id) for value in table[columns.unit]] if columns.unit else [str(row) for row in range(rows)]
    units = Counter(value for value in ids if isinstance(value, str))
    return Survey(
        records=rows,
        units=len(units),
        largest_unit=max(units.values(), default=0),
        problems=tuple(sorted((*_cells(texts), *_labels(site, texts), *_repeated(site, ids)))),
    )


class _Nested:
    """A list or an object, which has no text."""


_Cell = str | None | _Nested


def _text(value: object, read: Callable[[object], str | None]) -> _Cell:
    try:
        return read(value)
    except TypeError:
        return _Nested()


def _cells(texts: Mapping[str, Sequence[_Cell]]) -> Iterator[RowProblem]:
    for column, values in texts.items():
        for row, value in enumerate(values, start=1):
            if value is None:
                yield RowProblem(row=row, column=column, what="is empty")
            elif isinstance(value, _Nested):
                yield RowProblem(row=row, column=column, what="holds a list or object")


def _labels(site: SiteFile, texts: Mapping[str, Sequence[_Cell]]) -> Iterator[RowProblem]:
    known = set(site.task.labels)
    for row, value in enumerate(texts[site.data.label], start=1):
        if isinstance(value, str) and value not in known:
            what = "holds a label that task.labels does not declare"
            yield RowProblem(row=row, column=site.data.label, what=what)


def _repeated(site: SiteFile, ids: Sequence[_Cell]) -> Iterator[RowProblem]:
    seen: set[str] = set()
    column = site.data.record_id
    for row, value in enumerate(ids, start=1) if column else ():
        if isinstance(value, str):
            if value in seen:
                yield RowProblem(row=row, column=str(column), what="repeats an id of an earlier row")
            seen.add(value)
