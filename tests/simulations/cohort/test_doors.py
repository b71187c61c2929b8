from __future__ import annotations

from pathlib import Path

import pytest

from fedward_client.round import Site
from fedward_client.training import LocalWork
from fedward_common.codec import decode_reply, new_key
from fedward_common.privacy.facts import Outcome as Settled
from fedward_common.round import Code, Refusal, Update
from fedward_simulations.cohort.doors import CohortDoors
from fedward_simulations.cohort.engine import Cohort, Outcome
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import Population
from support.federation import KEYS, plan_bytes, plan_of, population_of, small_bench

OPERATOR = new_key()


def silent(line: str) -> None:
    raise AssertionError(line)


class Opened:
    """Doors of three virtual sites, and one message to each."""

    def __init__(self, folder: Path, *, width: int = 3, goal: int = 0) -> None:
        self.bench: Workbench = small_bench(folder, sites=3, units=20)
        self.population: Population = population_of(self.bench, OPERATOR)
        self.doors = CohortDoors(sites=self.population.sites, engine=Cohort(note=silent, sites=width), goal=goal)
        self.messages = [(name, plan_bytes(self.bench, OPERATOR, to=name)) for name in self.population.sites]

    def read(self, name: str, reply: bytes) -> Update | Refusal:
        spec = self.bench.prepared.bundle.spec.subset(("head",))
        return decode_reply(reply, public_key=KEYS[name].public_key(), spec=spec)

    def answers(self) -> list[Update | Refusal]:
        return [self.read(name, self.doors.door_of(name).answer(data)) for name, data in self.messages]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def test_what_was_opened_ahead_is_handed_over_once_and_then_sent_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.doors.open(opened.messages)
    with monkeypatch.context() as patch:
        patch.setattr(Site, "answer", None)  # nobody is asked again
        replies = [opened.doors.door_of(name).answer(data) for name, data in opened.messages]
    assert all(isinstance(opened.read(n, r), Update) for (n, _), r in zip(opened.messages, replies, strict=True))
    again = [opened.doors.door_of(name).answer(data) for name, data in opened.messages]
    assert again == replies


def test_a_message_that_was_not_opened_is_answered_by_the_site(opened: Opened) -> None:
    opened.doors.open(opened.messages[:1])
    assert all(isinstance(answer, Update) for answer in opened.answers())


def test_another_message_than_the_opened_one_gets_no_reply_of_it(opened: Opened) -> None:
    opened.doors.open(opened.messages)
    name, data = opened.messages[0]
    reply = opened.read(name, opened.doors.door_of(name).answer(data[:-1]))
    assert isinstance(reply, Refusal)


def test_two_messages_to_one_site_do_not_meet(opened: Opened) -> None:
    opened.doors.open([*opened.messages, *opened.messages])
    assert all(isinstance(answer, Update) for answer in opened.answers())


def test_refusals_need_no_engine(opened: Opened) -> None:
    opened.doors.open([(name, b"garbage") for name, _ in opened.messages])
    name = opened.messages[0][0]
    assert isinstance(opened.read(name, opened.doors.door_of(name).answer(b"garbage")), Refusal)


def test_a_site_whose_work_fails_holds_the_run_and_the_others_are_answered(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Cohort.compute

    def faulty(self: Cohort, works: list[LocalWork]) -> list[Outcome]:
        outcomes = honest(self, works)
        return [outcomes[0], RuntimeError("Jane Roe"), outcomes[2]]

    monkeypatch.setattr(Cohort, "compute", faulty)
    opened.doors.open(opened.messages)
    first, second, third = opened.answers()
    assert isinstance(first, Update)
    assert isinstance(third, Update)
    assert isinstance(second, Refusal)
    assert second.code is Code.UNAVAILABLE
    plan = plan_of(opened.bench, to="site-2")
    assert opened.population.ledgers["site-2"].outcome(plan.plan_id) is Settled.FAILED


def test_a_run_that_is_stopped_meanwhile_has_spent_what_was_opened(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Cohort, works: list[LocalWork]) -> list[Outcome]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cohort, "compute", stop)
    with pytest.raises(KeyboardInterrupt):
        opened.doors.open(opened.messages)
    for name in opened.population.sites:
        plan = plan_of(opened.bench, to=name)
        assert opened.population.ledgers[name].outcome(plan.plan_id) is Settled.FAILED
        assert not opened.population.sites[name]._lock.locked()


def test_no_more_are_opened_than_are_certainly_needed(tmp_path: Path) -> None:
    doors = Opened(tmp_path, width=3, goal=2).doors
    assert [doors.room(already) for already in (0, 1, 2, 5)] == [2, 1, 1, 1]
    doors.goal = 0
    assert doors.room(7) == 3
