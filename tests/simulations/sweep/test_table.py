from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from scipy import stats

from fedward_common.errors import OutputError
from fedward_simulations.sweep.folder import Status, SweepFolder
from fedward_simulations.sweep.plan import Plan
from fedward_simulations.sweep.table import Results, spread, write_table
from support.sweeping import wards

SUMMARY = {
    "macro_f1": 0.5,
    "majority_accuracy": 0.4,
    "epsilon": 1.0,
    "delta": 1e-3,
    "bytes_up": 10,
    "bytes_down": 20,
    "seconds": 1.5,
    "rounds": 3,
    "sites": 2,
}


def finish(folder: SweepFolder, plan: Plan, number: int, accuracy: float) -> None:
    job = plan.jobs[number]
    folder.run(job.name).mkdir(parents=True)
    (folder.run(job.name) / "run.toml").write_text(job.config.to_toml())
    (folder.run(job.name) / "summary.json").write_text(json.dumps({**SUMMARY, "accuracy": accuracy}))


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Plan, SweepFolder]:
    plan, _ = Plan.load(wards(tmp_path, head="seeds = [0, 1, 2]", grid='"privacy.epsilon" = [1.0, 8.0]'))
    folder = SweepFolder(root=tmp_path / "out")
    with folder.begin(plan):
        pass
    return plan, folder


def test_the_interval_is_students_t_over_independent_runs_one_run_has_neither_deviation_nor_interval() -> None:
    values = [0.61, 0.64, 0.58, 0.7]
    row = spread("x", values)
    known = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (row["x_low"], row["x_high"]) == pytest.approx((known.low, known.high))
    assert row["x_sd"] == pytest.approx(np.std(values, ddof=1))
    assert spread("x", [0.6]) == {"x_n": 1, "x_mean": 0.6, "x_sd": None, "x_low": None, "x_high": None}
    assert spread("x", [])["x_mean"] is None
    assert spread("x", [0.0, 0.0, 0.0])["x_high"] == 0.0


def test_ninety_five_in_a_hundred_intervals_hold_the_mean() -> None:
    generator = np.random.default_rng(5)
    rows = [spread("x", generator.normal(3.0, 2.0, 3).tolist()) for _ in range(4000)]
    share = np.mean([row["x_low"] < 3.0 < row["x_high"] for row in rows])
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)  # false alarm 6e-5, fixed seed


def test_one_row_for_every_job_of_the_plan_also_where_it_failed_or_never_began(swept: tuple[Plan, SweepFolder]) -> None:
    plan, folder = swept
    finish(folder, plan, 0, 0.5)
    finish(folder, plan, 1, 0.7)
    folder.fail(plan.jobs[2].name, what="out of luck", hint="try again")
    folder.run(plan.jobs[3].name).mkdir(parents=True)
    results = Results.read(plan, folder)
    assert [row["status"] for row in results.runs] == ["done", "done", "failed", "stopped", "pending", "pending"]
    assert results.runs[2]["error"] == "out of luck"
    assert results.count(Status.DONE) == 2
    first, second = results.points
    assert (first["runs"], first["done"], first["accuracy_n"]) == (3, 2, 2)
    assert first["accuracy_mean"] == pytest.approx(0.6)
    assert second["accuracy_mean"] is None


def test_csv_and_parquet_say_the_same(swept: tuple[Plan, SweepFolder]) -> None:
    plan, folder = swept
    finish(folder, plan, 0, 0.5)
    Results.read(plan, folder).write(folder, notes=["epsilons compose"])
    for stem in ("results", "points"):
        table = pyarrow.parquet.read_table(folder.root / f"{stem}.parquet")
        assert json.loads(table.schema.metadata[b"fedward"]) == {"notes": ["epsilons compose"]}
        with (folder.root / f"{stem}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == table.column_names
        assert len(rows) == table.num_rows
    table = pyarrow.parquet.read_table(folder.root / "results.parquet").to_pylist()
    assert table[0]["accuracy"] == 0.5
    assert table[0]["config.privacy.epsilon"] == 1.0
    assert table[1]["accuracy"] is None


def test_values_of_several_types_become_json_texts(tmp_path: Path) -> None:
    write_table(tmp_path / "t", [{"a": ["query"], "b": 1, "c": None}, {"a": "x", "b": 2.5, "c": None}])
    rows = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert rows == [{"a": '["query"]', "b": 1.0, "c": None}, {"a": '"x"', "b": 2.5, "c": None}]
    with pytest.raises(OutputError, match="cannot write"):
        write_table(tmp_path / "t.csv" / "t", [{"a": 1}])
