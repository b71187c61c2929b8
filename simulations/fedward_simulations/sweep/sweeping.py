"""A whole sweep: from a checked plan to tables, pictures and a report, whatever happens in between.

Runs are done by workers; this module writes down what they tell and collects what they left. Light: no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedward_client.policy import SEEDED_RANDOMNESS
from fedward_common.errors import FedwardError, OutputError
from fedward_common.report import rounded_up
from fedward_simulations.engines import BY_DEFAULT, Computing
from fedward_simulations.results.folders import read_stopped
from fedward_simulations.results.report import load_rounds
from fedward_simulations.sweep.folder import Status, SweepFolder
from fedward_simulations.sweep.plan import Job, Plan
from fedward_simulations.sweep.plots import draw_sweep
from fedward_simulations.sweep.progress import SweepProgress
from fedward_simulations.sweep.table import Results
from fedward_simulations.sweep.team import Team
from fedward_simulations.sweep.tuning import DIGITS, Composed, Spent, composed, sentences
from fedward_simulations.sweep.view import SweepView
from fedward_simulations.sweep.worker import Advanced, Failed, News, Order, kinship
from fedward_simulations.watching.tables import aligned

__all__ = ["collect", "sweep"]


def sweep(
    plan: Plan, folder: SweepFolder, *, processes: int, view: SweepView, computing: Computing = BY_DEFAULT
) -> dict[str, Any]:
    """Run every job of a plan that is not done, then collect all results.

    Args:
      plan: of the sweep.
      folder: that ``begin`` or ``go_on`` holds.
      processes: at work at a time, at most.
      view: watches.
      computing: by which engine.

    Returns:
      The summary, as in summary.json.

    Guarantees:
      - A job that fails, or whose process dies, is recorded; the others go on.
      - A finished job is not run again.
      - Killed at any instant, the sweep goes on from there with ``go_on``; Ctrl-C also leaves tables of what is done.

    Raises:
      OutputError: the folder cannot be written.
    """
    done = [job.name for job in plan.jobs if folder.status(job, per_site=plan.per_site) is Status.DONE]
    rounds = {job.name: job.config.total_rounds for job in plan.jobs}
    begun = {job.name: _rounds_of(folder.run(job.name)) for job in plan.jobs}
    progress = SweepProgress(rounds=rounds, finished=done, begun=begun)
    view.started(name=plan.name, out=str(folder.root), progress=progress)
    jobs = {job.name: job for job in plan.jobs if job.name not in set(done)}
    size = min(processes, len(jobs))
    computing = replace(computing, processes=max(size, 1))
    orders = [_order(job, plan, folder, computing) for job in jobs.values()]
    watch = _Watch(jobs=jobs, folder=folder, progress=progress, view=view)
    try:
        _work(orders, watch, size=size)
    except KeyboardInterrupt:
        collect(plan, folder)
        raise
    summary, lines = collect(plan, folder)
    view.finished(summary, lines)
    return summary


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """What becomes of news."""

    jobs: Mapping[str, Job]
    folder: SweepFolder
    progress: SweepProgress
    view: SweepView

    def take(self, news: News) -> None:
        if isinstance(news, Advanced):
            self.progress.advance(news.name, rounds=news.rounds)
            return
        job, outcome = self.jobs[news.name], ""
        if isinstance(news, Failed):
            self.folder.fail(news.name, what=news.what, hint=news.hint)
            outcome = f"failed: {news.what}"
        else:
            summary = self.folder.summary(job)
            outcome = f"accuracy {summary['accuracy']:.4f}  epsilon {rounded_up(summary['epsilon'], digits=2)}"
        self.progress.end(news.name, failed=isinstance(news, Failed))
        self.view.ended(label=job.point.label, seed=job.seed, outcome=outcome)


def _work(orders: list[Order], watch: _Watch, *, size: int) -> None:
    for order in orders:
        watch.folder.forgive(order.name)
    with Team(size=size, threads=max((os.cpu_count() or 1) // max(size, 1), 1)) as team:
        for news in team.work(orders):
            if news is not None:
                watch.take(news)
            watch.view.tick()


def _order(job: Job, plan: Plan, folder: SweepFolder, computing: Computing) -> Order:
    return Order(
        name=job.name,
        run_file=job.config.to_toml(),
        kin=kinship(job.config),
        out=folder.run(job.name),
        log=folder.log(job.name),
        per_site=plan.per_site,
        computing=computing,
    )


# ---- results -------------------------------------------------------------------
def collect(plan: Plan, folder: SweepFolder) -> tuple[dict[str, Any], list[str]]:
    """Write tables, pictures, report.md and summary.json of what a folder holds.

    Returns:
      The summary, and the report's table and sentences as plain lines.

    Raises:
      OutputError: something cannot be read or written.
    """
    results = Results.read(plan, folder)
    costs = composed(_spent(plan, folder), grown=folder.grown)
    notes = sentences(costs, [job.config for job in plan.jobs], per_site=plan.per_site) if costs else []
    pictures, missing = draw_sweep(results, folder) if results.count(Status.DONE) else ([], [])
    results.write(folder, notes=notes)
    summary = _summary(results, folder, costs, notes, pictures, missing)
    folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    lines = [*_point_lines(results), "", *_failures(results), *notes, *missing]
    folder.write("report.md", _report(results, lines, pictures))
    return summary, [*lines, f"Tables, pictures and report.md are in {folder.root}."]


def _spent(plan: Plan, folder: SweepFolder) -> Iterator[Spent]:
    """Every run that began; one that did not end may have spent all that it reserved."""
    for job in plan.jobs:
        status = folder.status(job)
        if status is Status.DONE:
            yield Spent(config=job.config, epsilons=folder.summary(job)["epsilon_by_site"])
        elif folder.run(job.name).exists():
            yield Spent(config=job.config, epsilons=None, sites=_sites(folder.run(job.name)))


def _rounds_of(out: Path) -> int:
    """The rounds that a run finished before."""
    try:
        return max((int(row["round"]) for row in load_rounds(out) if not row["abandoned"]), default=0)
    except (OutputError, KeyError):
        return 0


def _sites(out: Path) -> int | None:
    """How many sites a run that did not end has, as its checkpoint says."""
    try:
        return int(read_stopped(out).checkpoint.extra["sites"])
    except (FedwardError, KeyError):
        return None


def _summary(
    results: Results,
    folder: SweepFolder,
    costs: list[Composed],
    notes: list[str],
    pictures: list[Path],
    missing: list[str],
) -> dict[str, Any]:
    return {
        "version": 1,
        "name": results.plan.name,
        "runs": len(results.runs),
        **{status.value: results.count(status) for status in Status},
        "points": list(results.points),
        "privacy_of_tuning": [asdict(cost) for cost in costs],
        "waivers": [SEEDED_RANDOMNESS],
        "notes": notes,
        "plots": [str(path) for path in pictures],
        "left_out": missing,
        "out": str(folder.root),
    }


def _point_lines(results: Results) -> list[str]:
    rows = [("n", "accuracy", "sd", "95 % interval", "macro F1", "epsilon", "point")]
    for point, row in zip(results.plan.points, results.points, strict=True):
        rows.append((f"{row['done']}/{row['runs']}", *_figures(row), point.label or results.plan.name))
    return aligned(rows, left=0)


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    if not row["done"]:
        return "-", "-", "-", "-", "-"
    interval = "none: one seed"
    if row["accuracy_low"] is not None:
        interval = f"{row['accuracy_low']:.4f} to {row['accuracy_high']:.4f}"
    spread = "-" if row["accuracy_sd"] is None else f"{row['accuracy_sd']:.4f}"
    spent = rounded_up(row["epsilon_mean"], digits=DIGITS)
    return f"{row['accuracy_mean']:.4f}", spread, interval, f"{row['macro_f1_mean']:.4f}", spent


def _failures(results: Results) -> list[str]:
    failed = [row for row in results.runs if row["status"] == Status.FAILED.value]
    return [f"Run {row['run']} (point {row['point']}, seed {row['seed']}) failed: {row['error']}" for row in failed]


def _report(results: Results, lines: list[str], pictures: list[Path]) -> str:
    table, rest = lines[: len(results.points) + 1], lines[len(results.points) + 2 :]
    body = ["```text", *table, "```", "", "Intervals are Student's t over the seeds of a point (n of its runs done)."]
    shown = [f"![{path.stem}](plots/{path.name})" for path in pictures]
    return "\n".join([f"# Sweep {results.plan.name}", "", *body, "", *(f"- {line}" for line in rest), "", *shown, ""])
