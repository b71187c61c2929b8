"""From a file to a run file: kinds of columns, their choice, and a text that reads back."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.data import load_records
from fedward_common.config import (
    DataConfig,
    PartitionMethod,
    PrivacyConfig,
    RunConfig,
    ServerConfig,
    StageConfig,
    TaskConfig,
)
from fedward_common.errors import DataError
from fedward_common.privacy.guarantee import Unit
from fedward_simulations.dealing.inspect import Kind, Summary, inspect_file, summarise
from fedward_simulations.dealing.partition import holdout, partition
from fedward_simulations.dealing.render import render_toml
from fedward_simulations.dealing.sources import read_source
from fedward_simulations.dealing.suggest import suggest
from support.shared import shared_rows

WORDS = "the patient came with a cough and went home on day"


def table(rows: int = 200, more: Mapping[str, list[Any]] | None = None) -> dict[str, list[Any]]:
    """A table with a free text and a label of three values, and more columns."""
    base: dict[str, list[Any]] = {
        "note": [f"{WORDS} {row}" for row in range(rows)],
        "label": [("low", "mid", "high")[row % 3] for row in range(rows)],
    }
    return base | dict(more or {})


def cycle(count: int, rows: int = 200, name: str = "v") -> list[str]:
    return [f"{name}{row % count}" for row in range(rows)]


class TestSummarise:
    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([f"{WORDS} {row}" for row in range(100)], Kind.TEXT),
            ([f"word{row} word" for row in range(100)], Kind.TEXT),
            (["yes", "no"] * 50, Kind.CATEGORY),
            (["a label of several long words", "another label of many words"] * 50, Kind.CATEGORY),
            ([0, 1] * 50, Kind.CATEGORY),
            ([True, False] * 50, Kind.CATEGORY),
            ([f"p{row}" for row in range(100)], Kind.ID),
            (list(range(100)), Kind.ID),
            ([str(row % 60) for row in range(100)], Kind.NUMBER),
            ([row / 7 for row in range(100)], Kind.NUMBER),
            (["same"] * 100, Kind.CONSTANT),
            ([None, ""] * 50, Kind.CONSTANT),
            ([["a"], ["b"]] * 50, Kind.NESTED),
        ],
    )
    def test_kinds(self, values: list[Any], kind: Kind) -> None:
        assert summarise({"x": values}).column("x").kind is kind

    def test_numbers_of_a_column(self) -> None:
        column = summarise({"x": ["b c", "a", None, "a", " ", "b c", "b c"]}).column("x")
        assert (column.distinct, column.empty, column.median_words) == (2, 2, 2.0)
        assert column.counts == (("b c", 3), ("a", 2)) and column.common(1) == (("b c", 3),)

    def test_common_values_are_for_categories_only(self) -> None:
        assert summarise({"x": [f"p{row}" for row in range(100)]}).column("x").common() == ()

    def test_unknown_column(self) -> None:
        with pytest.raises(DataError, match="no column 'b'") as caught:
            summarise({"a": [1]}).column("b")
        assert "'a'" in caught.value.hint


class TestSuggest:
    def test_plain(self) -> None:
        config = suggest(summarise(table(700)), "folder/My notes (1).csv")
        assert config.data == DataConfig(train="folder/My notes (1).csv", text=("note",), label="label")
        assert config.task.labels == ("high", "low", "mid")
        assert config.partition.method is PartitionMethod.DIRICHLET and config.partition.sites == 10
        assert config.privacy.epsilon == 8.0 and config.privacy.delta == 1e-5 and config.privacy.unit is Unit.RECORD
        assert config.name == "My-notes-1"
        assert config.stages == RunConfig.model_fields["stages"].default

    @pytest.mark.parametrize(("rows", "sites"), [(20, 1), (120, 2), (300, 5), (5000, 10)])
    def test_small_files_make_fewer_sites(self, rows: int, sites: int) -> None:
        assert suggest(summarise(table(rows)), "a.csv").partition.sites == sites

    @pytest.mark.parametrize(("rows", "delta"), [(300, 1e-5), (10_000, 1e-5), (10_001, 1e-6), (67_349, 1e-6)])
    def test_delta_stays_below_a_tenth_of_one_in_all_rows(self, rows: int, delta: float) -> None:
        columns = summarise(table(300)).columns
        assert suggest(Summary(rows=rows, columns=columns, table={}), "a.csv").privacy.delta == delta <= 1 / (10 * rows)

    @pytest.mark.parametrize(
        "names", [("sentence1", "sentence2"), ("Premise", "Hypothesis"), ("question", "sentence"), ("text_a", "text_b")]
    )
    def test_pairs(self, names: tuple[str, str]) -> None:
        columns = {name: [f"{WORDS} {name} {row}" for row in range(200)] for name in names}
        assert suggest(summarise({**columns, "label": cycle(2)}), "a.csv").data.text == names

    def test_the_longest_free_text_without_a_known_name(self) -> None:
        columns = {"brief": [f"quite a short one {row}" for row in range(200)], "long": table()["note"]}
        assert suggest(summarise({**columns, "label": cycle(2)}), "a.csv").data.text == ("long",)

    @pytest.mark.parametrize("name", ["class", "Target", "category", "INTENT", "diagnosis_code", "label_id"])
    def test_label_by_name(self, name: str) -> None:
        columns = {"note": table()["note"], "sex": cycle(2), name: cycle(5)}
        assert suggest(summarise(columns), "a.csv").data.label == name

    def test_label_by_fewest_values(self) -> None:
        columns = {"note": table()["note"], "region": cycle(2, name="r"), "colour": cycle(4), "shape": cycle(3)}
        assert suggest(summarise(columns), "a.csv").data.label == "shape"

    @pytest.mark.parametrize("name", ["site", "Hospital ID", "treatingCenter", "region", "institution_name"])
    def test_site_by_name(self, name: str) -> None:
        config = suggest(summarise(table(more={name: cycle(4)})), "a.csv")
        assert config.data.site == name and config.partition.method is PartitionMethod.NATURAL

    @pytest.mark.parametrize(
        "values",
        [cycle(1), cycle(11), ["only", *cycle(4)[1:]], ["", *cycle(4)[1:]]],
        ids=["one", "small", "odd", "empty"],
    )
    def test_no_site(self, values: list[str]) -> None:
        config = suggest(summarise(table(more={"site": values})), "a.csv")
        assert config.data.site is None and config.partition.method is PartitionMethod.DIRICHLET

    @pytest.mark.parametrize("name", ["patient", "PatientID", "subject_id", "uniquepid", "mrn", "unique_patient_no"])
    def test_patients(self, name: str) -> None:
        config = suggest(summarise(table(more={name: cycle(90)})), "a.csv")
        assert config.data.unit == name and config.privacy.unit is Unit.PATIENT
        assert config.privacy.max_records_per_unit == 4
        assert config.partition.sites == 1  # 81 patients are left for training

    def test_patients_with_one_record_each(self) -> None:
        config = suggest(summarise(table(more={"patient": [f"p{row}" for row in range(200)]})), "a.csv")
        assert config.data.unit == "patient" and config.privacy.max_records_per_unit == 1

    @pytest.mark.parametrize(
        "column",
        [{"patient_age": cycle(60)}, {"user": [f"u{row}" for row in range(200)]}, {"speaker": cycle(2)}],
        ids=["age", "user-once", "two-speakers"],
    )
    def test_no_unit(self, column: dict[str, list[Any]]) -> None:
        assert suggest(summarise(table(more=column)), "a.csv").data.unit is None

    def test_persons_who_come_again(self) -> None:
        assert suggest(summarise(table(more={"user_id": cycle(50)})), "a.csv").data.unit == "user_id"

    def test_named_columns_win(self) -> None:
        summary = summarise(
            table(more={"other": table()["note"], "group": cycle(4), "doctor": cycle(50), "place": cycle(5)})
        )
        config = suggest(summary, "a.csv", text=["other"], label="group", unit="doctor", site="place")
        assert config.data == DataConfig(train="a.csv", text=("other",), label="group", unit="doctor", site="place")

    def test_a_named_site_that_keeps_no_unit_is_refused_and_a_found_one_is_left_out(self) -> None:
        # every patient has most records in the north, so that the south is left with none
        columns = {"region": ["north", "north", "south"] * 100, "patient": [f"p{row // 6}" for row in range(300)]}
        summary = summarise(table(300, columns))
        assert suggest(summary, "a.csv").data.site is None
        with pytest.raises(DataError, match="value of column 'region' keeps no unit") as caught:
            suggest(summary, "a.csv", site="region")
        assert caught.value.hint

    def test_another_site_column_serves_where_the_first_cannot(self) -> None:
        columns = {"site": ["north", "north", "south"] * 100, "patient": [f"p{row // 6}" for row in range(300)]}
        columns["region"] = [f"r{row // 150}" for row in range(300)]
        assert suggest(summarise(table(300, columns)), "a.csv").data.site == "region"

    def test_named_columns_of_lists_are_refused(self) -> None:
        summary = summarise(table(more={"tags": [["a"]] * 200}))
        with pytest.raises(DataError, match="column 'tags' holds lists or objects"):
            suggest(summary, "a.csv", site="tags")

    def test_a_site_column_of_many_values_may_be_named(self) -> None:
        config = suggest(summarise(table(6000, {"clinic_no": cycle(1200, 6000)})), "a.csv", site="clinic_no")
        assert config.partition.minimum_units == 1

    def test_what_does_not_fit_into_a_run_file_is_an_error_without_its_text(self) -> None:
        long = "Jane Roe was seen on the ward for " + "chest pain " * 30
        columns = {long: table()["note"], "label": table()["label"]}
        with pytest.raises(DataError, match="columns do not fit") as error:
            suggest(summarise(columns), "a.csv")
        assert "Roe" not in f"{error.value} {error.value.hint}" and error.value.__suppress_context__
        with pytest.raises(DataError, match="path is too long"):
            suggest(summarise(table()), f"{'far/' * 60}a.csv")
        with pytest.raises(DataError, match="columns do not fit"):
            suggest(
                summarise(table(more={"b": table()["note"], "c": table()["note"]})), "a.csv", text=("note", "b", "c")
            )

    def test_nothing_to_suggest(self) -> None:
        with pytest.raises(DataError, match="free text"):
            suggest(summarise({"a": cycle(3), "label": cycle(2)}), "a.csv")
        with pytest.raises(DataError, match="label"):
            suggest(summarise({"note": table()["note"]}), "a.csv")
        with pytest.raises(DataError, match="no column 'x'"):
            suggest(summarise(table()), "a.csv", label="x")
        with pytest.raises(DataError, match="does not look like a label"):
            suggest(summarise(table(more={"label": ["x"] * 200})), "a.csv", label="label")


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


class TestRender:
    @settings(deadline=None, max_examples=60)
    @given(
        labels=st.lists(names, min_size=2, max_size=30, unique=True),
        columns=st.lists(names, min_size=4, max_size=4),
        method=st.sampled_from(PartitionMethod),
        unit=st.sampled_from(Unit),
    )
    def test_it_reads_back_to_an_equal_config(
        self, labels: list[str], columns: list[str], method: PartitionMethod, unit: Unit
    ) -> None:
        text, label, site, person = columns
        config = RunConfig(
            schema_version=1,
            task=TaskConfig(labels=tuple(labels)),
            data=DataConfig(
                train=text, text=(text, label), label=label, site=site, unit=person if unit is Unit.PATIENT else None
            ),
            privacy=PrivacyConfig(unit=unit, delta=1e-7),
            partition={"method": method},  # type: ignore[arg-type]
        )
        assert RunConfig.from_toml(render_toml(config, summarise({}))) == config

    def test_values_far_from_their_defaults_too(self) -> None:
        stages = (
            StageConfig(name="one", train=("head", "adapter"), rounds=3, noise_ratio=0.5),
            StageConfig(name="two", train=("head",), rounds=2, server_learning_rate=0.1),
        )
        config = suggest(summarise(table()), "a.csv")
        config = config.model_copy(
            update={"stages": stages, "server": ServerConfig(learning_rate=0.5), "output": "runs"}
        )
        assert RunConfig.from_toml(render_toml(config, summarise(table()))) == config

    def test_its_first_lines_say_that_it_is_derived_from_the_data(self) -> None:
        text = render_toml(suggest(summarise(table()), "a.csv"), summarise(table()))
        assert "Derived from the data" in text.splitlines()[0]
        assert "agreed beforehand" in text.splitlines()[1]

    def test_the_whole_text(self) -> None:
        summary = summarise(table(300, {"patient": cycle(150, 300)}))
        assert render_toml(suggest(summary, "notes.csv"), summary) == EXAMPLE

    def test_stages_are_left_at_their_defaults(self) -> None:
        text = render_toml(suggest(summarise(table()), "a.csv"), summarise(table()))
        assert "stages" not in text and "[server]" not in text and "[model]" not in text

    def test_no_dirichlet_keys_beside_a_natural_partition(self) -> None:
        summary = summarise(table(more={"site": cycle(4)}))
        text = render_toml(suggest(summary, "a.csv"), summary)
        assert 'method = "natural"' in text and "alpha" not in text and "sites =" not in text


def works(config: RunConfig) -> int:
    """Load, hold out and partition as a simulation would; the number of sites."""
    records = load_records(config.data, config.task.labels)
    train, _ = holdout(records, fraction=config.data.test_fraction, seed=config.seed)
    return len(partition(records.select(train), config.partition, seed=config.seed))


def written(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


class TestWholeFiles:
    @pytest.mark.parametrize("small", [1, 3, 12, 60])
    def test_patients_at_several_sites_leave_the_smallest_site_enough(self, tmp_path: Path, small: int) -> None:
        # the south has 200 rows and more, but keeps only the few patients who have most of theirs there
        regions, patients = ["south", "north", "north"] * 200, [f"p{row // 3}" for row in range(600)]
        regions += ["south"] * 2 * small
        patients += [f"q{row // 2}" for row in range(2 * small)]
        rows = len(regions)
        path = written(tmp_path / "notes.csv", table(rows, {"region": regions, "patient": patients}))
        summary = inspect_file(str(path))
        config = RunConfig.from_toml(render_toml(suggest(summary, str(path)), summary))
        assert (config.data.site, config.data.unit) == ("region", "patient")
        assert works(config) == 2
        assert 1 <= config.partition.minimum_units <= small

    @pytest.mark.parametrize(("source", "rows"), [("icd10cm:300", 300), ("icd10cm:30", 30), ("icd10cm:5", 5)])
    def test_built_in_data(self, source: str, rows: int) -> None:
        summary = inspect_file(source)
        config = suggest(summary, source)
        assert summary.rows == rows
        assert config.data == DataConfig(train=source, text=("text",), label="label")
        assert RunConfig.from_toml(render_toml(config, summary)) == config

    def test_built_in_data_runs(self) -> None:
        config = suggest(inspect_file("icd10cm:300"), "icd10cm:300")
        assert config.name == "icd10cm"
        assert len(read_source(config).sites) == 5

    def test_built_in_data_that_is_not_understood(self) -> None:
        with pytest.raises(DataError, match="not understood") as caught:
            inspect_file("icd10cm:many")
        assert "icd10cm:300" in caught.value.hint

    @pytest.mark.parametrize(
        ("name", "site", "unit"),
        [
            ("medquad_qtype", None, None),
            ("eicu_dxgroup", "region", "patient"),
            ("eicu_mortality", "region", "patient"),
            ("heart_uci", "site", "patient"),
            ("banking77", None, None),
            ("sst2", None, None),
            ("mts_dialog", None, None),
        ],
    )
    def test_shared_data(self, tmp_path: Path, name: str, site: str | None, unit: str | None) -> None:
        path = shared_rows(f"{name}.train.jsonl.gz", tmp_path)
        summary = inspect_file(str(path))
        config = suggest(summary, str(path))
        assert (config.data.text, config.data.label) == (("text",), "label")
        assert (config.data.site, config.data.unit) == (site, unit)
        assert RunConfig.from_toml(render_toml(config, summary)) == config
        assert works(config) >= 2

    def test_csv_with_odd_headers_and_quoted_newlines(self, tmp_path: Path) -> None:
        path = tmp_path / "Export 2024 [final].csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["", "Clinical Note", 'Dx "final", class', "Patient ID", "é # = x"])
            writer.writerows(
                [row, f"line one of {row},\nline two says “hello” here", f"dx {row % 3}", f"p{row % 150}", "c"]
                for row in range(300)
            )
        summary = inspect_file(str(path))
        config = suggest(summary, str(path))
        assert config.data.text == ("Clinical Note",) and config.data.label == 'Dx "final", class'
        assert config.data.unit == "Patient ID"
        assert RunConfig.from_toml(render_toml(config, summary)) == config
        assert works(config) == 2


EXAMPLE = """\
# Derived from the data by `fedward-sim inspect`: the labels and the choice of columns reveal something about it.
# For a real federation labels and columns are agreed beforehand, without a look at any site's records.
# Keys that are not here have the defaults of docs/run-file.md.
schema = 1
name = "notes"  # names the output folder
seed = 0  # the same seed repeats the simulation bit by bit

[task]
labels = ["high", "low", "mid"]

[data]
train = "notes.csv"  # 300 rows
test_fraction = 0.1  # share of the units set aside for testing before sites are made
text = ["note"]  # one column, or two that are read as a pair; median length 12 words
label = "label"
unit = "patient"  # all records with one value here are protected together

[partition]
method = "dirichlet"  # dirichlet (label skew), iid, pathological, quantity, or natural (data.site)
alpha = 0.5  # smaller: labels more unequal between sites
sites = 2  # virtual sites
minimum_units = 20  # fewer at a site is an error

[privacy]
unit = "patient"  # what is protected: record or patient
epsilon = 8.0  # for the whole run at each site, metrics included
delta = 1e-05  # well below 1 / units
max_records_per_unit = 4  # records of one unit that enter a step
"""
