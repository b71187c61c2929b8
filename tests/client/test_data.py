"""Records, units, the keyed split, and the many ways in which a data file is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client import data
from fedward_client.data import Records, SiteData, load_records, nominal, read_unit_ids, split_validation
from fedward_client.tables import as_id, as_text, read_table
from fedward_common.config import DataConfig
from fedward_common.errors import DataError, PrivacyError
from support.shared import shared_rows

KEY = b"k" * 32
ROWS: list[dict[str, Any]] = [
    {"note": 'says "no", twice', "dx": "flu", "patient": "p2", "ward": "A"},
    {"note": "two\nlines", "dx": "cold", "patient": "p1", "ward": "A"},
    {"note": "ünïcode — 頭痛", "dx": "flu", "patient": "p2", "ward": "B"},
]
CONFIG = DataConfig(train="unused", text=("note",), label="dx", unit="patient", site="ward")
LABELS = ("cold", "flu")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Private folders are made in here, and none may be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def write_csv(path: Path, rows: list[dict[str, Any]] = ROWS, separator: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def write_array(path: Path) -> Path:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def packed(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def records_of_units(units: list[int]) -> Records:
    count = max(units, default=-1) + 1
    return Records(
        texts=tuple((f"text {row}",) for row in range(len(units))),
        labels=np.arange(len(units)) % 3,
        units=np.array(units, dtype=np.int64),
        unit_ids=tuple(f"unit {unit}" for unit in range(count)),
        sites=None,
    )


WRITERS: dict[str, Callable[[Path], Path]] = {
    ".csv": write_csv,
    ".tsv": lambda path: write_csv(path, separator="\t"),
    ".jsonl": write_lines,
    ".ndjson": write_lines,
    ".json": write_array,
    ".parquet": write_parquet,
}


class TestReadTable:
    @pytest.mark.parametrize("suffix", WRITERS)
    @pytest.mark.parametrize("zipped", ["", ".gz"])
    def test_every_format_gives_the_same_table(self, tmp_path: Path, suffix: str, zipped: str) -> None:
        path = WRITERS[suffix](tmp_path / f"notes{suffix}")
        path = packed(path) if zipped else path
        table = read_table(str(path), columns=["dx", "note"])
        assert table == {"dx": [row["dx"] for row in ROWS], "note": [row["note"] for row in ROWS]}
        assert list(table) == ["dx", "note"]
        assert list(read_table(str(path))) == list(ROWS[0])

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
    def test_only_the_columns_wanted_are_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
    ) -> None:
        import datasets

        copied: list[list[str]] = []
        load = datasets.load_dataset

        def watched(*arguments: Any, **options: Any) -> Any:
            table = load(*arguments, **options)
            copied.append(table.column_names)
            return table

        monkeypatch.setattr(datasets, "load_dataset", watched)
        path = WRITERS[suffix](tmp_path / f"notes{suffix}")
        assert read_table(str(path), columns=["patient"])["patient"] == [str(row["patient"]) for row in ROWS]
        assert copied == [["patient"]]

    def test_csv_cells_stay_as_they_stand_in_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,code\nNA,001\nnull,1.0\nTrue,\n", encoding="utf-8")
        table = read_table(str(tmp_path / "a.csv"))
        assert table == {"text": ["NA", "null", "True"], "code": ["001", "1.0", ""]}

    def test_byte_order_mark_blank_lines_and_nameless_columns(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf,text\r\n0,hi\r\n\r\n1,ho\r\n")
        assert read_table(str(tmp_path / "a.csv")) == {"column 1": ["0", "1"], "text": ["hi", "ho"]}

    def test_a_very_long_cell(self, tmp_path: Path) -> None:
        limit = csv.field_size_limit()
        rows = [{"text": "word " * 50_000, "label": "x"}]
        assert read_table(str(write_csv(tmp_path / "a.csv", rows)))["text"] == [rows[0]["text"]]
        assert csv.field_size_limit() == limit

    def test_more_rows_than_pandas_reads_at_once(self, tmp_path: Path) -> None:
        rows = [{"text": f"t{row}", "label": str(row)} for row in range(10_500)]
        assert read_table(str(write_csv(tmp_path / "a.csv", rows)))["label"][-1] == "10499"

    def test_json_cells_keep_their_types(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"a": 1, "b": "2020-01-01"}, {"a": "007", "b": None}, {"a": "[1]"}]
        rows.append({"a": 10**25, "b": True, "c": 1.5})
        table = read_table(str(write_lines(tmp_path / "a.jsonl", rows)))
        assert table == {name: [row.get(name) for row in rows] for name in "abc"}

    def test_json_columns_that_look_like_something_else(self, tmp_path: Path) -> None:
        rows = [{"type": "user", "message": "hi"}, {"type": "system", "message": "ho"}]
        assert read_table(str(write_lines(tmp_path / "a.jsonl", rows)))["message"] == ["hi", "ho"]

    @pytest.mark.parametrize("name", ["a[1]*?.csv", ".hidden.csv", "UPPER.CSV", "__dunder.csv"])
    def test_odd_file_names(self, tmp_path: Path, name: str) -> None:
        assert len(read_table(str(write_csv(tmp_path / name)))["dx"]) == 3

    @pytest.mark.parametrize("folder", ["plain", ".private"])
    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "a.csv")
        monkeypatch.chdir(tmp_path)
        assert len(read_table(f"{folder}/a.csv")["dx"]) == 3

    def test_no_copy_of_a_local_file_is_left_on_disk(self, tmp_path: Path) -> None:
        home, temporary = tmp_path / "home", tmp_path / "scratch"
        home.mkdir()
        temporary.mkdir()
        good = packed(write_csv(tmp_path / "a.csv"))
        (tmp_path / "b.jsonl").write_text('{"note": "half', encoding="utf-8")
        code = (
            "import sys; from fedward_client.tables import read_table\n"
            "for name in sys.argv[1:]:\n"
            "    try: read_table(name)\n"
            "    except Exception as error: print(error)\n"
            "print('torch' in sys.modules)"
        )
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
        done = subprocess.run(
            [sys.executable, "-c", code, str(good), str(tmp_path / "b.jsonl")],
            env={**keep, "HOME": str(home), "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "False" and "damaged" in done.stdout
        assert not done.stderr
        assert not [path for path in (*home.rglob("*"), *temporary.rglob("*")) if path.is_file()]

    def test_settings_of_the_library_come_back(self, tmp_path: Path) -> None:
        import datasets

        before = datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()
        read_table(str(write_csv(tmp_path / "a.csv")))
        assert (datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()) == before

    def test_nothing_is_printed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        read_table(str(write_csv(tmp_path / "a.csv")))
        assert capfd.readouterr() == ("", "")


CONTENT = "zebrafish"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.csv", b"", "no records"),
    "empty json": ("a.jsonl", b"", "no records"),
    "empty gz": ("a.jsonl.gz", gzip.compress(b""), "no records"),
    "header alone": ("a.csv", b"note,dx\n", "no records"),
    "empty array": ("a.json", b"[]", "no records"),
    "latin": ("a.csv", f"note,dx\n{CONTENT} é,x\n".encode("latin-1"), "UTF-8"),
    "latin json": ("a.jsonl", f'{{"note": "{CONTENT} é", "dx": 1}}\n'.encode("latin-1"), "UTF-8"),
    "long row": ("a.csv", f"note,dx\na,b\n{CONTENT},x,y\n".encode(), "row 2"),
    "long first row": ("a.csv", f"note,dx\n{CONTENT},x,y\na,b\n".encode(), "row 1"),
    "short row": ("a.csv", f"note,dx\na,b\n{CONTENT}\n".encode(), "row 2"),
    "open quote": ("a.csv", f'note,dx\n"{CONTENT},x\na,b\n'.encode(), "cannot be read"),
    "twins": ("a.csv", f"note,note\n{CONTENT},x\n".encode(), "share a name"),
    "cut gz": ("a.csv.gz", gzip.compress(b"note,dx\n" + os.urandom(9000).hex().encode() + b",x\n")[:-2000], "gzip"),
    "no gz": ("a.csv.gz", f"note,dx\n{CONTENT},x\n".encode(), "gzip"),
    "cut json": ("a.jsonl", f'{{"note": "a", "dx": 1}}\n{{"note": "{CONTENT}", "d'.encode(), "cannot be read"),
    "no json": ("a.jsonl", CONTENT.encode(), "cannot be read"),
    "half a pair": ("a.jsonl", b'{"note": "\\ud83d", "dx": 1}\n', "UTF-8"),
    "deep": ("a.json", b"[" * 100_000, "cannot be read"),
    "object": ("a.json", b'{"data":\n[{"note": "a"}]}', "cannot be read"),
    "no rows": ("a.jsonl", b"1\n2\n", "cannot be read"),
    "no parquet": ("a.parquet", CONTENT.encode(), "cannot be read"),
}


class TestBrokenFiles:
    @pytest.mark.parametrize("case", BROKEN)
    def test_each_gives_a_hint_and_no_content(
        self, tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        name, content, said = BROKEN[case]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said) as caught:
            read_table(str(tmp_path / name), columns=["note"])
        assert caught.value.hint
        assert CONTENT not in str(caught.value) + caught.value.hint
        assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)
        assert capfd.readouterr() == ("", "")

    def test_missing_file(self, tmp_path: Path) -> None:
        for name in (str(tmp_path / "none.csv"), "none.csv", "org/none.jsonl.gz", "./x", "a b"):
            with pytest.raises(DataError, match="does not exist"):
                read_table(name)

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a folder"):
            read_table(str(tmp_path))

    def test_unknown_ending(self, tmp_path: Path) -> None:
        (tmp_path / "a.xlsx").write_bytes(b"PK")
        with pytest.raises(DataError, match="unknown ending") as caught:
            read_table(str(tmp_path / "a.xlsx"))
        assert ".parquet" in caught.value.hint

    def test_missing_column_lists_the_others(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no column 'text'") as caught:
            read_table(str(write_csv(tmp_path / "a.csv")), columns=["dx", "text"])
        assert "'note', 'dx', 'patient', 'ward'" in caught.value.hint

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "a.csv")
        path.chmod(0)
        with pytest.raises(DataError, match="Permission denied"):
            read_table(str(path))


class TestHub:
    def test_name_split_and_class_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked: list[tuple[str, str]] = []
        classes = datasets.ClassLabel(names=["no", "yes"])
        features = datasets.Features({"text": datasets.Value("string"), "label": classes})
        table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)

        def load(name: str, *, split: str, cache_dir: str) -> Any:
            asked.append((name, split))
            return table

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert read_table("org/set:test[:10%]")["label"] == ["yes", "no", None]
        read_table("set")
        assert asked == [("org/set", "test[:10%]"), ("set", "train")]

    def test_out_of_reach(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        import datasets

        def load(name: str, **options: Any) -> Any:
            logging.getLogger("huggingface_hub.utils").error("the library logs")
            warnings.warn("the library talks", UserWarning, stacklevel=1)
            raise ConnectionError("no route to host 10.0.0.1")

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(DataError, match="org/set is no local file") as caught:
            read_table("org/set")
        assert "10.0.0.1" not in str(caught.value) and "network" in caught.value.hint
        assert not caplog.records


class TestAsText:
    @pytest.mark.parametrize("value", [None, float("nan"), "", " \n\t"])
    def test_empty(self, value: object) -> None:
        assert as_text(value) is None

    @pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.5, "1.5"), (True, "True"), (" x ", " x "), (0, "0")])
    def test_text(self, value: object, text: str) -> None:
        assert as_text(value) == text

    @pytest.mark.parametrize("value", [[], ["a"], {"a": 1}, b"bytes"])
    def test_no_text(self, value: object) -> None:
        with pytest.raises(TypeError):
            as_text(value)


ONE_ID: list[list[object]] = [
    [12.0, 12, "12", " 12\t", Decimal("12.00"), "12.0", "12.000 "],
    [-3.0, -3, "-3", "-3.0"],
    [-0.0, 0, "0", "-0.0", "0.0"],
    ["Jose\u0301", "Jos\u00e9 "],
]


class TestAsId:
    @pytest.mark.parametrize("spellings", ONE_ID)
    def test_an_id_has_one_spelling(self, spellings: list[object]) -> None:
        assert len({as_id(value) for value in spellings}) == 1

    @pytest.mark.parametrize("value", ["12.", "12.50", "x12.0", "012", 12.5, True, "\uff11\uff12", "\uff11\uff12.0"])
    def test_what_is_another_id_stays_another(self, value: object) -> None:
        assert as_id(value) != "12"

    @pytest.mark.parametrize("value", [None, float("nan"), "", " \n\t"])
    def test_empty(self, value: object) -> None:
        assert as_id(value) is None

    @pytest.mark.parametrize("value", [float("inf"), Decimal("Infinity")])
    def test_what_is_not_finite_has_an_id_all_the_same(self, value: object) -> None:
        assert as_id(value) == str(value)

    @pytest.mark.parametrize("value", ["9" * 400 + ".0", "9" * 5000 + ".0", "1." + "0" * 5000])
    def test_a_very_long_number_is_an_id(self, value: str) -> None:
        assert as_id(value)


class TestLoadRecords:
    def test_everything(self, tmp_path: Path) -> None:
        records = load_records(CONFIG, LABELS, source=str(write_csv(tmp_path / "a.csv")))
        assert records.texts == tuple((row["note"],) for row in ROWS)
        assert records.labels.tolist() == [1, 0, 1]
        assert records.units.tolist() == [0, 1, 0] and records.unit_ids == ("p2", "p1")
        assert records.sites == ("A", "A", "B")

    def test_the_source_is_data_train_unless_given(self, tmp_path: Path) -> None:
        config = CONFIG.model_copy(update={"train": str(write_lines(tmp_path / "a.jsonl"))})
        assert len(load_records(config, LABELS)) == 3

    def test_without_a_unit_column_every_record_is_a_unit(self, tmp_path: Path) -> None:
        config = DataConfig(train=str(write_csv(tmp_path / "a.csv")), text=("note", "ward"), label="dx")
        records = load_records(config, LABELS)
        assert records.unit_ids == ("1", "2", "3") and records.units.tolist() == [0, 1, 2]
        assert records.sites is None and records.texts[0] == (ROWS[0]["note"], "A")

    def test_numbers_become_text_and_labels_compare_as_text(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"t": 1, "y": True, "u": 7}, {"t": 2.5, "y": False, "u": " 7 "}]
        path = write_lines(tmp_path / "a.jsonl", rows)
        records = load_records(DataConfig(train=str(path), text=("t",), label="y", unit="u"), ("False", "True"))
        assert records.texts == (("1",), ("2.5",)) and records.labels.tolist() == [1, 0]
        assert records.unit_ids == ("7",)  # white space never makes two units of one patient

    @pytest.mark.parametrize("spellings", [[12.0, 12, "12 "], ["Jose\u0301", "Jos\u00e9"]])
    def test_one_id_in_several_spellings_is_one_unit(self, tmp_path: Path, spellings: list[object]) -> None:
        path = write_lines(tmp_path / "a.jsonl", [{"t": "cough", "y": "flu", "u": value} for value in spellings])
        config = DataConfig(train=str(path), text=("t",), label="y", unit="u")
        assert load_records(config, LABELS).unit_count == 1
        assert read_unit_ids(config) == (load_records(config, LABELS).unit_ids, 1)

    def test_unknown_label_names_column_and_row_only(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            load_records(CONFIG, ("flu", "other"), source=str(write_csv(tmp_path / "a.csv")))
        said = str(caught.value)
        assert "'dx'" in said and "row 2" in said and "cold" not in said + caught.value.hint
        assert "fedward-sim inspect" in caught.value.hint

    @pytest.mark.parametrize("column", ["note", "dx", "patient", "ward"])
    @pytest.mark.parametrize("value", [None, "", "  "])
    def test_missing_value(self, tmp_path: Path, column: str, value: object) -> None:
        path = write_lines(tmp_path / "a.jsonl", [*ROWS, {**ROWS[0], column: value}])
        with pytest.raises(DataError, match=f"'{column}' is empty in row 4"):
            load_records(CONFIG, LABELS, source=str(path))

    def test_nested_value(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", [{**row, "note": [row["note"]]} for row in ROWS])
        with pytest.raises(DataError, match="list or object in row 1"):
            load_records(CONFIG, LABELS, source=str(path))

    def test_shared_patients(self, tmp_path: Path) -> None:
        path = shared_rows("eicu_mortality.train.jsonl.gz", tmp_path)
        config = DataConfig(train=str(path), unit="patient", site="region")
        records = load_records(config, ("Alive", "Expired"))
        assert len(records) == 600 and records.unit_count < 600
        assert Counter(records.labels.tolist())[0] > 500


class TestRecords:
    def test_the_arrays_are_read_only_copies(self) -> None:
        labels = np.array([0, 1])
        records = Records(
            texts=(("a",), ("b",)), labels=labels, units=np.array([0, 1]), unit_ids=("x", "y"), sites=None
        )
        labels[0] = 5
        assert records.labels.tolist() == [0, 1] and records.labels.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            records.labels[0] = 2

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"labels": [0]}, "unlike length"),
            ({"sites": ("a",)}, "unlike length"),
            ({"units": [0, 2]}, "unit numbers"),
            ({"unit_ids": ("x", "y", "z")}, "unit numbers"),
            ({"unit_ids": ("x", "x")}, "share an id"),
            ({"labels": [0, -1]}, "negative"),
        ],
    )
    def test_parts_that_do_not_fit(self, change: dict[str, Any], said: str) -> None:
        parts: dict[str, Any] = {
            "texts": (("a",), ("b",)),
            "labels": [0, 1],
            "units": [0, 1],
            "unit_ids": ("x", "y"),
            "sites": None,
        }
        with pytest.raises(DataError, match=said):
            Records(**parts | change)

    @settings(deadline=None)
    @given(st.data())
    def test_select_keeps_each_record_with_its_unit(self, draw: st.DataObject) -> None:
        units = draw.draw(st.lists(st.integers(0, 5), min_size=1, max_size=20))
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
        records = records_of_units([numbers[unit] for unit in units])
        chosen = draw.draw(st.lists(st.integers(0, len(units) - 1), max_size=20))
        part = records.select(chosen)
        assert part.texts == tuple(records.texts[index] for index in chosen)
        assert [part.unit_ids[unit] for unit in part.units] == [records.unit_ids[records.units[i]] for i in chosen]
        assert part.labels.tolist() == records.labels[chosen].tolist()

    def test_pickles(self) -> None:
        copy = pickle.loads(pickle.dumps(records_of_units([0, 1, 0])))  # noqa: S301
        assert copy.units.tolist() == [0, 1, 0]


class TestUnitIds:
    def test_ids_are_read_and_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "notes.csv"
        file.write_text("note,organ,patient\ncough,lung, p1 \n,unheard of,p2\nrash,skin,p1\n")
        asked: list[object] = []

        def watched(source: str, *, columns: Sequence[str]) -> dict[str, list[Any]]:
            asked.append(columns)
            return read_table(source, columns=columns)

        monkeypatch.setattr("fedward_client.data.read_table", watched)
        config = DataConfig(train=str(file), text=("note",), label="organ", unit="patient")
        assert read_unit_ids(config) == (("p1", "p2"), 2)
        assert asked == [("patient",)]
        assert read_unit_ids(config.model_copy(update={"unit": None})) == (None, 3)

    def test_an_empty_id_is_refused_by_row(self, tmp_path: Path) -> None:
        file = tmp_path / "notes.csv"
        file.write_text("note,organ,patient\ncough,lung,p1\nrash,skin,\n")
        with pytest.raises(DataError, match="'patient' is empty in row 2"):
            read_unit_ids(DataConfig(train=str(file), text=("note",), label="organ", unit="patient"))


unit_ids = st.lists(st.text(max_size=8), unique=True, max_size=30)


class TestSplit:
    @settings(deadline=None, max_examples=50)
    @given(unit_ids, unit_ids, st.floats(0, 1), st.binary(min_size=16, max_size=64))
    def test_other_units_never_move_a_unit(
        self, some: list[str], others: list[str], fraction: float, key: bytes
    ) -> None:
        alone = dict(zip(some, split_validation(some, key=key, fraction=fraction), strict=True))
        both = list(dict.fromkeys([*others, *reversed(some)]))
        together = dict(zip(both, split_validation(both, key=key, fraction=fraction), strict=True))
        assert all(together[unit] == side for unit, side in alone.items())

    @settings(deadline=None)
    @given(unit_ids, st.floats(0, 1), st.floats(0, 1))
    def test_a_larger_fraction_only_adds_units(self, ids: list[str], one: float, other: float) -> None:
        small, large = (split_validation(ids, key=KEY, fraction=value) for value in sorted((one, other)))
        assert not (small & ~large).any()

    def test_the_share_is_near_the_fraction(self) -> None:
        ids = [str(number) for number in range(20_000)]
        share = split_validation(ids, key=KEY, fraction=0.05).mean()
        assert abs(share - 0.05) < 0.008  # five standard deviations
        assert (
            not split_validation(ids, key=KEY, fraction=0.0).any()
            and split_validation(ids, key=KEY, fraction=1.0).all()
        )

    def test_the_key_decides(self) -> None:
        ids = [str(number) for number in range(200)]
        one, other = (split_validation(ids, key=key, fraction=0.5) for key in (KEY, b"K" * 32))
        assert (one != other).any()

    def test_it_stays_the_same_for_the_life_of_the_data(self) -> None:
        sides = split_validation([f"patient-{number}" for number in range(12)], key=KEY, fraction=0.3)
        assert np.flatnonzero(sides).tolist() == GOLDEN

    @pytest.mark.parametrize("key", [b"", b"short", b"k" * 65])
    def test_keys_that_keep_no_secret(self, key: bytes) -> None:
        with pytest.raises(PrivacyError, match="16 to 64 bytes"):
            split_validation(["a"], key=key, fraction=0.1)

    def test_fractions_beyond_the_range(self) -> None:
        for fraction in (-0.1, 1.1, float("nan")):
            with pytest.raises(DataError, match="fraction"):
                split_validation(["a"], key=KEY, fraction=fraction)


GOLDEN = [0, 1, 2, 5, 10, 11]


class TestSiteData:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 7), max_size=40))
    def test_records_of_each_unit(self, raw: list[int]) -> None:
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(raw))}
        records = records_of_units([numbers[unit] for unit in raw])
        site = SiteData(records=records, nominal_units=1, validation=np.zeros(records.unit_count, dtype=bool))
        for unit in range(records.unit_count):
            assert site.records_of(unit).tolist() == np.flatnonzero(records.units == unit).tolist()

    def test_sides(self) -> None:
        records = records_of_units([0, 1, 2, 0])
        site = SiteData(records=records, nominal_units=10, validation=np.array([False, True, False]))
        assert site.training_units.tolist() == [0, 2] and site.validation_units.tolist() == [1]
        assert site.training_units is site.training_units

    def test_a_unit_that_is_left_out_is_used_for_nothing(self) -> None:
        records = records_of_units([0, 1, 2, 3])
        sides, out = np.array([False, True, True, False]), np.array([True, False, True, False])
        site = SiteData(records=records, nominal_units=10, validation=sides, left_out=out)
        assert site.training_units.tolist() == [3] and site.validation_units.tolist() == [1]
        with pytest.raises(DataError, match="left_out flags"):
            SiteData(records=records, nominal_units=1, validation=sides, left_out=np.zeros(3, dtype=bool))

    def test_parts_that_do_not_fit(self) -> None:
        records = records_of_units([0, 1])
        with pytest.raises(DataError, match="validation flags"):
            SiteData(records=records, nominal_units=1, validation=np.zeros(3, dtype=bool))
        with pytest.raises(DataError, match="nominal_units"):
            SiteData(records=records, nominal_units=0, validation=np.zeros(2, dtype=bool))


@pytest.mark.parametrize(
    ("count", "declared"),
    [
        *((0, 1), (3, 1), (7, 5), (19, 15), (20, 20), (57, 50), (199, 190)),
        *((200, 200), (249, 200), (999, 950), (1000, 1000), (1099, 1000), (20_314, 20_300)),
    ],
)
def test_nominal(count: int, declared: int) -> None:
    assert nominal(count) == declared


def test_public_names_are_sorted() -> None:
    assert data.__all__ == sorted(data.__all__) and all(hasattr(data, name) for name in data.__all__)
