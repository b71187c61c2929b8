"""Whole runs on files that the caller names: what a first try on someone's data gives."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedward_common.config import RunConfig
from fedward_common.report import rounded_up
from fedward_simulations.bench.table import Table
from fedward_simulations.dealing.inspect import inspect_file
from fedward_simulations.dealing.sources import read_source
from fedward_simulations.dealing.suggest import suggest
from fedward_simulations.run import Workbench, run
from fedward_simulations.watching.lines import LineView

__all__ = ["measure"]


def measure(files: Sequence[str]) -> Table:
    """Run every file with the run file that ``fedward-sim inspect`` suggests; a ``.toml`` is taken as a run file.

    Raises:
      FedwardError: a file cannot be read or run.
    """
    return Table(
        title="Whole runs",
        head=("file", "sites", "labels", "accuracy", "macro F1", "commonest label", "epsilon", "delta", "seconds"),
        rows=tuple(_run(file) for file in files),
        note="Accuracy on units set aside before the sites were made.",
    )


def _run(file: str) -> tuple[str, ...]:
    config = RunConfig.load(Path(file)) if file.endswith(".toml") else suggest(inspect_file(file), file)
    bench = Workbench.open(config, read_source(config))
    with tempfile.TemporaryDirectory() as folder, LineView(stream=sys.stderr) as view:
        summary = run(bench, out=Path(folder) / "run", view=view)
    scores = (f"{summary[key]:.4f}" for key in ("accuracy", "macro_f1", "majority_accuracy"))
    promise = (rounded_up(summary["epsilon"], digits=2), f"{summary['delta']:g}")
    sites, labels = f"{summary['sites']}", f"{len(config.task.labels)}"
    return (Path(file).name, sites, labels, *scores, *promise, f"{summary['seconds']:.0f}")
