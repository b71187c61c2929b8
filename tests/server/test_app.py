from __future__ import annotations

from pathlib import Path

from flwr.app import Context, RecordDict

from fedward_server.app import server_app
from fedward_server.state import State
from support.coordinating import FakeGrid, bundle_of, coordinator_of, honest
from support.nouns import START


def test_the_server_app_runs_the_loop_and_hands_over_the_last_state(tmp_path: Path) -> None:
    ends: list[State] = []
    app = server_app(coordinator_of(tmp_path, bundle_of(), nodes=[1000]), State.initial(START), done=ends.append)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    app(FakeGrid({1000: honest()}), context)
    assert [end.finished for end in ends] == [4]


def test_the_server_app_continues_from_the_state_it_is_given(tmp_path: Path) -> None:
    ends: list[State] = []
    coordinator = coordinator_of(tmp_path, bundle_of(), nodes=[1000])
    grid = FakeGrid({1000: honest()})
    middle = State(finished=3, adapter=START, moments=State.initial(START).moments)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server_app(coordinator, middle, done=ends.append)(grid, context)
    assert [plan.round for _, plan, _ in grid.plans] == [4]
    assert ends[0].finished == 4
