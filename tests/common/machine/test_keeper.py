from __future__ import annotations

from typing import cast

import pytest

from fedward_common.errors import InputError
from fedward_common.machine.keeper import Backoff, Keeper, State
from fedward_common.machine.life import Child, Life


class Puppet:
    """A life whose end the test decides."""

    pid = 4711

    def __init__(self) -> None:
        self.code: int | None = None
        self.asked = self.killed = 0

    def ended(self) -> int | None:
        return self.code

    def ask(self) -> None:
        self.asked += 1

    def kill(self) -> None:
        self.killed += 1


class Stage:
    """One keeper, a clock that the test sets, and all lives so far."""

    def __init__(self, *, broken: bool = False, **options: object) -> None:
        self.now, self.lives, self.broken = 0.0, list[Puppet](), broken
        child = Child(name="a", argv=("a",), **options)  # type: ignore[arg-type]
        self.keeper = Keeper(child, backoff=Backoff(), clock=lambda: self.now, start=self._start)

    def _start(self, child: Child) -> Life:
        if self.broken:
            raise OSError(11, "Resource temporarily unavailable")
        self.lives.append(Puppet())
        return cast(Life, self.lives[-1])

    def tick(self, at: float, *, may_start: bool = True) -> State:
        self.now = at
        self.keeper.tick(may_start=may_start)
        return self.keeper.state

    def end(self, code: int) -> None:
        self.lives[-1].code = code
        self.keeper.tick(may_start=True)

    def wait(self) -> float:
        """How long until the next life, to a quarter of a second."""
        began, lives = self.now, len(self.lives)
        while len(self.lives) == lives:
            self.tick(self.now + 0.25)
        self.tick(self.now)
        return self.now - began


def test_waits_double_up_to_a_minute() -> None:
    stage = Stage()
    stage.tick(0)
    waits = []
    for _ in range(9):
        stage.end(1)
        waits.append(stage.wait())
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert stage.keeper.restarts == 9


def test_a_long_life_clears_what_was_before() -> None:
    stage = Stage()
    stage.tick(0)
    for _ in range(4):
        stage.end(1)
        stage.wait()
    stage.now += 59.75
    stage.end(1)
    assert stage.wait() == 8
    stage.now += 60
    stage.end(1)
    assert stage.wait() == 0.5


def test_a_code_with_a_wait_of_its_own_does_not_grow() -> None:
    stage = Stage(waits={305: 30.0})
    stage.tick(0)
    for _ in range(3):
        stage.end(305)
        assert stage.wait() == 30
    stage.end(1)
    assert stage.wait() == 0.5


def test_it_waits_until_it_may_start() -> None:
    stage = Stage()
    assert stage.tick(0, may_start=False) is State.WAITING
    assert not stage.lives
    assert stage.tick(1) is State.STARTING
    assert stage.tick(1) is State.RUNNING


def test_it_is_starting_until_it_is_ready() -> None:
    answers = iter([False, OSError, True])

    def ready() -> bool:
        answer = next(answers)
        if answer is OSError:
            raise OSError("not listening")
        return bool(answer)

    stage = Stage(ready=ready)
    assert [stage.tick(0) for _ in range(4)] == [State.STARTING, State.STARTING, State.STARTING, State.RUNNING]


def test_one_that_does_not_get_ready_is_ended_and_started_again() -> None:
    stage = Stage(ready=lambda: False, ready_limit_s=5, grace_s=3)
    stage.tick(0)
    assert stage.tick(4.9) is State.STARTING
    assert stage.tick(5) is State.STOPPING
    assert stage.lives[0].asked == 1
    stage.tick(7.9)
    assert not stage.lives[0].killed
    stage.tick(8)
    assert stage.lives[0].killed
    stage.end(-9)
    assert stage.keeper.reason == "not ready after 5 s"
    stage.wait()
    assert len(stage.lives) == 2


def test_a_deaf_one_is_ended_and_started_again() -> None:
    trouble: list[str] = []
    stage = Stage(watch=lambda: trouble[0] if trouble else None, watch_every_s=10)
    stage.tick(0)
    stage.tick(0)
    assert stage.tick(30) is State.RUNNING
    trouble.append("no answer for 60 s")
    assert stage.tick(39.9) is State.RUNNING
    assert stage.tick(40) is State.STOPPING
    stage.end(2)  # fatal only where nobody asked it to end
    assert stage.keeper.state is State.WAITING
    assert stage.keeper.reason == "no answer for 60 s"
    stage.wait()
    assert len(stage.lives) == 2


def test_a_probe_that_raises_has_found_trouble_and_its_text_stays_inside() -> None:
    def watch() -> str | None:
        raise ValueError("a record")

    stage = Stage(watch=watch, watch_every_s=1)
    stage.tick(0)
    stage.tick(0)
    assert stage.tick(1) is State.STOPPING
    assert stage.keeper.reason == "probe: ValueError"


@pytest.mark.parametrize(("critical", "code"), [(True, 2), (False, 2), (True, 127)])
def test_a_fatal_code_is_the_end(critical: bool, code: int) -> None:
    stage = Stage(critical=critical)
    stage.tick(0)
    stage.end(code)
    assert stage.tick(10_000) is State.FAILED
    assert len(stage.lives) == 1
    assert stage.keeper.fatal is critical
    assert stage.keeper.last_code == code
    stage.keeper.close()
    assert stage.keeper.state is State.FAILED


def test_one_that_cannot_be_started_is_tried_again() -> None:
    stage = Stage(broken=True)
    stage.tick(0)
    assert stage.keeper.reason == "cannot start: Resource temporarily unavailable"
    stage.broken = False
    assert stage.wait() == 0.5


def test_one_that_is_closed_ends_for_good() -> None:
    stage = Stage(grace_s=3)
    stage.tick(0)
    stage.tick(1)
    stage.keeper.close()
    stage.keeper.close()
    assert stage.lives[0].asked == 1
    stage.tick(4)
    assert stage.lives[0].killed == 1
    stage.end(2)
    assert stage.tick(10_000) is State.STOPPED
    assert not stage.keeper.alive
    assert not stage.keeper.fatal


def test_the_report_says_how_it_is() -> None:
    stage = Stage()
    stage.tick(0)
    stage.end(1)
    report = stage.keeper.report()
    assert report.pop("since")
    assert report == {
        "name": "a",
        "state": "waiting",
        "pid": None,
        "restarts": 1,
        "last_exit_code": 1,
        "reason": "ended with code 1",
    }
    stage.wait()
    assert stage.keeper.report()["pid"] == 4711


def test_backoff_is_checked_and_never_overflows() -> None:
    assert Backoff().wait(10**6) == 60
    with pytest.raises(InputError, match=r"backoff.first_s"):
        Backoff(first_s=0)
