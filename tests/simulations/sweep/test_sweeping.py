"""Whole sweeps on the tiny base, in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from fedward_common.config import RunConfig
from fedward_common.privacy.grants import Quote
from fedward_simulations.engines import BY_DEFAULT
from fedward_simulations.sweep import sweeping
from fedward_simulations.sweep.folder import SweepFolder
from fedward_simulations.sweep.plan import Plan
from fedward_simulations.sweep.sweeping import _figures, _order, _spent, sweep
from fedward_simulations.sweep.tuning import Spent, composed, sentences
from fedward_simulations.sweep.view import choose_sweep_view
from fedward_simulations.sweep.worker import Bench, _perform
from support.sweeping import wards

SWEEP = [sys.executable, "-m", "fedward_simulations", "sweep"]
GRID = '"privacy.epsilon" = [2.0, 8.0]'
RUN = {"data": {"train": "notes.csv"}, "task": {"labels": ["yes", "no"]}}
HEAD = "seeds = [0, 1]\nprocesses = 1"


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SWEEP, *arguments], capture_output=True, text=True, check=False, timeout=500)


@contextlib.contextmanager
def at_work(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [*SWEEP, *map(str, arguments)]
    # a session of its own, so that a signal to the group is what a terminal sends
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def digests(out: Path) -> dict[str, str]:
    found = out.glob("runs/*/summary.json")
    return {path.parent.name: json.loads(path.read_text())["adapter_digest"] for path in found}


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}


def one_is_done(out: Path) -> None:
    until = time.monotonic() + 300
    while not stamps(out) and time.monotonic() < until:
        time.sleep(0.01)
    assert stamps(out)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    wards(folder, head=HEAD, grid=GRID)
    return folder


@pytest.fixture(scope="module")
def finished(work: Path) -> Path:
    done = call(work / "sweep.toml", "--out", work / "whole")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "4/4 done" in done.stdout
    assert "on real data the epsilons of all 4 runs that began compose" in done.stdout
    assert "seeded_randomness" in done.stdout
    return work / "whole"


def test_a_sweep_leaves_tables_pictures_and_a_report(finished: Path) -> None:
    rows = pyarrow.parquet.read_table(finished / "results.parquet").to_pylist()
    assert [(row["config.privacy.epsilon"], row["seed"], row["status"]) for row in rows] == [
        (2.0, 0, "done"), (2.0, 1, "done"), (8.0, 0, "done"), (8.0, 1, "done"),
    ]  # fmt: skip
    summary = json.loads((finished / "summary.json").read_text())
    cost = summary["privacy_of_tuning"][0]
    assert cost["sum_epsilon"] == pytest.approx(sum(row["epsilon"] for row in rows))
    assert cost["sum_delta"] == pytest.approx(sum(row["delta"] for row in rows))
    assert cost["pld_epsilon"] < cost["sum_epsilon"]
    assert [(point["accuracy_n"], point["accuracy_low"] is None) for point in summary["points"]] == [(2, False)] * 2
    assert {path.stem for path in (finished / "plots").iterdir()} == {
        "accuracy_over_epsilon", "accuracy_over_rounds", "accuracy_over_bytes",
    }  # fmt: skip
    report = (finished / "report.md").read_text()
    assert "compose" in report
    assert "(plots/accuracy_over_epsilon.png)" in report


def test_a_stopped_run_of_a_natural_partition_counts_at_all_the_sites_of_the_data(tmp_path: Path) -> None:
    file = wards(tmp_path)
    table = (tmp_path / "notes.csv").read_text().splitlines()
    rows = [f"{row},{'east' if n % 2 else f'ward-{n % 12}'},p{n % 50}" for n, row in enumerate(table[1:])]
    (tmp_path / "notes.csv").write_text("\n".join([f"{table[0]},ward,who", *rows]) + "\n")
    text = (tmp_path / "run.toml").read_text().replace("sites = 2", 'method = "natural"\nunits = "split"')
    text = text.replace("[partition]", 'site = "ward"\nunit = "who"\n[partition]')
    (tmp_path / "run.toml").write_text(text.replace("[privacy]", '[privacy]\nunit = "patient"'))
    plan, _ = Plan.load(file)
    folder = SweepFolder(root=tmp_path / "out")
    (order,) = [_order(job, plan, folder, BY_DEFAULT) for job in plan.jobs]

    def stop(item: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _perform(order, Bench(), stop)
    (cost,) = composed(_spent(plan, folder))
    assert cost.sum_epsilon == pytest.approx(7 * Quote.of(plan.jobs[0].config.terms).epsilon)
    shutil.rmtree(order.out / "checkpoints")
    (cost,) = composed(_spent(plan, folder))
    assert cost.sum_epsilon is None


def test_table_and_sentences_give_one_run_one_epsilon_that_is_not_below_the_true_one() -> None:
    means = {"accuracy_mean": 0.5, "macro_f1_mean": 0.5, "accuracy_low": None, "accuracy_sd": None}
    (cost,) = costs = composed([Spent(config=RunConfig.model_validate(RUN), epsilons={"ward": 7.9951})])
    assert _figures({"done": 1, "epsilon_mean": cost.sum_epsilon, **means})[-1] == "7.996"
    assert "(sums) a record has epsilon 7.996 at" in sentences(costs, [], per_site=False)[0]


def test_processes_share_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[int] = []
    plan, _ = Plan.load(wards(tmp_path, grid=GRID))
    monkeypatch.setattr(
        sweeping, "_work", lambda orders, watch, size: given.extend(order.computing.processes for order in orders)
    )
    folder = SweepFolder(root=tmp_path / "out")
    with folder.begin(plan), choose_sweep_view(json_lines=True) as view:
        sweep(plan, folder, processes=8, view=view)
    assert given == [2, 2]  # no more than there are runs


def test_a_finished_job_is_not_run_again(work: Path, finished: Path) -> None:
    before = stamps(finished)
    done = call(work / "sweep.toml", "--out", finished, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["started", "summary"]
    assert events[0]["done"] == 4
    assert stamps(finished) == before


@pytest.mark.slow
def test_killed_at_any_instant_the_sweep_goes_on_from_there_with_go_on(work: Path, finished: Path) -> None:
    out = work / "killed"
    with at_work(work / "sweep.toml", "--out", out, "--processes", "2") as process:
        one_is_done(out)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 20
        while _group(process.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _group(process.pid), "a worker outlived the sweep"
    before = stamps(out)
    done = call(work / "sweep.toml", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert before.items() <= stamps(out).items()
    assert digests(out) == digests(finished)


def _group(number: int) -> list[str]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == number and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_ctrl_c_leaves_tables_of_what_is_done_says_how_to_resume_and_ends_with_130(work: Path) -> None:
    out = work / "stopped"
    with at_work(work / "sweep.toml", "--out", out) as process:
        one_is_done(out)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"hint: fedward-sim sweep {work / 'sweep.toml'} --out {out} --resume" in errors
    rows = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    statuses = {row["status"] for row in rows}
    assert "done" in statuses
    assert statuses <= {"done", "stopped", "pending"}


def test_a_job_that_fails_or_whose_process_dies_is_recorded_the_others_go_on(work: Path) -> None:
    file = work / "failing.toml"
    file.write_text('run = "run.toml"\n[grid]\n"partition.sites" = [70, 2]\n')
    done = call(file, "--out", work / "failing", "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (1, 1)
    rows = pyarrow.parquet.read_table(work / "failing" / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert "70 sites" in rows[0]["error"]
    assert rows[1]["epsilon"] == pytest.approx(summary["privacy_of_tuning"][0]["sum_epsilon"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('run = "run.toml"\nsedes = [1]\n', "unknown key sedes"),
        ('run = "run.toml"\n[grid]\n"privacy.epsilom" = [1.0]\n', "the run file has no privacy.epsilom"),
        ('run = "run.toml"\n[grid]\n"privacy.epsilon" = [0]\n', "privacy.epsilon should be greater than 0"),
        ('run = "nowhere.toml"\n', "cannot read run file"),
    ],
)
def test_a_wrong_sweep_file_is_one_error_line_and_a_hint_before_anything_runs(
    work: Path, text: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedward_simulations.cli import main

    (work / "wrong.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["fedward-sim", "sweep", str(work / "wrong.toml"), "--out", str(work / "none")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("fedward: error: ")
    assert what in error
    assert hint.startswith("hint: ")
    assert not (work / "none").exists()
