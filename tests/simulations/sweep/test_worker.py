from __future__ import annotations

import json
import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fedward_common.config import RunConfig
from fedward_common.errors import OutputError
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.sweep import worker
from fedward_simulations.sweep.plan import Plan
from fedward_simulations.sweep.worker import Advanced, Bench, Ended, Failed, News, Order, kinship
from support.sweeping import wards

RUN: dict[str, Any] = {"data": {"train": "notes.csv"}, "task": {"labels": ["yes", "no"]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"train": "other.csv"}},
        {"partition": {"sites": 3}},
        {"model": {"max_tokens": 64}},
        {"task": {"labels": ["yes", "no", "maybe"]}},
        {"adapter": {"rank": 4}},
        {"seed": 1},
        {"privacy": {"delta": 1e-6}},
        {"privacy": {"validation_fraction": 0.1}},
        {"rounds": {"minimum": 2}},
        {"simulation": {"dropout": 0.1}},
    ],
)
def test_run_files_that_differ_in_data_partition_model_task_adapter_seed_delta_or_sites_number_are_no_kin(
    changes: dict[str, Any],
) -> None:
    assert kinship(RunConfig.model_validate(RUN)) != kinship(RunConfig.model_validate(RUN | changes))


def test_privacy_levels_stages_and_the_server_are_kin() -> None:
    changes = {"privacy": {"epsilon": 2.0, "clip_norm": 0.5}, "server": {"learning_rate": 1.0}, "name": "x"}
    assert kinship(RunConfig.model_validate(RUN)) == kinship(RunConfig.model_validate(RUN | changes))


def orders(folder: Path, plan: Plan, *, out: str, per_site: bool = False) -> list[Order]:
    return [
        Order(
            name=job.name,
            run_file=job.config.to_toml(),
            kin=kinship(job.config),
            out=folder / out / job.name,
            log=folder / "log",
            per_site=per_site,
        )
        for job in plan.jobs
    ]


def digest(order: Order) -> str:
    return str(json.loads((order.out / "summary.json").read_text())["adapter_digest"])


def test_a_shared_model_and_data_give_the_same_bits_as_fresh_ones_also_after_a_stop(tmp_path: Path) -> None:
    plan, _ = Plan.load(wards(tmp_path, grid='"privacy.epsilon" = [8.0, 2.0]'))
    shared, fresh, stopped = (orders(tmp_path, plan, out=out) for out in ("shared", "fresh", "stopped"))
    bench, news = Bench(), list[News]()
    for order in shared:
        worker._perform(order, bench, news.append)
    held = bench._held
    assert [item for item in news if isinstance(item, Advanced)] == [
        Advanced(order.name, n) for order in shared for n in (1, 2, 3)
    ]
    worker._perform(fresh[1], Bench(), news.append)
    assert digest(fresh[1]) == digest(shared[1])
    assert digest(shared[0]) != digest(shared[1])

    class Stop(Exception):
        pass

    def stop(item: News) -> None:
        raise Stop

    with pytest.raises(Stop):
        worker._perform(stopped[1], bench, stop)
    assert not (stopped[1].out / "summary.json").exists()
    worker._perform(stopped[1], bench, news.append)  # goes on from its checkpoint
    assert digest(stopped[1]) == digest(fresh[1])
    assert bench._held is held
    (stopped[0].out / "bundle").mkdir(parents=True)  # a stop before the first checkpoint
    worker._perform(stopped[0], bench, news.append)
    assert digest(stopped[0]) == digest(shared[0])
    before = (stopped[0].out / "summary.json").stat().st_mtime_ns
    worker._perform(stopped[0], bench, news.append)
    assert (stopped[0].out / "summary.json").stat().st_mtime_ns == before


def test_a_stopped_job_goes_on_with_the_engine_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = Plan.load(wards(tmp_path, grid='"privacy.epsilon" = [8.0, 2.0]'))
    order, seen = orders(tmp_path, plan, out="stopped")[0], list[Computing]()

    def stop(item: News) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker._perform(replace(order, computing=Computing(engine=Engine.SEQUENTIAL)), Bench(), stop)
    monkeypatch.setattr("fedward_simulations.run.resume", lambda *_, computing, **__: seen.append(computing))
    worker._perform(replace(order, computing=Computing(processes=2, device="cpu")), Bench(), stop)
    assert seen == [Computing(engine=Engine.SEQUENTIAL, processes=2, device="cpu")]


def test_a_run_that_may_have_asked_a_site_stays_where_it_is(tmp_path: Path) -> None:
    plan, _ = Plan.load(wards(tmp_path))
    (order,) = orders(tmp_path, plan, out="runs")

    def stop(item: News) -> None:
        if item == Advanced(order.name, 2):  # the second round is done, and only the first has its checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker._perform(order, Bench(), stop)
    newest = max((order.out / "checkpoints").iterdir())
    (newest / "state.json").write_text("{}")
    before = {path: path.read_bytes() for path in order.out.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="is corrupt") as error:
        worker._perform(order, Bench(), lambda item: None)
    assert "remove it to continue from" in error.value.hint
    (order.out / "bundle" / "bundle.json").unlink()
    with pytest.raises(OutputError, match="no readable run bundle"):
        worker._perform(order, Bench(), lambda item: None)
    del before[order.out / "bundle" / "bundle.json"]
    assert {path: path.read_bytes() for path in order.out.rglob("*") if path.is_file()} == before


def test_figures_by_site_are_of_records_that_no_site_trained_on(tmp_path: Path) -> None:
    plan, _ = Plan.load(wards(tmp_path))
    (order,) = orders(tmp_path, plan, out="runs", per_site=True)
    bench = Bench()
    worker._perform(order, bench, lambda news: None)
    rows = json.loads((order.out / "sites.json").read_text())
    assert bench._held is not None
    data = bench._held.data
    assert {row["site"] for row in rows} == set(data)
    for row in rows:
        assert row["records"] == sum(
            len(data[row["site"]].records_of(int(u))) for u in data[row["site"]].validation_units
        )
        assert 0 <= row["accuracy"] <= 1
        assert row["epsilon"] > 7.9


def test_a_job_that_raises_is_reported_and_the_next_one_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def perform(order: Order, bench: Bench, tell: worker.Tell) -> None:
        if order.name == "bad":
            raise ValueError("patient Miller")

    monkeypatch.setattr(worker, "_perform", perform)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    ours, theirs = Pipe()
    serving = threading.Thread(target=worker.serve, args=(theirs, 0))
    serving.start()
    for name in ("bad", "good"):
        ours.send(Order(name=name, run_file="", kin="", out=tmp_path / name, log=tmp_path / "log"))
    told = [ours.recv(), ours.recv()]
    ours.close()
    serving.join(10)
    assert not serving.is_alive()
    assert told == [Failed("bad", "ValueError in the run", f"see {tmp_path / 'log'}"), Ended("good")]
    assert "Miller" not in str(told)
    assert "Miller" in capfd.readouterr().err  # in a process of its own: in the log
