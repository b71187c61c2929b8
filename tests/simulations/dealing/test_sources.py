from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError, DataError
from fedward_common.simulated import Poison, SimulationConfig
from fedward_simulations.dealing.sources import read_source
from fedward_simulations.demo import demo_config, quick_config
from support.federation import small_bench


def config(folder: Path, **data: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": {"labels": ["lung", "skin"]},
            "data": {"train": str(folder / "train.jsonl"), **data},
            "partition": {"sites": 3, "minimum_units": 5, "method": "iid"},
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"text": f"note {n}", "label": ("lung", "skin")[n % 2], "ward": f"w{n % 3}"} for n in range(100)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "test.jsonl").write_text('{"text": "a test", "label": "skin"}\n')
    return tmp_path


def test_a_test_part_is_set_aside_before_partitioning(files: Path) -> None:
    source = read_source(config(files, test_fraction=0.2))
    held = [text for records in source.sites.values() for text in records.texts]
    assert len(source.test) == 20
    assert len(held) == 80
    assert not set(held) & set(source.test.texts)


def test_a_test_file_needs_neither_site_nor_unit_column(files: Path) -> None:
    natural = config(files, test=str(files / "test.jsonl"), site="ward")
    source = read_source(
        natural.model_copy(update={"partition": natural.partition.model_copy(update={"method": "natural"})})
    )
    assert source.test.texts == (("a test",),)
    assert sum(len(records) for records in source.sites.values()) == 100


def test_the_digest_tells_data_apart(files: Path) -> None:
    first = read_source(config(files)).digest
    assert read_source(config(files)).digest == first
    text = (files / "train.jsonl").read_text()
    (files / "train.jsonl").write_text(text.replace("note 7", "note 7b"))
    assert read_source(config(files)).digest != first


def test_the_built_in_data_comes_without_a_file() -> None:
    source = read_source(quick_config())
    assert set(source.sites) == {"site-01", "site-02"}
    assert sum(len(records) for records in source.sites.values()) + len(source.test) == 300
    labels = np.concatenate([records.labels for records in source.sites.values()])
    assert labels.max() < 21


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"unit": "patient"}, "neither sites nor units"),
        ({"site": "w"}, "neither sites nor units"),
        ({"test": "icd10cm:9"}, "data.test"),
    ],
)
def test_the_built_in_data_is_nothing_but_texts_and_labels_to_train_on(data: dict[str, str], what: str) -> None:
    built_in = quick_config()
    held = built_in.data.model_copy(update=data)
    with pytest.raises(ConfigError, match=what):
        read_source(built_in.model_copy(update={"data": held}))


def test_the_built_in_data_needs_its_labels() -> None:
    wrong = demo_config().model_copy(update={"task": RunConfig.model_validate(
        {"task": {"labels": ["a", "b"]}, "data": {"train": "x"}}).task})  # fmt: skip
    with pytest.raises(DataError, match="chapters"):
        read_source(wrong)


class TestNotes:
    def patients(self, folder: Path, **partition: object) -> RunConfig:
        rows = [
            {"text": f"note {n}", "label": ("lung", "skin")[n % 2], "ward": f"w{n % 2}", "who": f"p{n // 3}"}
            for n in range(90)
        ]
        (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return RunConfig.model_validate(
            {
                "task": {"labels": ["lung", "skin"]},
                "data": {"train": str(folder / "train.jsonl"), "site": "ward", "unit": "who"},
                "privacy": {"unit": "patient"},
                "partition": {"minimum_units": 5, **partition},
            }
        )

    def test_units_that_were_brought_to_one_site_are_said(self, tmp_path: Path) -> None:
        source = read_source(self.patients(tmp_path, method="natural"))
        assert source.notes[0].startswith("27 of 27 units have records under several values of data.site")
        held = [unit for records in source.sites.values() for unit in records.unit_ids]
        assert len(held) == len(set(held)) == 27

    def test_units_that_lie_at_several_sites_are_said(self, tmp_path: Path) -> None:
        source = read_source(self.patients(tmp_path, method="natural", units="split"))
        assert source.notes[0].startswith("27 of 27 units lie at several sites")
        source = read_source(self.patients(tmp_path, method="iid", sites=3, units="split"))
        assert "epsilons of those sites add up" in source.notes[0]

    def test_otherwise_there_is_nothing_to_say(self, tmp_path: Path) -> None:
        assert read_source(self.patients(tmp_path, method="iid", sites=3)).notes == ()


def test_a_poisoned_site_trains_on_wrong_labels_and_what_was_dealt_stays(files: Path) -> None:
    honest = read_source(config(files))
    poisoned = config(files).model_copy(update={"simulation": SimulationConfig(poisoned=1, poison=Poison.FLIP)})
    source = read_source(poisoned)
    assert source.digest == honest.digest
    for name, records in source.sites.items():
        np.testing.assert_array_equal(records.labels, honest.sites[name].labels)
    bench = small_bench(files, sites=3, simulation={"poisoned": 1, "poison": "flip"})
    labels = {name: (held.records.labels, bench.source.sites[name].labels) for name, held in bench.data.items()}
    assert [(trained != dealt).any() for trained, dealt in labels.values()].count(True) == 1


def test_where_nobody_would_be_willing_no_model_is_loaded(files: Path) -> None:
    with pytest.raises(ConfigError, match="no site that is willing"):
        small_bench(files, sites=3, model={"base": "nowhere"}, simulation={"poisoned": 3})
