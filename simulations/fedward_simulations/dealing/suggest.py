"""A run file for an unknown data file: which columns serve as what, and defaults that a first run can use.

It is for a simulator's own data: a run file derived from data reveals some of it.

Example:
    >>> from fedward_simulations.dealing.inspect import summarise
    >>> table = {"note": [f"the patient of day {day} has a cough" for day in range(60)], "flu": ["yes", "no"] * 30}
    >>> suggest(summarise(table), "notes.csv").task.labels
    ('no', 'yes')
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import numpy as np
from pydantic import ValidationError

from fedward_client.data import Records
from fedward_client.tables import as_id, as_text
from fedward_common.config import DataConfig, PartitionConfig, PartitionMethod, PrivacyConfig, RunConfig, TaskConfig
from fedward_common.errors import DataError
from fedward_common.privacy.guarantee import Unit
from fedward_simulations.dealing.inspect import Column, Kind, Summary
from fedward_simulations.dealing.partition import holdout, partition
from fedward_simulations.dealing.sources import is_built_in

__all__ = ["suggest"]

TEXT_NAMES = "text note notes report narrative document sentence utterance message query phrase content review body"
LABEL_NAMES = "label labels class target category intent outcome diagnosis sentiment topic chapter answer y"
SITE_NAMES = "site hospital center centre clinic institution institute facility organisation organization"
SITE_NAMES += " region country county department ward"
PATIENT_NAMES = "patient subject mrn uniquepid pid participant"
PERSON_NAMES = "person user customer client member account author speaker"
TAILS = "id ids no nr num number name code key ref label"
PAIRS = "sentence1+sentence2 premise+hypothesis question1+question2 question+sentence question+passage"
PAIRS += " question+context question+answer texta+textb text1+text2 title+abstract"
SITE_COUNTS = range(2, 201)
SITE_ROWS = 20
MOST_LABELS = 1000
LONGEST_LABEL = 200
PERSONS = 20
RECORDS_PER_UNIT = 4
UNITS_PER_SITE = 50
TEST_FRACTION = DataConfig.model_fields["test_fraction"].default
SEED = RunConfig.model_fields["seed"].default


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
      DataError: no column can serve as text or as label, or a named one does not exist or cannot serve.
    """
    if is_built_in(source):  # its columns are known, also of a prefix too short to look like anything
        text, label = text or ("text",), label or "label"
    units = _named(summary, unit) or _unit_column(summary)
    sites, least = _sites(summary, _named(summary, site), units)
    taken = [column for column in (units, sites) if column]
    texts = [summary.column(name) for name in text] or _text_columns(summary, label)
    labels = _named(summary, label) or _label_column(summary, [*taken, *texts])
    with _fitting():
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
            partition=_partition(summary, data, least, units),
            privacy=_privacy(summary, units),
        )


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:  # its text quotes what does not fit: without a header line, a record
        if error.errors()[0]["loc"] == ("train",):
            raise DataError("the file's path is too long for a run file", hint="call fedward-sim from nearer") from None
        hint = "names are of 1 to 200 characters, and two columns at most are read; is the first line the header?"
        raise DataError("the file's columns do not fit into a run file", hint=hint) from None


def _named(summary: Summary, name: str | None) -> Column | None:
    column = None if name is None else summary.column(name)
    if column is not None and column.kind is Kind.NESTED:
        raise DataError(f"column {name!r} holds lists or objects", hint="fedward reads text, numbers and dates")
    return column


def _unit_column(summary: Summary) -> Column | None:
    for column in _by_name(summary.columns, PATIENT_NAMES):
        if column.distinct > 1:
            return column
    for column in _by_name(summary.columns, PERSON_NAMES):
        if column.distinct >= PERSONS and _repeats(summary, column):
            return column
    return None


def _sites(summary: Summary, named: Column | None, unit: Column | None) -> tuple[Column | None, int]:
    """The column that sites follow, and the training units of the smallest site; 0 where there is no such column."""
    for column in [named] if named else _site_columns(summary, unit):
        if least := _smallest_site(summary, column, unit):
            return column, least
    if named:
        what = f"some value of column {named.name!r} keeps no unit for training, and would be an empty site"
        raise DataError(what, hint="name a coarser column, or none")
    return None, 0


def _site_columns(summary: Summary, unit: Column | None) -> Iterator[Column]:
    for column in _by_name(summary.columns, SITE_NAMES):
        large = all(count >= SITE_ROWS for _, count in column.counts)
        if column is not unit and column.distinct in SITE_COUNTS and column.counts and large and not column.empty:
            yield column


def _smallest_site(summary: Summary, site: Column, unit: Column | None) -> int:
    """How many units the smallest site trains on: those that a run sets aside and moves are gone; 0 for no such run."""
    records = _blank_records(summary, site, unit)
    natural = PartitionConfig(method=PartitionMethod.NATURAL, minimum_units=1)
    try:
        kept, _ = holdout(records, fraction=TEST_FRACTION, seed=SEED)
        train = records.select(kept)
        return min(len(np.unique(train.units[rows])) for rows in partition(train, natural, seed=SEED).values())
    except DataError:
        return 0


def _blank_records(summary: Summary, site: Column, unit: Column | None) -> Records:
    """The rows with a site and a unit, numbered as ``load_records`` does it; without texts and labels."""
    homes = [as_text(value) for value in summary.table[site.name]]
    ids = [as_id(value) for value in summary.table[unit.name]] if unit else [str(row) for row in range(len(homes))]
    pairs = [(home.strip(), one) for home, one in zip(homes, ids, strict=True) if home is not None and one is not None]
    numbers = {one: number for number, one in enumerate(dict.fromkeys(one for _, one in pairs))}
    units = np.array([numbers[one] for _, one in pairs], np.int64)
    sites = tuple(home for home, _ in pairs)
    return Records(texts=((),) * len(pairs), labels=0 * units, units=units, unit_ids=tuple(numbers), sites=sites)


def _text_columns(summary: Summary, label: str | None) -> list[Column]:
    free = [column for column in summary.columns if column.kind is Kind.TEXT and column.name != label]
    plain = {_plain(column.name): column for column in summary.columns if column.kind is not Kind.NESTED}
    for first, second in (pair.split("+") for pair in PAIRS.split()):
        if {first, second} <= plain.keys() and all(plain[name] in free for name in (first, second)):
            return [plain[first], plain[second]]
    candidates = _by_name(free, TEXT_NAMES) or free
    if not candidates:
        raise DataError("no column looks like free text", hint="name it: --text COLUMN")
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
        raise DataError("no column looks like a label", hint="name it: --label COLUMN")
    return min(classes, key=lambda column: (column.empty, column.distinct))


def _is_class(column: Column) -> bool:
    values = [value for value, _ in column.counts]
    return 2 <= len(values) <= MOST_LABELS and all(len(value) <= LONGEST_LABEL for value in values)


def _label_values(column: Column) -> tuple[str, ...]:
    if not _is_class(column):
        hint = "a label column holds 2 to 1,000 distinct short values"
        raise DataError(f"column {column.name!r} does not look like a label", hint=hint)
    return tuple(sorted(value for value, _ in column.counts))


def _partition(summary: Summary, data: DataConfig, least: int, unit: Column | None) -> PartitionConfig:
    if least:
        # half of what the smallest site has: another seed sets other units aside for testing
        return PartitionConfig(method=PartitionMethod.NATURAL, minimum_units=max(1, min(20, least // 2)))
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
