from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_common.config import RunConfig
from fedward_common.errors import DataError
from fedward_simulations.demo import demo_config, quick_config
from fedward_simulations.sources import read_source


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


def test_the_built_in_data_needs_its_labels() -> None:
    wrong = demo_config().model_copy(update={"task": RunConfig.model_validate(
        {"task": {"labels": ["a", "b"]}, "data": {"train": "x"}}).task})  # fmt: skip
    with pytest.raises(DataError, match="chapters"):
        read_source(wrong)
