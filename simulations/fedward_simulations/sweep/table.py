"""Results of a sweep: one row a run, and one row a point with mean, spread and interval over its seeds.

This module reads finished run directories through the sweep's folder and knows nothing of processes or pictures.

Example:
    >>> row = spread("accuracy", [0.5, 0.7, 0.6])
    >>> row["accuracy_n"], round(row["accuracy_mean"], 3), round(row["accuracy_sd"], 3)
    (3, 0.6, 0.1)
    >>> round(row["accuracy_low"], 4), round(row["accuracy_high"], 4)
    (0.3516, 0.8484)
    >>> spread("accuracy", [0.5])["accuracy_low"] is None
    True
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedward_simulations.results.folders import whole
from fedward_simulations.sweep.folder import Status, SweepFolder
from fedward_simulations.sweep.plan import Job, Plan, Point

__all__ = ["Results", "interval", "spread", "write_table"]

Row = dict[str, Any]
MEASURED = ("accuracy", "macro_f1", "majority_accuracy", "epsilon", "delta", "bytes_up", "bytes_down", "seconds",
            "rounds", "sites")  # fmt: skip
AVERAGED = ("accuracy", "macro_f1", "epsilon", "bytes_up", "bytes_down", "seconds")
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Results:
    """What came out so far."""

    plan: Plan
    runs: tuple[Row, ...]
    points: tuple[Row, ...]

    @classmethod
    def read(cls, plan: Plan, folder: SweepFolder) -> Results:
        """Collect what the folder holds.

        Guarantees:
          - One row for every job of the plan, also where it failed or never began.

        Raises:
          OutputError: a finished run cannot be read, or is not the job's.
        """
        runs = tuple(_run_row(plan, job, folder) for job in plan.jobs)
        return cls(plan=plan, runs=runs, points=tuple(_point_row(point, runs) for point in plan.points))

    def count(self, status: Status) -> int:
        """How many runs have this status."""
        return sum(row["status"] == status.value for row in self.runs)

    def write(self, folder: SweepFolder, *, notes: Sequence[str]) -> None:
        """Write results and points, each as CSV and Parquet; the Parquet files carry ``notes`` in their metadata."""
        write_table(folder.root / "results", self.runs, notes=notes)
        write_table(folder.root / "points", self.points, notes=notes)


def spread(name: str, values: Sequence[float]) -> Row:
    """Number, mean, standard deviation and 95 % confidence interval of the mean, under keys that begin with ``name``.

    Guarantees:
      - The interval is Student's t over independent runs; one run has neither deviation nor interval.
    """
    mean = fmean(values) if values else None
    deviation = stdev(values) if len(values) > 1 else None
    low, high = (None, None) if deviation is None else interval(fmean(values), deviation, len(values))
    figures = {"n": len(values), "mean": mean, "sd": deviation, "low": low, "high": high}
    return {f"{name}_{key}": figure for key, figure in figures.items()}


def interval(mean: float, deviation: float, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a mean of ``count`` independent values, count at least 2.

    Source: Student 1908, "The probable error of a mean".
    """
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def write_table(stem: Path, rows: Sequence[Row], *, notes: Sequence[str] = ()) -> None:
    """Write rows as STEM.csv and STEM.parquet, each whole or not at all.

    Raises:
      OutputError: the disk is full or not writable.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.Table.from_pydict({key: _column([row.get(key) for row in rows]) for key in rows[0]})
    table = table.replace_schema_metadata({"fedward": json.dumps({"notes": list(notes)})})
    writers = {".csv": pyarrow.csv.write_csv, ".parquet": pyarrow.parquet.write_table}
    for suffix, write in writers.items():
        with whole(stem.with_suffix(suffix)) as draft:
            write(table, draft)


def _column(values: list[Any]) -> list[Any]:
    """Values of one type; where they are lists, tables or of several types, JSON texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [value if value is None or kinds == {int} else float(value) for value in values]
    if kinds in ({str}, {bool}):
        return values
    return [None if value is None else json.dumps(value) for value in values]


def _run_row(plan: Plan, job: Job, folder: SweepFolder) -> Row:
    status = folder.status(job, per_site=plan.per_site)
    summary: Mapping[str, Any] = folder.summary(job) if status is Status.DONE else {}
    return {
        "run": job.name,
        "point": job.point.number,
        "seed": job.seed,
        "status": status.value,
        **{key: summary.get(key) for key in MEASURED},
        **{f"config.{path}": value for path, value in job.point.values.items()},
        "error": folder.failure(job).get("what") if status is Status.FAILED else None,
    }


def _point_row(point: Point, runs: Sequence[Row]) -> Row:
    own = [row for row in runs if row["point"] == point.number]
    done = [row for row in own if row["status"] == Status.DONE.value]
    row: Row = {"point": point.number, "runs": len(own), "done": len(done)}
    row |= {f"config.{path}": value for path, value in point.values.items()}
    for name in AVERAGED:
        row |= spread(name, [float(one[name]) for one in done if one[name] is not None])
    return row
