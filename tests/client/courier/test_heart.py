from __future__ import annotations

import time
from pathlib import Path

from fedward_client.courier.faults import Away, Fault, NotEnrolled
from fedward_client.courier.heart import Heart
from fedward_client.courier.status import Board, Status
from support.fleet_api import NODE


class Fleet:
    def __init__(self, *faults: Fault) -> None:
        self.node_id: int | None = None
        self.beats: list[int | None] = []
        self.faults = list(faults)

    def heartbeat(self) -> None:
        self.beats.append(self.node_id)
        if self.faults:
            raise self.faults.pop(0)


class Count(Board):
    def __init__(self, path: Path) -> None:
        super().__init__(path, Status(server="s:1", version="1", pid=1, since=0, alive_at=0, contact_at=0))
        self.good, self.bad = 0, 0

    def beat(self) -> None:
        self.good += 1

    def missed(self, fault: Fault) -> None:
        self.bad += 1


def until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_beats_for_the_node_that_it_follows(tmp_path: Path) -> None:
    fleet, board = Fleet(), Count(tmp_path / "s")
    heart = Heart(fleet, board, each_s=0.01)
    heart.start()
    time.sleep(0.05)
    assert fleet.beats == []
    heart.follow(NODE)
    until(lambda: board.good > 3)
    heart.follow(NODE + 1)
    until(lambda: fleet.beats[-1] == NODE + 1)
    heart.follow(None)
    time.sleep(0.05)
    count = len(fleet.beats)
    time.sleep(0.1)
    assert len(fleet.beats) == count
    heart.stop()


def test_the_first_beat_comes_at_once(tmp_path: Path) -> None:
    fleet = Fleet()
    heart = Heart(fleet, Count(tmp_path / "s"), each_s=60)
    heart.start()
    heart.follow(NODE)
    until(lambda: fleet.beats)
    heart.stop()


def test_it_beats_on_after_faults(tmp_path: Path) -> None:
    fleet, board = Fleet(Away("x", hint=""), Away("x", hint="")), Count(tmp_path / "s")
    heart = Heart(fleet, board, each_s=0.01)
    heart.start()
    heart.follow(NODE)
    until(lambda: board.good > 1)
    assert board.bad == 2
    heart.stop()


def test_a_refused_heart_tries_again_within_five_seconds(tmp_path: Path) -> None:
    fleet = Fleet(*(NotEnrolled("x", hint="") for _ in range(9)))
    heart = Heart(fleet, Count(tmp_path / "s"))
    heart.follow(NODE)
    assert [heart._beat() for _ in range(4)] == [5, 5, 5, 5]
