from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedward_client.commands.survey import survey
from fedward_client.data import load_records
from fedward_client.installation.folder import Folder
from fedward_common.errors import DataError
from support.sites import UNITS, new_site, notes

pytestmark = pytest.mark.filterwarnings("ignore")


def problems(folder: Folder) -> list[str]:
    return [str(problem) for problem in survey(folder.load_site(), folder.root).problems]


def test_a_good_table_has_no_problems(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site", record_id='"note_id"')
    seen = survey(folder.load_site(), folder.root)
    assert (seen.records, seen.units, seen.largest_unit, seen.problems) == (UNITS, UNITS, 1, ())


def test_units_are_patients_where_the_file_says_so(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site")
    by_patient(folder)
    seen = survey(folder.load_site(), folder.root)
    assert (seen.records, seen.units, seen.largest_unit) == (UNITS, UNITS // 2, 2)


def by_patient(folder: Folder) -> None:
    text = folder.site_file.read_text().replace('\nunit = "record"', '\nunit = "patient"')
    folder.site_file.write_text(text.replace('# unit = "patient_id"', 'unit = "patient"'))


@pytest.mark.parametrize("spellings", [[12.0, 12, " 12"], ["Jose\u0301", "Jos\u00e9"]])
def test_units_are_counted_as_training_counts_them(tmp_path: Path, spellings: list[object]) -> None:
    folder = new_site(tmp_path / "site", path='"notes.jsonl"')
    by_patient(folder)
    table = [{"note": "cough", "organ": "lung", "patient": value} for value in spellings]
    (folder.root / "notes.jsonl").write_text("\n".join(map(json.dumps, table)))
    site = folder.load_site()
    seen = survey(site, folder.root)
    assert (seen.units, seen.largest_unit) == (1, len(spellings))
    assert load_records(site.columns(folder.root), site.task.labels).unit_count == seen.units


def test_an_id_that_repeats_in_another_spelling_is_named(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site", path='"notes.jsonl"', record_id='"id"')
    table = [{"note": "cough", "organ": "lung", "id": value} for value in (12, 12.0)]
    (folder.root / "notes.jsonl").write_text("\n".join(map(json.dumps, table)))
    assert problems(folder) == ["row 2: column 'id' repeats an id of an earlier row"]


def test_every_wrong_cell_is_named_by_row_and_column_and_never_by_content(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site", record_id='"note_id"')
    lines = notes().splitlines()
    lines[3] = "   ,lung,p1,n2"
    lines[5] = "SECRET words,CANARY,p2,n4"
    lines[7] = "cough,skin,p3,n1 "
    (folder.root / "notes.csv").write_text("\n".join(lines) + "\n")
    assert problems(folder) == [
        "row 3: column 'note' is empty",
        "row 5: column 'organ' holds a label that task.labels does not declare",
        "row 7: column 'note_id' repeats an id of an earlier row",
    ]


def test_a_cell_that_holds_a_list_is_named(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site", path='"notes.jsonl"')
    table = [{"note": "cough", "organ": "lung"}, {"note": ["CANARY"], "organ": "skin"}, {"organ": "skin"}]
    (folder.root / "notes.jsonl").write_text("\n".join(map(json.dumps, table)))
    assert problems(folder) == ["row 2: column 'note' holds a list or object", "row 3: column 'note' is empty"]


def test_a_file_that_is_not_there_is_not_looked_for_in_the_network(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site", path='"imdb"')
    with pytest.raises(DataError, match="imdb does not exist"):
        survey(folder.load_site(), folder.root)
