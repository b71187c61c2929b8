from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

import fedward_server.deployment.desk as module
from fedward_common.machine.life import Life
from fedward_server.deployment.desk import Desk, spawn_conductor
from fedward_server.deployment.flower import Acquired, FlowerAway
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder, RunState, RunStatus, Wanted
from support.operating import new_operator, new_run, statement

SECRET = "very-secret-token"  # noqa: S105 - of a fake


class FakeLife:
    def __init__(self) -> None:
        self.code: int | None = None

    def ended(self) -> int | None:
        return self.code

    def ask(self) -> None:
        self.code = 10

    def kill(self) -> None:
        self.code = -9


class FakeControl:
    def __init__(self) -> None:
        self.runs: set[int] = set()
        self.stopped: list[int] = []
        self.tasks: list[Acquired] = []
        self.away = False

    def nodes(self) -> list[object]:
        if self.away:
            raise FlowerAway("away", hint="wait")
        return []

    def register_node(self, key: object, *, name: str) -> int:
        return 1

    def unregister_node(self, node_id: int) -> None: ...

    def start_run(self, bundle: bytes) -> int:
        if self.away:
            raise FlowerAway("away", hint="wait")
        number = 100 + len(self.runs)
        self.runs.add(number)
        self.tasks.append(Acquired(flower_run=number, token=f"token-{number}"))
        return number

    def stop_run(self, flower_run: int) -> None:
        self.stopped.append(flower_run)

    def unfinished_runs(self) -> set[int]:
        if self.away:
            raise FlowerAway("away", hint="wait")
        return self.runs - set(self.stopped)

    def acquire(self) -> Acquired | None:
        return self.tasks.pop(0) if self.tasks else None


class Bench:
    def __init__(self, root: Path) -> None:
        self.folder = new_operator(root / "op")
        self.control, self.spawned = FakeControl(), []  # type: ignore[var-annotated]
        self.lives: list[FakeLife] = []
        self.desk = self.fresh()

    def fresh(self) -> Desk:
        self.now = 0.0
        return Desk(
            self.folder,
            control=self.control,  # type: ignore[arg-type]
            tasks=self.control,
            spawn=self._spawn,
            restarts=3,
            clock=lambda: self.now,
        )

    def _spawn(self, run: RunFolder, task: Acquired) -> FakeLife:
        self.spawned.append((run.name, task.token))
        self.lives.append(FakeLife())
        return self.lives[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_several_runs_each_get_their_own_conductor_and_token(bench: Bench, tmp_path: Path) -> None:
    for number in range(3):
        new_run(bench.folder, tmp_path / f"bundle{number}", run_id=f"{number:02d}" * 32, name=f"run{number}")
    for _ in range(3):
        bench.desk.tick()
    assert sorted(name for name, _ in bench.spawned) == ["run0", "run1", "run2"]
    assert len({token for _, token in bench.spawned}) == 3


def test_a_flower_run_that_nobody_here_began_is_stopped(bench: Bench, tmp_path: Path) -> None:
    bench.control.runs = {7}
    bench.control.tasks = [Acquired(flower_run=55, token=SECRET)]
    new_run(bench.folder, tmp_path / "bundle")
    bench.desk.tick()
    bench.desk.tick()
    assert {7, 55} <= set(bench.control.stopped)
    assert [token for _, token in bench.spawned] == ["token-101"]


def test_a_flower_run_of_a_call_that_nobody_heard_the_end_of_is_stopped_within_a_minute(
    bench: Bench, tmp_path: Path
) -> None:
    new_run(bench.folder, tmp_path / "bundle")
    for _ in range(3):
        bench.desk.tick()
    ours = bench.desk.runs["small"].flower_run
    bench.control.runs.add(7)
    bench.now = module.SWEEP_S - 1
    bench.desk.tick()
    assert bench.control.stopped == []
    bench.now = module.SWEEP_S
    bench.desk.tick()
    assert (bench.control.stopped, ours in bench.control.unfinished_runs()) == ([7], True)


def test_an_awaited_flower_run_is_not_stopped(bench: Bench, tmp_path: Path) -> None:
    new_run(bench.folder, tmp_path / "bundle")
    bench.control.acquire = lambda: None  # type: ignore[method-assign]
    bench.desk.tick()
    bench.now = module.SWEEP_S
    bench.desk._sweep()
    assert (len(bench.control.runs), bench.control.stopped) == (1, [])


def test_the_desk_shows_that_it_lives_also_while_the_superlink_is_away(tmp_path: Path) -> None:
    folder, ending = new_operator(tmp_path / "op"), threading.Event()
    desk = threading.Thread(target=module._run, args=(folder, 1, -1, ending), kwargs={"restarts": 5})
    desk.start()
    try:
        end = time.monotonic() + 20
        while not folder.desk_beat.exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert folder.desk_beat.exists() and not folder.sites_file.exists()
    finally:
        ending.set()
        desk.join()


def test_what_was_wanted_while_it_was_down_is_done_once(bench: Bench, tmp_path: Path) -> None:
    run = new_run(bench.folder, tmp_path / "bundle")
    bench.control.away = True
    for _ in range(3):
        bench.desk.tick()
    assert not bench.spawned
    bench.control.away = False
    for _ in range(4):
        bench.desk.tick()
    assert [name for name, _ in bench.spawned] == [run.name]


def test_a_superlink_that_is_away_holds_up_nothing_that_needs_none(bench: Bench, tmp_path: Path) -> None:
    run = new_run(bench.folder, tmp_path / "bundle")
    bench.desk.tick()
    bench.desk.tick()
    bench.control.away = True
    bench.now = module.SWEEP_S  # everything is due
    run.write_wanted(Wanted.STOPPED)
    bench.desk.tick()
    assert bench.lives[0].code == 10, "its conductor was asked to end"
    bench.desk.tick()
    assert run.read_status().state is RunState.STOPPED
    asked: list[float] = []
    bench.control.unfinished_runs = lambda: asked.append(bench.now) or set()  # type: ignore[method-assign,func-returns-value]
    bench.now += module.AWAY_S / 2
    bench.desk.tick()
    assert not asked, "a SuperLink that is away is not asked at every tick"
    bench.now += module.AWAY_S
    bench.desk.tick()
    assert len(asked) == 1


def test_one_runs_trouble_holds_up_nothing_else(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = new_run(bench.folder, tmp_path / "one", run_id="01" * 32, name="broken")
    new_run(bench.folder, tmp_path / "two", run_id="02" * 32, name="good")
    bench.folder.enrol(statement("a"))
    write = RunFolder.write_status

    def write_status(run: RunFolder, status: RunStatus) -> None:
        if run == broken:
            raise OSError("no space")
        write(run, status)

    monkeypatch.setattr(RunFolder, "write_status", write_status)
    for _ in range(3):
        bench.desk.tick()
    assert [name for name, _ in bench.spawned] == ["good"]
    assert bench.folder.sites_file.exists()


def test_conductors_end_with_the_desk_and_the_next_one_goes_on(bench: Bench, tmp_path: Path) -> None:
    new_run(bench.folder, tmp_path / "bundle")
    bench.desk.tick()
    bench.desk.tick()
    bench.desk.close()
    assert [life.code for life in bench.lives] == [10]
    again = bench.fresh()
    for _ in range(3):
        again.tick()
    assert len(bench.spawned) == 2


def test_a_desk_that_closes_begins_nothing_new(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        new_run(bench.folder, tmp_path / f"bundle{number}", run_id=f"{number:02d}" * 32, name=f"run{number}")
    for _ in range(3):
        bench.desk.tick()
    begun = set(bench.control.runs)
    bench.lives[1].ask = lambda: None  # type: ignore[method-assign]

    def wait(seconds: float) -> None:
        bench.now += 1.0

    monkeypatch.setattr(time, "sleep", wait)
    bench.desk.close()
    assert [life.code for life in bench.lives] == [10, -9]
    assert (bench.control.runs, len(bench.spawned)) == (begun, 2)


def test_the_token_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_operator(tmp_path / "op")
    run = new_run(folder, tmp_path / "bundle")
    seen: list[object] = []

    def look(child: object) -> Life:
        seen.append(child)
        raise OSError("enough")

    monkeypatch.setattr(module, "Life", look)
    with pytest.raises(OSError, match="enough"):
        spawn_conductor(OperatorFolder.open(folder.root), 8000)(run, Acquired(flower_run=1, token=SECRET))
    assert SECRET not in repr(seen)
    assert sys.executable in repr(seen)
