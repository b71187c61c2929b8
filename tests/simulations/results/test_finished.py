from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_common.errors import OutputError
from fedward_simulations.results.finished import FinishedRun
from fedward_simulations.run import run
from support.federation import small_bench, some_records
from support.watch import Recorder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(small_bench(folder), out=folder / "run", view=Recorder())
    return folder / "run"


def test_it_measures_what_the_run_measured(directory: Path) -> None:
    metrics = FinishedRun.open(directory).evaluate(some_records(40, seed=99))  # the bench's own test records
    summary = json.loads((directory / "summary.json").read_text())
    assert metrics["accuracy"] == summary["accuracy"]
    assert metrics["macro_f1"] == pytest.approx(summary["macro_f1"])


def test_probabilities_belong_to_the_likeliest_label(directory: Path) -> None:
    finished = FinishedRun.open(directory)
    rows = finished.predict(["chest pain", "skin burn"])
    logits = finished.logits([("chest pain",), ("skin burn",)])
    assert [row["label"] for row in rows] == [finished.labels[i] for i in logits.argmax(1)]
    assert all(1 / 3 <= row["probability"] <= 1 for row in rows)
    assert np.isfinite(logits).all()


def test_another_adapter_than_the_summarys_is_refused(directory: Path, tmp_path: Path) -> None:
    summary = json.loads((directory / "summary.json").read_text())
    try:
        (directory / "summary.json").write_text(json.dumps({**summary, "adapter_digest": "0" * 64}))
        with pytest.raises(OutputError, match="not the one of its summary"):
            FinishedRun.open(directory)
    finally:
        (directory / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(OutputError, match="no finished run"):
        FinishedRun.open(tmp_path)
