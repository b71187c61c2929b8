from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedward_client.courier.faults import Away, NotEnrolled, Pauses, State
from fedward_client.courier.status import SILENT_S, STUCK_S, Board, Status, Wall, deaf

FIRST = Status(server="s:1", version="1", pid=1, since=5.0, alive_at=100.0, contact_at=100.0)
AWAY = Away("no answer", hint="wait")


class Ticks:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def board(tmp_path: Path, ticks: Ticks) -> Board:
    return Board(tmp_path / "status.json", FIRST, ticks)


def written(tmp_path: Path) -> Status:
    status = Status.from_json((tmp_path / "status.json").read_text())
    assert status is not None
    return status


def test_a_status_survives_its_file() -> None:
    assert Status.from_json(FIRST.to_json()) == FIRST
    held = replace(FIRST, confined=(Wall.VIEW, Wall.SECCOMP))
    assert Status.from_json(held.to_json()) == held
    assert '"confined": [\n  "view",\n  "seccomp"\n ]' in held.to_json()


@pytest.mark.parametrize("text", ["", "[]", "[" * 60_000, '{"schema":' * 5_000])
def test_what_is_no_status_is_none(text: str) -> None:
    assert Status.from_json(text) is None


@pytest.mark.parametrize("value", [True, 7, ["moat"], [["view"]], "view"])
def test_walls_that_nobody_knows_are_no_status(value: object) -> None:
    assert Status.from_json(json.dumps({**json.loads(FIRST.to_json()), "confined": value})) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 2}', '{"schema": 1, "state": "happy"}', "\x00"])
def test_anything_else_is_no_status(text: str) -> None:
    assert Status.from_json(text) is None


def test_a_loop_that_stood_still_outside_the_door_is_deaf() -> None:
    assert deaf(FIRST, 100 + STUCK_S) is None
    assert deaf(FIRST, 101 + STUCK_S) == "its loop has stood still for 121 s"
    for state in (State.AWAY, State.REFUSED, State.CLOCK):
        assert deaf(replace(FIRST, state=state), 101 + STUCK_S)


def test_inside_the_door_it_may_wait() -> None:
    assert deaf(replace(FIRST, at_door=True), 100 + 86400) is None


def test_connected_without_contact_is_deaf_also_inside_the_door() -> None:
    status = replace(FIRST, state=State.CONNECTED, at_door=True)
    assert deaf(status, 100 + SILENT_S) is None
    assert deaf(status, 101 + SILENT_S) == "it says connected and has heard nothing for 301 s"
    assert deaf(replace(status, at_door=False, alive_at=100 + SILENT_S), 101 + SILENT_S)


@pytest.mark.parametrize("state", [State.AWAY, State.REFUSED, State.WRONG_CERTIFICATE, State.CLOCK])
def test_away_or_refused_for_long_is_not_deaf(state: State) -> None:
    assert deaf(replace(FIRST, state=state, alive_at=9000.0), 9001.0) is None


def test_stopped_or_of_another_boot_is_not_deaf() -> None:
    assert deaf(replace(FIRST, state=State.STOPPED), 9999.0) is None
    assert deaf(FIRST, 3.0) is None


def test_a_change_of_state_is_in_the_file_at_once(board: Board, tmp_path: Path) -> None:
    assert written(tmp_path).state is State.CONNECTING
    board.connected()
    assert written(tmp_path).state is State.CONNECTED
    assert written(tmp_path).last_contact is not None
    board.fault(AWAY)
    status = written(tmp_path)
    assert (status.state, status.reason, status.hint) == (State.AWAY, "no answer", "wait")
    board.connected()
    assert written(tmp_path).reason == ""


def test_since_is_the_time_of_the_last_change(board: Board, tmp_path: Path) -> None:
    board.fault(AWAY)
    since = written(tmp_path).since
    assert since > 5.0
    board.fault(Away("another", hint=""))
    assert written(tmp_path).since == since


def test_marks_are_at_most_five_seconds_old(board: Board, ticks: Ticks, tmp_path: Path) -> None:
    ticks.now = 104.0
    board.alive()
    assert written(tmp_path).alive_at == 100.0
    ticks.now = 105.0
    board.alive()
    assert written(tmp_path).alive_at == 105.0


def test_heartbeats_speak_for_the_state_only_inside_the_door(board: Board) -> None:
    board.fault(AWAY)
    board.beat()
    board.missed(NotEnrolled("who", hint=""))
    assert told(board) == (State.AWAY, False)
    with board.door():
        board.beat()
        assert told(board) == (State.CONNECTED, True)
        board.missed(NotEnrolled("who", hint=""))
        assert told(board) == (State.REFUSED, True)
    assert told(board) == (State.REFUSED, False)


def told(board: Board) -> tuple[State, bool]:
    return board.status.state, board.status.at_door


def test_heartbeats_are_no_mark_of_the_loop(board: Board, ticks: Ticks) -> None:
    ticks.now = 130.0
    board.beat()
    assert (board.status.contact_at, board.status.alive_at) == (130.0, 100.0)


def test_after_stopped_nothing_changes(board: Board, tmp_path: Path) -> None:
    board.stopped()
    board.connected()
    assert written(tmp_path).state is State.STOPPED


def test_a_disk_that_refuses_does_not_stop_the_courier(tmp_path: Path, ticks: Ticks) -> None:
    board = Board(tmp_path / "gone" / "status.json", FIRST, ticks)
    board.connected()
    assert board.status.state is State.CONNECTED


def test_a_reader_sees_a_whole_status(board: Board, tmp_path: Path) -> None:
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            board.connected()
            board.fault(AWAY)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for each in writers:
        each.start()
    for _ in range(200):
        written(tmp_path)
    over.set()
    for each in writers:
        each.join()


def test_pauses_grow_to_their_limit_and_begin_anew() -> None:
    pauses = Pauses()
    refused = NotEnrolled("who", hint="")
    assert [pauses.after(refused) for _ in range(6)] == [5, 10, 20, 40, 60, 60]
    assert pauses.after(AWAY) == 0.5
    assert pauses.after(AWAY) == 1
    pauses.clear()
    assert pauses.after(AWAY) == 0.5
