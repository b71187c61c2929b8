from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedward_client import trainers
from fedward_client.data import Records
from fedward_client.installation.opening import open_site
from fedward_client.tables import read_table
from fedward_client.trainers import Flags, SiteTrainers
from fedward_common.config import DataConfig, ModelConfig, Pooling
from fedward_common.modeling.base import Base, load_base
from fedward_common.privacy.randomness import SecureRandom
from fedward_common.round import RoundPlan
from support.hospital import PLAIN, Hospital

LABELS = ("lung", "skin")
PLAN = cast(RoundPlan, SimpleNamespace(terms=SimpleNamespace(metrics=SimpleNamespace(validation_fraction=0.5))))
RANDOM = SecureRandom()


def trainers_of(train: str, *, unit: str | None = None) -> SiteTrainers:
    """Of a site without a model."""
    return SiteTrainers(
        columns=DataConfig(train=train, text=("note",), label="organ", unit=unit),
        labels=LABELS,
        nominal_units=40,
        models={},
        pooling=Pooling.MEAN,
        max_tokens=32,
        split_key=b"k" * 32,
        randomness=RANDOM,
    )


def everyone(units: Sequence[str]) -> Flags:
    return np.ones(len(units), dtype=np.bool_)


def validation_notes(notes: Sequence[str], *, unit: str | None = None) -> set[str]:
    """The notes of a table, in this order, that serve validation; without a unit column its rows count from 1."""
    records = Records(
        texts=tuple((note,) for note in notes),
        labels=np.array([len(note) % 2 for note in notes]),
        units=np.arange(len(notes)),
        unit_ids=tuple(str(row + 1) for row in range(len(notes))),
        sites=None,
    )
    data = trainers_of("none", unit=unit)._data(records, PLAN, everyone)
    return {notes[row] for unit_ in data.validation_units for row in data.records_of(int(unit_))}


NOTES = [f"note {'x' * (number % 3)}{number}" for number in range(60)]


def test_without_ids_a_record_keeps_its_side_when_rows_are_sorted_anew_or_added() -> None:
    chosen = validation_notes(NOTES)
    assert 10 < len(chosen) < 50
    assert validation_notes(NOTES[::-1]) == chosen
    assert validation_notes(["a new first row", *NOTES]) - {"a new first row"} == chosen


def test_with_ids_the_id_alone_decides() -> None:
    """The same ids under other notes: the sides stay with the ids, here the row numbers."""
    first, second = validation_notes(NOTES, unit="id"), validation_notes(NOTES[::-1], unit="id")
    assert {NOTES.index(note) for note in first} == {NOTES[::-1].index(note) for note in second}


def test_the_randomness_is_the_one_that_was_given() -> None:
    assert trainers_of("none").randomness is RANDOM


def test_without_an_id_column_labels_are_counted_and_no_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedward_client import data

    file = tmp_path / "notes.csv"
    file.write_text("note,organ,id\ncough,lung,a\nrash,skin,b\n")
    asked: list[Any] = []

    def watched(source: str, *, columns: Sequence[str]) -> Any:
        asked.append(columns)
        return read_table(source, columns=columns)

    monkeypatch.setattr(data, "read_table", watched)
    assert trainers_of(str(file)).units() == (None, 2)
    assert trainers_of(str(file), unit="id").units() == (("a", "b"), 2)
    assert asked == [("organ",), ("id",)]


def test_the_model_stays_loaded_between_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ModelConfig] = []

    def counted(config: ModelConfig) -> Base:
        loaded.append(config)
        return load_base(config)

    monkeypatch.setattr(trainers, "load_base", counted)
    hospital = Hospital.make(tmp_path, stages=PLAIN)
    with open_site(hospital.root) as site:
        replies = [site.answer(hospital.plan_bytes(round=number)) for number in (1, 2)]
    assert [hospital.code(reply) for reply in replies] == [None, None]
    assert len(loaded) == 1
