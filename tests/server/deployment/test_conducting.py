from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedward_server.deployment.conducting import GRACE_S, QUICK_S, TASK_S, Conducting, backoff
from fedward_server.deployment.flower import Acquired, FlowerAway
from fedward_server.deployment.outcome import Ending
from fedward_server.deployment.runs import RunFolder, RunState
from support.operating import new_operator, new_run

TOKEN = "very-secret"  # noqa: S105 - of a fake


class FakeFlower:
    def __init__(self) -> None:
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.away = False

    def start_run(self, bundle: bytes) -> int:
        self._check()
        self.started.append(len(self.started) + 1)
        return self.started[-1]

    def stop_run(self, flower_run: int) -> None:
        self._check()
        self.stopped.append(flower_run)

    def _check(self) -> None:
        if self.away:
            raise FlowerAway("away", hint="wait")


class FakeLife:
    def __init__(self) -> None:
        self.code: int | None = None
        self.asked = self.killed = 0

    def ended(self) -> int | None:
        return self.code

    def ask(self) -> None:
        self.asked += 1

    def kill(self) -> None:
        self.killed += 1


class Bench:
    def __init__(self, run: RunFolder, restarts: int = 2) -> None:
        self.run, self.flower, self.now = run, FakeFlower(), 100.0
        self.lives: list[FakeLife] = []
        self.conducting = Conducting(
            run, control=self.flower, spawn=self._spawn, restarts=restarts, clock=lambda: self.now
        )

    def _spawn(self, run: RunFolder, task: Acquired) -> FakeLife:
        self.lives.append(FakeLife())
        return self.lives[-1]

    def tick(self, *, later: float = 0.0) -> None:
        self.now += later
        self.conducting.tick()

    def begin(self) -> FakeLife:
        self.tick()
        awaited = self.conducting.awaited
        assert awaited is not None
        self.conducting.take(Acquired(flower_run=awaited, token=TOKEN))
        return self.lives[-1]

    def end(self, code: int) -> None:
        self.lives[-1].code = code
        self.tick()

    @property
    def state(self) -> RunState:
        return self.run.read_status().state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(new_run(new_operator(tmp_path / "op"), tmp_path / "bundle"))


def test_a_wanted_run_gets_a_flower_run_and_then_one_conductor(bench: Bench) -> None:
    bench.begin()
    for _ in range(5):
        bench.tick(later=1)
    assert (bench.flower.started, len(bench.lives)) == ([1], 1)
    assert bench.run.read_status().starts == 1


def test_a_conductor_that_dies_is_followed_by_a_new_flower_run_at_once_the_first_time(bench: Bench) -> None:
    bench.begin()
    bench.end(-9)
    assert bench.state is RunState.WAITING
    bench.begin()
    assert (bench.flower.started, len(bench.lives)) == ([1, 2], 2)


def test_a_flower_run_whose_conductor_is_gone_is_stopped(bench: Bench) -> None:
    bench.begin()
    bench.end(-9)
    assert bench.flower.stopped == [1]


def test_a_flower_run_is_stopped_later_where_the_superlink_is_away(bench: Bench) -> None:
    bench.begin()
    bench.flower.away = True
    with pytest.raises(FlowerAway):
        bench.end(-9)
    bench.flower.away = False
    bench.tick()
    assert bench.flower.stopped == [1]


def test_quick_failures_end_as_failed_until_resume(bench: Bench) -> None:
    for _ in range(3):
        bench.begin()
        bench.end(1)
        bench.now += 100
    status = bench.run.read_status()
    assert status.state is RunState.FAILED
    assert "3 times" in status.reason and "resume" in status.hint
    bench.tick(later=1000)
    assert len(bench.lives) == 3
    bench.run.resume()
    bench.begin()
    bench.end(1)
    assert bench.state is RunState.WAITING  # earlier failures no longer count


@pytest.mark.parametrize("progress", ["long life", "a finished round"])
def test_a_failure_after_progress_is_no_quick_one(bench: Bench, progress: str) -> None:
    for _ in range(10):
        bench.begin()
        if progress == "long life":
            bench.now += QUICK_S
        else:
            status = bench.run.read_status()
            bench.run.write_status(replace(status, round=status.round + 1))
        bench.end(-9)
    assert bench.state is RunState.WAITING


def test_the_wait_grows_to_a_minute() -> None:
    assert [backoff(failures) for failures in (1, 2, 3, 4, 20)] == [0.0, 1.0, 2.0, 4.0, 60.0]


def test_it_waits_between_quick_failures(bench: Bench) -> None:
    for _ in range(2):
        bench.begin()
        bench.end(1)
    bench.tick(later=0.5)
    assert bench.conducting.awaited is None
    bench.tick(later=0.6)
    assert bench.conducting.awaited == 3


def test_a_stop_asks_once_then_kills_after_the_grace(bench: Bench) -> None:
    life = bench.begin()
    bench.run.stop()
    bench.tick()
    bench.tick(later=1)
    assert (life.asked, life.killed) == (1, 0)
    bench.tick(later=GRACE_S)
    assert life.killed == 1
    bench.end(Ending.STOPPED)
    assert bench.state is RunState.STOPPED
    bench.tick(later=1000)
    assert len(bench.lives) == 1


def test_stop_and_resume_go_on_in_a_new_flower_run(bench: Bench) -> None:
    bench.begin()
    bench.run.stop()
    bench.end(Ending.STOPPED)
    bench.run.resume()
    bench.begin()
    assert bench.flower.started == [1, 2]


def test_a_stop_before_the_task_came_stops_the_flower_run(bench: Bench) -> None:
    bench.tick()
    bench.run.stop()
    bench.tick()
    bench.tick()
    assert (bench.flower.stopped, bench.state) == ([1], RunState.STOPPED)


def test_a_task_that_does_not_come_is_given_up(bench: Bench) -> None:
    bench.tick()
    bench.tick(later=TASK_S)
    assert bench.flower.stopped == [1]
    bench.tick()
    assert bench.conducting.awaited == 2


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.ABANDONED, RunState.FAILED])
def test_a_run_that_is_over_stays_so(bench: Bench, state: RunState) -> None:
    bench.begin()
    bench.run.write_status(replace(bench.run.read_status(), state=state))
    bench.end({RunState.FINISHED: Ending.FINISHED, RunState.ABANDONED: Ending.ABANDONED}.get(state, Ending.UNUSABLE))
    bench.tick(later=1000)
    assert (bench.state, len(bench.lives)) == (state, 1)


def test_a_run_that_was_running_when_a_former_desk_died_goes_on(bench: Bench) -> None:
    bench.run.write_status(replace(bench.run.read_status(), state=RunState.RUNNING, starts=1))
    bench.begin()
    assert len(bench.lives) == 1


def test_a_lost_task_begins_anew(bench: Bench) -> None:
    bench.begin()
    bench.end(Ending.LOST)
    bench.begin()
    assert bench.flower.started == [1, 2]
