from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedward_common.errors import OutputError
from fedward_simulations.sweep.folder import Status, SweepFolder
from fedward_simulations.sweep.plan import Job, Plan
from support.sweeping import wards

TWO = '"privacy.epsilon" = [1.0, 8.0]'


def made(tmp_path: Path, **changes: str) -> tuple[Plan, SweepFolder]:
    plan, _ = Plan.load(wards(tmp_path, **{"grid": TWO, **changes}))  # type: ignore[arg-type]
    return plan, SweepFolder(root=tmp_path / "out")


def done(folder: SweepFolder, job: Job) -> None:
    folder.run(job.name).mkdir(parents=True)
    (folder.run(job.name) / "run.toml").write_text(job.config.to_toml())
    (folder.run(job.name) / "summary.json").write_text(json.dumps({"accuracy": 0.5}))


def begin(folder: SweepFolder, plan: Plan) -> None:
    with folder.begin(plan) as new:
        assert new == 0


def go_on(folder: SweepFolder, plan: Plan) -> int:
    with folder.go_on(plan) as new:
        return new


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    folder.root.mkdir()
    begin(folder, plan)
    with pytest.raises(OutputError, match="is not empty") as error:
        begin(folder, plan)
    assert "--resume" in error.value.hint
    with pytest.raises(OutputError, match="is a file"):
        begin(SweepFolder(root=tmp_path / "notes.csv"), plan)


def test_what_ran_stays_in_the_sweep_a_plan_that_leaves_out_a_job_that_began_is_refused(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    fewer, _ = made(tmp_path, grid='"privacy.epsilon" = [8.0]')
    assert go_on(folder, fewer) == 0  # nothing ran
    go_on(folder, plan)
    done(folder, plan.jobs[0])
    with pytest.raises(OutputError, match=r"the sweep file lacks 1 run in .* changed"):
        go_on(folder, fewer)


def test_a_changed_run_file_is_noticed_and_new_points_are_counted(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    done(folder, plan.jobs[1])
    more, _ = made(tmp_path, grid='"privacy.epsilon" = [1.0, 3.0, 8.0]')
    assert go_on(folder, more) == 1
    assert [folder.status(job) for job in more.jobs] == [Status.PENDING, Status.PENDING, Status.DONE]
    changed, _ = made(tmp_path, extra="[server]\nlearning_rate = 0.9\n")
    with pytest.raises(OutputError, match="its run file changed"):
        go_on(folder, changed)


def test_a_sweep_that_grew_after_a_job_began_says_so_from_then_on(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    assert not folder.grown
    more, _ = made(tmp_path, grid='"privacy.epsilon" = [1.0, 3.0, 8.0]')
    go_on(folder, more)
    assert not folder.grown, "nothing had begun"
    done(folder, more.jobs[0])
    go_on(folder, more)
    assert not folder.grown, "nothing was added"
    most, _ = made(tmp_path, grid='"privacy.epsilon" = [1.0, 3.0, 5.0, 8.0]')
    go_on(folder, most)
    assert folder.grown
    go_on(folder, most)
    assert folder.grown


def test_data_that_changed_since_the_sweep_began_is_refused(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    with (tmp_path / "notes.csv").open("a") as file:
        file.write("cough,lung\n")
    with pytest.raises(OutputError, match=r"notes\.csv changed since the sweep began"):
        go_on(folder, plan)


def test_without_a_sweep_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    with pytest.raises(OutputError, match="there is no sweep"):
        go_on(folder, plan)
    begin(folder, plan)
    (folder.root / "sweep.json").write_text('{"jobs": ')
    with pytest.raises(OutputError, match="is broken"):
        go_on(folder, plan)


def test_two_sweeps_in_one_folder_are_refused_and_nothing_is_written_by_the_second(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    more, _ = made(tmp_path, grid='"privacy.epsilon" = [1.0, 3.0, 8.0]')
    with folder.begin(plan):
        before = (folder.root / "sweep.json").read_text()
        with pytest.raises(OutputError, match="another sweep is at work"):
            go_on(folder, more)
        assert (folder.root / "sweep.json").read_text() == before
    with folder.go_on(more), pytest.raises(OutputError, match="another sweep is at work"):
        go_on(folder, more)
    assert go_on(folder, more) == 0


def test_what_ran_counts_also_where_nothing_is_written_of_it(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    fewer, _ = made(tmp_path, grid='"privacy.epsilon" = [8.0]')
    begin(folder, fewer)
    done(folder, next(job for job in plan.jobs if job.config.privacy.epsilon == 1.0))
    with pytest.raises(OutputError, match=r"the sweep file lacks 1 run in .* changed"):
        go_on(folder, fewer)


def test_states_of_a_job(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    job = plan.jobs[0]
    assert folder.status(job) is Status.PENDING
    folder.run(job.name).mkdir(parents=True)
    assert folder.status(job) is Status.STOPPED
    folder.fail(job.name, what="no", hint="try")
    assert folder.status(job) is Status.FAILED
    assert folder.failure(job) == {"what": "no", "hint": "try"}
    folder.forgive(job.name)
    assert folder.failure(job) == {}
    folder.run(job.name).rmdir()
    done(folder, job)
    assert folder.status(job) is Status.DONE
    assert folder.status(job, per_site=True) is Status.STOPPED


def test_a_run_of_another_run_file_under_a_jobs_name_is_refused(tmp_path: Path) -> None:
    plan, folder = made(tmp_path)
    begin(folder, plan)
    done(folder, plan.jobs[0])
    assert folder.summary(plan.jobs[0]) == {"accuracy": 0.5}
    (folder.run(plan.jobs[0].name) / "run.toml").write_text(plan.jobs[1].config.to_toml())
    with pytest.raises(OutputError, match="holds another run"):
        folder.summary(plan.jobs[0])
