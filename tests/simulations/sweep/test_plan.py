from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError
from fedward_common.simulated import SimulationConfig
from fedward_simulations.sweep.file import SweepFile
from fedward_simulations.sweep.plan import Plan

RUN: dict[str, Any] = {"name": "wards", "data": {"train": "notes.csv"}, "task": {"labels": ["yes", "no"]}}


def plan(**table: Any) -> Plan:
    return Plan.of(SweepFile.model_validate({"run": RUN, **table}), folder=Path(), source="sweep.toml")


def test_grid_times_seeds_and_the_list_beside_it() -> None:
    made = plan(
        seeds=[0, 1],
        grid={"privacy.epsilon": [1.0, 8.0], "adapter.rank": [4, 8]},
        list=[{"privacy.epsilon": 3, "server.weights": "equal"}],
    )
    assert len(made.points) == 5
    assert len(made.jobs) == 10
    assert made.paths == ("privacy.epsilon", "adapter.rank", "server.weights")
    assert made.points[-1].values == {"privacy.epsilon": 3.0, "adapter.rank": 16, "server.weights": "equal"}
    assert made.points[0].label == "privacy.epsilon=1.0, adapter.rank=4"
    first = made.jobs[0].config
    assert (first.privacy.epsilon, first.adapter.rank, first.seed) == (1.0, 4, 0)


def test_a_jobs_name_is_the_same_in_every_plan_that_holds_its_run_file_and_of_no_other_run_file() -> None:
    small = plan(seeds=[1], grid={"privacy.epsilon": [8.0]})
    large = plan(seeds=[0, 1], name="other", grid={"privacy.epsilon": [1.0, 8.0]})
    assert small.jobs[0].name in {job.name for job in large.jobs}
    assert len({job.name for job in large.jobs}) == 4
    changed = plan(seeds=[1], grid={"privacy.epsilon": [8.0]}, run=RUN | {"server": {"learning_rate": 0.5}})
    assert changed.jobs[0].name != small.jobs[0].name


def test_no_two_jobs_are_the_same_run() -> None:
    with pytest.raises(ConfigError, match="points 1 and 2 are the same run"):
        plan(grid={"privacy.epsilon": [4, 4.0]})
    with pytest.raises(ConfigError, match="points 2 and 3 are the same run"):
        plan(grid={"privacy.epsilon": [1.0, 2.0]}, list=[{"privacy.epsilon": 2.0}])


def test_seeds_are_the_run_files_own_where_none_are_given() -> None:
    made = plan(run=RUN | {"seed": 7})
    assert [(job.seed, job.config.seed, job.point.label) for job in made.jobs] == [(7, 7, "")]


@pytest.mark.parametrize(
    ("grid", "what", "hint"),
    [
        ({"privacy.epsilom": [1.0]}, "sweep.toml: the run file has no privacy.epsilom", "clip_norm, delta, epsilon"),
        ({"stages.warmup.rounds": [1]}, "the run file has no stages.warmup.rounds", "head, adapter"),
        ({"privacy.epsilon.deep": [1]}, "the run file has no privacy.epsilon.deep", "docs/run-file.md"),
        ({"privacy.epsilon": [1.0, -1.0]}, "point privacy.epsilon=-1.0: privacy.epsilon should be greater", "docs"),
        ({"privacy.epsilon": ["8"]}, "privacy.epsilon should be a valid number", "docs"),
        ({"adapter.freeze_a": [True]}, "freeze_a belongs to method 'lora'", "docs"),
        ({"simulation.dropuot": [0.1]}, "the run file has no simulation.dropuot", "dropout"),
        ({"stages.head.rounds": [1], "stages.0.rounds": [2]}, "stages.0.rounds undoes stages.head.rounds", "leave one"),
        ({"stages.head.rounds": [1], "stages": [[]]}, "stages undoes stages.head.rounds", "leave one"),
        ({"seed": [1, 2]}, "seed cannot be swept", "seeds = "),
        ({"output": ["x"]}, "output cannot be swept", "the sweep's"),
        ({"seedy": [1]}, "the run file has no seedy", "partition, privacy"),
    ],
)
def test_a_path_that_the_run_file_lacks_or_a_value_that_it_refuses_is_one_line_and_a_hint(
    grid: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan(grid=grid)
    assert what in str(error.value)
    assert hint in error.value.hint
    assert "\n" not in str(error.value) + error.value.hint


def test_stages_are_named_or_counted_and_optional_tables_made() -> None:
    made = plan(list=[{"stages.head.rounds": 3, "stages.1.rounds": 4, "simulation.dropout": 0.25}])
    config = made.jobs[0].config
    assert [stage.rounds for stage in config.stages] == [3, 4]
    assert config.simulation is not None
    assert made.points[0].values == {"stages.head.rounds": 3, "stages.1.rounds": 4, "simulation.dropout": 0.25}


def test_several_keys_of_a_table_that_the_run_file_leaves_out() -> None:
    made = plan(list=[{"simulation.dropout": 0.25, "simulation.compute_s": 60.0}])
    simulation = made.jobs[0].config.simulation
    assert simulation == SimulationConfig(dropout=0.25, compute_s=60.0)


def test_what_a_point_leaves_out_is_none_where_the_run_file_has_nothing() -> None:
    made = plan(list=[{"simulation.dropout": 0.25}, {"privacy.epsilon": 1.0}])
    assert made.points[1].values == {"simulation.dropout": None, "privacy.epsilon": 1.0}


def test_too_many_runs() -> None:
    with pytest.raises(ConfigError, match="20000 runs are too many"):
        plan(seeds=list(range(20_000)))


def test_a_wrong_inline_run_file_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.toml: run: unknown key dta"):
        plan(run=RUN | {"dta": 1})
    with pytest.raises(ConfigError, match="cannot read run file"):
        plan(run="nowhere.toml")


def test_run_files_count_from_the_sweep_files_folder_and_scenarios_have_names(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RunConfig.model_validate(RUN).to_toml())
    (tmp_path / "sweep.toml").write_text('run = "run.toml"\n')
    made, file = Plan.load(tmp_path / "sweep.toml")
    assert made.jobs[0].config == RunConfig.model_validate(RUN)
    assert file.processes == 1
    assert len(plan(run="@ten-hospitals", seeds=[0, 1]).jobs) == 2


def test_a_job_writes_where_the_sweep_says_whatever_the_run_file_says() -> None:
    assert plan(run=RUN | {"output": "elsewhere"}).jobs[0].config.output is None
