"""Flower's Ray engine: the same results, nothing forgotten between workers, nothing left running."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedward_common.codec import decode_reply, new_key
from fedward_common.errors import InputError
from fedward_common.round import Refusal, Update
from fedward_simulations.engines import Computing, Engine
from fedward_simulations.ray.cluster import RayCluster, on_ray
from fedward_simulations.ray.sites import Description, Kept, Workplace
from fedward_simulations.results.folders import read_stopped
from fedward_simulations.run import Workbench, run
from support.federation import KEYS, LABELS, STAGES, plan_bytes, small_bench, small_config
from support.tiny import WORDS
from support.watch import Recorder

has_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: fedward[ray]")
quiet = pytest.mark.filterwarnings(  # Ray leaves files open, and processes unwaited for
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
OPERATOR = new_key()
ROUNDS = [{**STAGES[0], "rounds": 1, "evaluate_every": 1}, {**STAGES[1], "rounds": 2}]


def described(bench: Workbench) -> Description:
    return Description.of(bench.prepared.bundle, bench.data, operator=OPERATOR.public_key(), keys=KEYS)


def update_of(bench: Workbench, reply: bytes) -> Update | Refusal:
    spec = bench.prepared.bundle.spec.subset(("head",))
    return decode_reply(reply, public_key=KEYS["site-1"].public_key(), spec=spec)


# ---- a worker, without Ray -----------------------------------------------------------------
def test_any_worker_goes_on_where_another_stopped(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, stages=[{"name": "head", "train": ["head"], "rounds": 2}])
    one, two = Workplace.open(described(bench)), Workplace.open(described(bench))
    first, kept = one.answer("site-1", plan_bytes(bench, OPERATOR), Kept())
    plan = plan_bytes(bench, OPERATOR, round=2)
    there, _ = two.answer("site-1", plan, kept)
    here, _ = one.answer("site-1", plan, kept)
    assert isinstance(update_of(bench, first), Update)
    a, b = update_of(bench, there), update_of(bench, here)
    assert isinstance(a, Update)
    assert isinstance(b, Update)
    assert a.delta.digest == b.delta.digest


def test_a_served_plan_gets_the_stored_bytes_from_any_worker(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    plan = plan_bytes(bench, OPERATOR)
    reply, kept = Workplace.open(described(bench)).answer("site-1", plan, Kept())
    again, after = Workplace.open(described(bench)).answer("site-1", plan, kept)
    assert again == reply
    assert after.ledger == kept.ledger


def test_a_spent_budget_is_spent_on_every_worker(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    _, kept = Workplace.open(described(bench)).answer("site-1", plan_bytes(bench, OPERATOR), Kept())
    another = plan_bytes(bench, OPERATOR, run_id="f" * 64)  # a second run of the same terms is beyond the budget
    reply, after = Workplace.open(described(bench)).answer("site-1", another, kept)
    assert isinstance(update_of(bench, reply), Refusal)
    assert any("budget" in note for note in after.notes)
    assert after.ledger == kept.ledger


def test_what_a_worker_keeps_of_a_site_is_not_trusted_over_the_context(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    worker = Workplace.open(described(bench))
    worker.answer("site-1", plan_bytes(bench, OPERATOR), Kept())  # its context was lost with the reply
    reply, kept = worker.answer("site-1", plan_bytes(bench, OPERATOR), Kept())
    assert isinstance(update_of(bench, reply), Update)
    assert len(kept.ledger) == 4  # open, grant, start, settle


def test_a_worker_with_another_base_model_serves_nobody(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    with pytest.raises(InputError, match="not the coordinator's"):
        Workplace.open(replace(described(bench), initial="0" * 64))


def test_what_is_kept_survives_flowers_context() -> None:
    from flwr.app import RecordDict

    state = RecordDict()
    kept = Kept(ledger=(b'{"a":1}', b'{"b":2}'), run_id="r", plan_id="p", reply=b"\x00\xff", notes=("why",))
    assert Kept.of(state) == Kept()
    for one in (kept, Kept()):
        one.put(state)
        assert Kept.of(state) == one


# ---- Ray -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def room() -> Iterator[Mapping[str, float]]:
    with on_ray(RayCluster()) as found:
        yield found


@has_ray
@quiet
@pytest.mark.slow
def test_results_are_those_of_one_process_also_when_workers_die(tmp_path: Path, room: Mapping[str, float]) -> None:
    bench = small_bench(tmp_path, sites=4, stages=ROUNDS, rounds={"cohort": 3, "minimum": 3, "retries": 0})
    alone = run(bench, out=tmp_path / "alone", view=Recorder(), computing=Computing(engine=Engine.SEQUENTIAL))
    killer = Killer()
    there = run(bench, out=tmp_path / "ray", view=killer, computing=Computing(engine=Engine.RAY, room=room))
    assert killer.killed
    assert there["adapter_digest"] == alone["adapter_digest"]
    assert there["epsilon_by_site"] == alone["epsilon_by_site"]
    assert there["accuracy"] == alone["accuracy"]
    assert not workers_of(os.getpid())


@has_ray
@quiet
@pytest.mark.slow
def test_flowers_engine_that_ended_is_one_error_at_once(tmp_path: Path, room: Mapping[str, float]) -> None:
    from fedward_simulations.ray.engine import RaySites

    class Ending(Recorder):
        def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
            for sites in [held for held in gc.get_objects() if isinstance(held, RaySites) and round == 2]:
                sites._stop.set()
                sites._engine.join()

    bench = small_bench(tmp_path, sites=2, stages=ROUNDS, rounds={"deadline_s": 3600.0})
    with pytest.raises(InputError, match="Flower's engine on Ray ended"):
        run(bench, out=tmp_path / "ray", view=Ending(), computing=Computing(engine=Engine.RAY, room=room))
    assert read_stopped(tmp_path / "ray").checkpoint.state.finished == 1


@has_ray
def test_a_site_that_is_slow_does_not_hold_the_others_up_until_all_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.grid import InMemoryGrid

    from fedward_simulations.ray.engine import RaySites

    sites: Any = object.__new__(RaySites)
    sites._unanswered = {"slow": time.time() + 0.2, "done": time.time() + 0.2}
    sites._engine = threading.current_thread()
    monkeypatch.setattr(RaySites, "_tidied", lambda self, message: message)
    monkeypatch.setattr(InMemoryGrid, "pull_messages", lambda self, names: [name for name in names if name == "done"])
    assert [sites.pull_messages([name]) for name in ("slow", "done")] == [[], ["done"]]
    assert list(sites._unanswered) == ["slow"]


class Killer(Recorder):
    """Kills every worker when the second round begins."""

    killed = False

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        super().round_started(round=round, stage=stage, attempt=attempt, cohort=cohort)
        for worker in workers_of(os.getpid()) if round == 2 else ():
            os.kill(worker, signal.SIGKILL)
            self.killed = True


def workers_of(pid: int) -> list[int]:
    """Flower's workers that run below a process."""
    return [child for child, name in family_of(pid).items() if name.startswith("ray::ClientAppActor")]


def family_of(pid: int) -> dict[int, str]:
    """Every process below this one, and how it calls itself."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (ValueError, OSError):
            continue
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: names[child] for child in below - {pid}}


@has_ray
@quiet
def test_room_for_no_worker_is_one_error(room: Mapping[str, float]) -> None:
    from fedward_simulations.ray.cluster import _room

    with pytest.raises(InputError, match="no machine has 5000 CPU cores"):
        _room(RayCluster(client_cpus=5000))
    with pytest.raises(InputError, match="GPUs for a client"):
        _room(RayCluster(client_gpus=99))


# ---- the command -----------------------------------------------------------------------------
SIM = (sys.executable, "-m", "fedward_simulations")


def run_file(folder: Path) -> Path:
    rows = [f"{word} text {n} {word},{label}" for n in range(60) for word, label in zip(WORDS, LABELS, strict=False)]
    (folder / "notes.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    data = {"train": str(folder / "notes.csv"), "text": ["text"], "label": "label", "test_fraction": 0.2}
    stages = [{"name": "head", "train": ["head"], "rounds": 500}]
    path = folder / "run.toml"
    path.write_text(small_config(folder, data=data, stages=stages).to_toml(), encoding="utf-8")
    return path


@has_ray
@pytest.mark.slow
def test_it_starts_twice_in_a_process() -> None:
    code = (
        "from fedward_simulations.ray.cluster import RayCluster, on_ray\n"
        "for _ in range(2):\n    with on_ray(RayCluster()) as room: print(room['num_cpus'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1.0", "1.0"], done.stderr[-2000:]


@has_ray
def test_a_cluster_that_does_not_answer_is_one_error_line_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        asked = ["run", str(run_file(tmp_path)), "--out", str(tmp_path / "out"), "--lines", "--engine", "ray"]
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        done = subprocess.run([*SIM, *asked, "--ray-address", address], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert time.monotonic() - began < 30  # 15 s, and the start of a process on a busy machine
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("fedward: error: no Ray cluster answers at 127.0.0.1:")
    assert hint.startswith("hint: ")


@has_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_nobody_at_the_address_is_one_error(address: str) -> None:
    with pytest.raises(InputError, match="no Ray cluster answers"), on_ray(RayCluster(address=address)):
        pass


@pytest.mark.parametrize("address", ["", "here", "ray://head:10001", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="not the address"):
        RayCluster(address=address)


def test_without_ray_there_is_one_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as error, on_ray(RayCluster()):
        pass
    assert "fedward[ray]" in error.value.hint


def test_rays_options_without_its_engine_are_refused() -> None:
    with pytest.raises(InputError, match="Ray's engine"):
        Computing(ray=RayCluster(address="auto"))


@has_ray
@pytest.mark.slow
def test_ctrl_c_ends_every_process_of_ray(tmp_path: Path) -> None:
    command = [*SIM, "run", str(run_file(tmp_path)), "--out", str(tmp_path / "out"), "--json", "--engine", "ray"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        for line in process.stdout or ():
            if json.loads(line)["event"] == "round":
                break
        family = family_of(process.pid)
        assert any("raylet" in name for name in family.values())
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # who is impatient leaves nothing behind either
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said
    deadline = time.monotonic() + 10
    while (left := [pid for pid in family if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
