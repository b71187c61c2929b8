from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

import fedward_server.deployment.conductor as module
from fedward_common.errors import InputError, PrivacyError, RunStopped
from fedward_common.machine.logs import json_logging, restored
from fedward_server.checkpoint import Checkpoints
from fedward_server.deployment.authority import Authority
from fedward_server.deployment.conductor import LiveSites, StatusKeeper, conduct
from fedward_server.deployment.flower import FlowerRefused, node_key_pem
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.outcome import Ending, Order
from fedward_server.deployment.runs import RunFolder, RunState
from fedward_server.deployment.superlink import Upstream
from fedward_server.loop import Coordinator
from fedward_server.state import State
from support.coordinating import OPERATOR, FakeGrid, bundle_of, honest
from support.operating import new_operator, node_key, signing_key, statement

TOKEN = "very-secret-token"  # noqa: S105 - of a fake
ROUNDS = {"retries": 0, "deadline_s": 5.0, "minimum": 2}


class Grid(FakeGrid):
    """Two honest sites behind a task's Grid."""

    made: list[Grid]

    def __init__(self, upstream: object, token: str, *, stopping: Any, seen: Any, most_bytes: int) -> None:
        super().__init__({1000 + number: honest(signing_key(number)) for number in (1, 2)})
        self.lost, self.outcomes = False, []  # type: ignore[var-annotated]
        self._stopping, self._seen, self.most_bytes = stopping, seen, most_bytes
        type(self).made.append(self)

    def begin(self) -> Context:
        return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})

    def get_node_ids(self) -> list[int]:
        self._seen({1000 + number: node_key_pem(node_key(number)) for number in (1, 2)})
        return list(super().get_node_ids())

    def finish(self, outcome: object) -> None:
        self.outcomes.append(str(outcome))


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    made = new_operator(tmp_path / "op")
    for number in (1, 2):
        made.enrol(statement(f"s{number}", node=number, signing=number))
    return made


@pytest.fixture
def run(folder: OperatorFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    (tmp_path / "bundle").mkdir()
    bundle_of(rounds=ROUNDS).save(tmp_path / "bundle")
    Grid.made = []
    monkeypatch.setattr(module, "TaskGrid", Grid)
    monkeypatch.setattr(Authority, "plan_key", lambda _: OPERATOR)  # whom the fake sites know
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return folder.create_run(tmp_path / "bundle")


def go(folder: OperatorFolder, run: RunFolder) -> Ending:
    return conduct(folder, run, Order(port=1, token=TOKEN))


def test_a_run_goes_from_nothing_to_its_last_round(folder: OperatorFolder, run: RunFolder) -> None:
    assert go(folder, run) is Ending.FINISHED
    status = run.read_status()
    assert (status.state, status.round, status.rounds, status.sites_connected) == (RunState.FINISHED, 4, 4, 2)
    assert Grid.made[0].outcomes == ["completed"]
    assert len(json.loads(run.witness.read_text())["heads"]) <= 2


def test_a_run_goes_on_from_its_last_finished_round_under_the_same_plan_ids(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Coordinator._finish

    def crash(self: Coordinator, state: State, *rest: Any) -> State:
        if state.finished == 2:
            raise RuntimeError("power cut")
        return loop(self, state, *rest)

    monkeypatch.setattr(Coordinator, "_finish", crash)
    with pytest.raises(RuntimeError):
        go(folder, run)
    monkeypatch.setattr(Coordinator, "_finish", loop)
    assert go(folder, run) is Ending.FINISHED
    first, second = ([plan for _, plan, _ in grid.plans] for grid in Grid.made)
    assert {plan.round for plan in second} == {3, 4}
    assert {plan.plan_id for plan in first if plan.round == 3} == {plan.plan_id for plan in second if plan.round == 3}
    rounds = [json.loads(line)["round"] for line in run.rounds.read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]


def test_a_stop_keeps_what_is_finished(folder: OperatorFolder, run: RunFolder) -> None:
    run.stop()
    assert go(folder, run) is Ending.STOPPED
    assert run.read_status().state is RunState.STOPPED
    run.resume()
    assert go(folder, run) is Ending.FINISHED


def test_too_few_answers_abandon_the_run_with_a_reason(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s1", "s2"):
        folder.revoke(name)
    monkeypatch.setattr(Coordinator, "_wait_for_sites", lambda *_: [])
    assert go(folder, run) is Ending.ABANDONED
    status = run.read_status()
    assert (status.state, "fewer than 2" in status.reason) == (RunState.ABANDONED, True)


def test_a_task_that_flower_gave_up_is_lost_and_the_run_waits(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> State:
        Grid.made[0].lost = True
        raise RunStopped("as the loop does", hint="resume")

    monkeypatch.setattr(Coordinator, "run", lost)
    assert go(folder, run) is Ending.LOST
    assert run.read_status().state is RunState.WAITING
    monkeypatch.setattr(Grid, "begin", lambda _: (_ for _ in ()).throw(FlowerRefused("no", hint="no")))
    assert go(folder, run) is Ending.LOST


def test_a_damaged_bundle_is_no_reason_to_try_again(folder: OperatorFolder, run: RunFolder) -> None:
    (run.bundle_folder / "initial.safetensors").write_bytes(b"")
    assert go(folder, run) is Ending.UNUSABLE
    status = run.read_status()
    assert (status.state, bool(status.reason), bool(status.hint)) == (RunState.FAILED, True, True)


@pytest.mark.parametrize("late", ["evaluator_of", "LiveSites", "Upstream"])
def test_the_error_that_ended_it_is_in_the_status_also_where_the_run_was_under_way(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        assert run.read_status().state is RunState.RUNNING
        raise PrivacyError("a key is open to other accounts", hint="chmod 600")

    if late == "Upstream":
        monkeypatch.setattr(Upstream, "of", fails)
    else:
        monkeypatch.setattr(module, late, fails)
    assert go(folder, run) is Ending.UNUSABLE
    status = run.read_status()
    assert (status.state, status.reason, status.hint) == (
        RunState.FAILED,
        "a key is open to other accounts",
        "chmod 600",
    )
    assert status.rounds == 4


def test_an_answer_may_be_as_large_as_the_adapter_and_little_more(folder: OperatorFolder, run: RunFolder) -> None:
    go(folder, run)
    adapter = 4 * run.load_bundle().spec.size
    assert adapter + 60_000 < Grid.made[0].most_bytes < 1.2 * adapter + 70_000


def test_a_checkpoint_of_another_run_is_refused(folder: OperatorFolder, run: RunFolder) -> None:
    bundle = run.load_bundle()
    Checkpoints(run.checkpoints).save(State.initial(bundle.initial), run_id="ef" * 32, heads={}, extra={})
    assert go(folder, run) is Ending.UNUSABLE


def test_a_node_without_an_enrolment_or_with_a_revoked_one_is_no_site(folder: OperatorFolder) -> None:
    told: list[int] = []
    sites = LiveSites(folder, told=told.append)
    online = {1000 + number: node_key_pem(node_key(number)) for number in (1, 2, 3)}
    sites.seen(online)
    assert {node for node in sites if node > 0} == {1001, 1002}
    folder.revoke("s1")
    assert 1001 in sites  # between two calls of ``seen`` nothing changes
    sites.seen(online)
    assert {node for node in sites if node > 0} == {1002}
    assert told == [0, 2, 1]


def test_sites_that_are_not_connected_are_known_and_never_asked(folder: OperatorFolder) -> None:
    sites = LiveSites(folder, told=lambda _: None)
    sites.seen({1002: node_key_pem(node_key(2))})
    assert sorted(site.name for site in sites.values()) == ["s1", "s2"]
    assert len(sites) == 2
    assert [site.name for node, site in sites.items() if node < 0] == ["s1"]


def test_a_full_disk_ends_no_run_at_its_status(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = StatusKeeper(run, rounds=4, finished=0)

    def full(*_: object) -> None:
        raise InputError("full", hint="free space")

    monkeypatch.setattr(RunFolder, "write_status", full)
    keeper.round_started(round=1, stage="head", attempt=1, cohort=2)


def test_the_log_names_sites_and_codes_alone(folder: OperatorFolder, run: RunFolder) -> None:
    with restored():
        json_logging(run.log, "conductor")
        go(folder, run)
    text = run.log.read_text()
    assert "s1: update" in text
    assert TOKEN not in text


def test_failures_of_a_former_life_are_cleared(folder: OperatorFolder, run: RunFolder) -> None:
    run.write_status(replace(run.read_status(), reason="old", hint="old"))
    go(folder, run)
    assert run.read_status().reason == ""


def test_a_witness_of_another_run_is_no_reason_to_try_again(folder: OperatorFolder, run: RunFolder) -> None:
    go(folder, run)
    other = json.loads(run.witness.read_text()) | {"run_id": "ef" * 32}
    run.witness.write_text(json.dumps(other))
    shutil.rmtree(run.checkpoints)
    assert go(folder, run) is Ending.UNUSABLE
    status = run.read_status()
    assert (status.state, "witness.json" in status.reason, bool(status.hint)) == (RunState.FAILED, True, True)
    assert json.loads(run.witness.read_text()) == other


def test_a_conductor_that_is_told_to_end_leaves_a_run_that_is_still_wanted_waiting(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}))

    def told(self: Coordinator, *_: object) -> State:
        handlers[signal.SIGTERM]()
        assert self.stopping()
        raise RunStopped("as the loop does", hint="resume")

    monkeypatch.setattr(Coordinator, "run", told)
    assert go(folder, run) is Ending.STOPPED
    assert run.read_status().state is RunState.WAITING
    run.stop()
    assert go(folder, run) is Ending.STOPPED
    assert run.read_status().state is RunState.STOPPED


def test_a_resumed_run_knows_what_each_site_declared(
    folder: OperatorFolder, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(folder, run)
    monkeypatch.setattr(Coordinator, "run", lambda self, *_: known.append(self.units))
    known: list[dict[str, int]] = []
    go(folder, run)
    assert known == [{"s1": 10, "s2": 10}]
