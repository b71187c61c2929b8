from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedward_common.errors import OutputError
from fedward_simulations.sweep.folder import SweepFolder
from fedward_simulations.sweep.plan import Plan
from fedward_simulations.sweep.plots import _accuracy_axis, draw_sweep
from fedward_simulations.sweep.table import Results
from support.sweeping import wards

pytestmark = pytest.mark.filterwarnings("ignore:Unable to import Axes3D")


def swept(tmp_path: Path, *, grid: str, seeds: str = "[0, 1, 2]") -> tuple[Plan, SweepFolder]:
    plan, _ = Plan.load(wards(tmp_path, head=f"seeds = {seeds}", grid=grid))
    folder = SweepFolder(root=tmp_path / "out")
    with folder.begin(plan):
        pass
    return plan, folder


def finish(
    plan: Plan, folder: SweepFolder, *, epsilons: dict[str, float] | None = None, evaluated: bool = True
) -> None:
    for number, job in enumerate(plan.jobs):
        run = folder.run(job.name)
        run.mkdir(parents=True)
        epsilon = job.config.privacy.epsilon
        accuracy = min(0.3 + 0.06 * epsilon + 0.02 * (number % 3), 1.0)
        summary: dict[str, Any] = dict.fromkeys(("macro_f1", "majority_accuracy", "delta", "bytes_up", "seconds"), 1.0)
        summary |= {"bytes_down": 1, "rounds": 3, "sites": 2, "accuracy": accuracy, "epsilon": epsilon}
        summary["epsilon_by_site"] = epsilons or {"a": epsilon, "b": epsilon}
        (run / "run.toml").write_text(job.config.to_toml())
        (run / "summary.json").write_text(json.dumps(summary))
        rows = [
            {
                "round": n,
                "bytes_up": 1000,
                "bytes_down": 3000,
                "evaluation": {"accuracy": accuracy * n / 3} if evaluated else None,
            }
            for n in (1, 2, 3)
        ]
        (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("values", [(0.5, 1.02), (0.97, 1.05), (0.2, 0.4), (-0.3, 1.4)])
def test_an_accuracy_axis_has_no_tick_that_an_accuracy_cannot_have(values: tuple[float, float]) -> None:
    axes = Figure().add_subplot()
    axes.plot([0, 1], values)
    _accuracy_axis(axes)
    before = axes.get_ylim()
    assert all(0 <= tick <= 1 for tick in axes.get_yticks())
    assert len(axes.get_yticks()) >= 2
    assert all(label.get_text().endswith(" %") for label in axes.get_yticklabels())
    assert axes.get_ylim() == before
    assert before[1] <= 1.02


def drawn(plan: Plan, folder: SweepFolder) -> tuple[set[str], str]:
    paths, missing = draw_sweep(Results.read(plan, folder), folder)
    assert all(path.stat().st_size > 5000 for path in paths)
    assert set((folder.root / "plots").iterdir()) == set(paths)
    return {path.stem for path in paths}, " ".join(missing)


def test_a_curve_of_epsilon_has_all_pictures_but_sites_which_send_no_figures_of_their_own(tmp_path: Path) -> None:
    plan, folder = swept(tmp_path, grid='"privacy.epsilon" = [1.0, 4.0, 8.0]\n"adapter.rank" = [2, 4]')
    finish(plan, folder)
    names, missing = drawn(plan, folder)
    assert names == {"accuracy_over_epsilon", "accuracy_over_rounds", "accuracy_over_bytes"}
    assert "No picture sites.png" in missing
    assert "one aggregate" in missing


def test_a_picture_without_figures_is_not_drawn_and_is_named(tmp_path: Path) -> None:
    plan, folder = swept(tmp_path, grid='"adapter.rank" = [2, 4]', seeds="[0]")
    finish(plan, folder, evaluated=False, epsilons={"a": 3.0, "b": 8.0})
    names, missing = drawn(plan, folder)
    assert names == {"sites"}  # epsilon by site, where it differs
    assert "No picture accuracy_over_epsilon.png: fewer than two values of privacy.epsilon" in missing
    assert "No picture accuracy_over_rounds.png: no finished run has an evaluation" in missing


def test_figures_by_site_and_many_points(tmp_path: Path) -> None:
    values = ", ".join(f"{n}.0" for n in range(1, 31))
    plan, folder = swept(tmp_path, grid=f'"privacy.epsilon" = [{values}]', seeds="[0, 1]")
    finish(plan, folder)
    for job in plan.jobs:
        rows = [{"site": site, "accuracy": share} for site, share in (("a", 0.4), ("b", 0.6))]
        (folder.run(job.name) / "sites.json").write_text(json.dumps(rows))
    names, missing = drawn(plan, folder)
    assert "sites" in names
    assert not missing


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    plan, folder = swept(tmp_path, grid='"privacy.epsilon" = [1.0, 4.0]')
    finish(plan, folder)
    (folder.root / "plots").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        draw_sweep(Results.read(plan, folder), folder)
