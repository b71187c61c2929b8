"""Sites in foul weather: what the coordinator hears, and that the sites' own books stay as honest as ever."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedward_client.app import client_app
from fedward_common.codec import decode_plan, decode_reply, encode_plan, new_key
from fedward_common.errors import BudgetError
from fedward_common.privacy.grants import Budget, Quote
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.ledger import Ledger
from fedward_common.round import NO_PLAN, Code, Refusal, Update
from fedward_common.simulated import SimulationConfig
from fedward_common.wire import pack, unpack
from fedward_simulations.grid import InProcessGrid, node_ids
from fedward_simulations.sites.behaviour import Behaviour, SimulatedClock, Unreliable, scaled_reply
from fedward_simulations.sites.faults import Fate, FaultPlan, Temper
from support.federation import KEYS, plan_bytes, plan_of, population_of, small_bench, small_config

NAMES = [f"site-{number}" for number in range(1, 21)]


class Door:
    def __init__(self, name: str, served: list[tuple[str, float]], clock: SimulatedClock) -> None:
        self.name, self.served, self.clock = name, served, clock

    def answer(self, data: bytes) -> bytes:
        self.served.append((self.name, self.clock.now()))
        if self.name == "site-3" and data == b"crash":
            raise RuntimeError("Jane Roe")
        return f"{self.name} answers".encode()


class Line:
    """A Grid of echoing doors under a fault plan."""

    def __init__(self, *, deadline_s: float = 60.0, poisoned: Iterable[str] = (), **settings: Any) -> None:
        self.clock, self.served = SimulatedClock(1000.0), []  # type: tuple[SimulatedClock, list[tuple[str, float]]]
        self.plan = FaultPlan(settings=SimulationConfig(**settings), seed=0, deadline_s=deadline_s)
        self.nodes = node_ids(NAMES)
        grid = InProcessGrid(client_app(lambda site: Door(site, self.served, self.clock)), self.nodes)
        self.grid = Unreliable(
            grid, self.nodes, plan=self.plan, clock=self.clock, poisoned=poisoned,
            poison=lambda site, plan, reply: b"poison for " + plan,
        )  # fmt: skip

    def ask(self, round: int, data: bytes = b"?", *, names: Sequence[str] = NAMES) -> dict[str, str]:
        """Plans go out one by one, as a coordinator sends them."""
        at = {name: node for node, name in self.nodes.items()}
        plans = [Message(pack(data), at[name], "train", group_id=str(round)) for name in names]
        return {name: next(iter(self.grid.push_messages([plan]))) for name, plan in zip(names, plans, strict=True)}

    def hear(self, asked: dict[str, str]) -> dict[str, bytes]:
        return {
            name: unpack(reply.content) if reply.has_content() else b"error"
            for name, identifier in asked.items()
            for reply in self.grid.pull_messages([identifier])
        }

    def fates(self, round: int, attempt: int = 1) -> dict[str, Fate]:
        return {name: self.plan.fault(name, round=round, attempt=attempt).fate for name in NAMES}


class TestSimulatedClock:
    def test_sleep_ends_at_the_moment_of_what_is_expected_next(self) -> None:
        clock = SimulatedClock(100.0)
        clock.sleep(1.0)
        assert clock.now() == 101.0
        for moment in (150.0, 120.0, 90.0, 120.5):
            clock.expect(moment)
        clock.sleep(1.0)
        assert clock.now() == 120.0
        clock.sleep(1.0)
        assert clock.now() == 121.0  # at least a second: what was expected within it is seen as well
        clock.sleep(1.0)
        assert clock.now() == 150.0

    def test_moments_are_as_far_apart_whenever_a_run_begins(self) -> None:
        found = []
        for start in (1.8e9, 1.8e9 + 12_345.0):
            clock = SimulatedClock(start)
            for seconds in (0.1, 1 / 3, 7.7):
                clock.sleep(seconds)
            found.append((clock.now() - start, len(repr(clock.now()))))
        assert found[0] == found[1]
        clock.forget()
        assert clock.now() == start + 9.0

    def test_within_at_it_is_that_moment(self) -> None:
        clock = SimulatedClock(100.0)
        with clock.at(7.0):
            assert clock.now() == 7.0
        assert clock.now() == 100.0


class TestUnreliable:
    def test_a_silent_site_is_not_asked_every_other_site_does_its_work(self) -> None:
        line = Line(dropout=0.3, late=0.3)
        asked = line.ask(1)
        heard = line.hear(asked)
        fates = line.fates(1)
        assert Counter(fates.values()).keys() == {Fate.ANSWER, Fate.SILENCE, Fate.LATE}
        assert heard.keys() == {name for name, fate in fates.items() if fate is Fate.ANSWER}
        line.clock.sleep(60.0)
        line.ask(2)
        served = Counter(name for name, _ in line.served)
        assert served.keys() == {name for name, fate in fates.items() if fate is not Fate.SILENCE}
        assert {moment for _, moment in line.served} == {1000.0}  # when the plan had not expired

    def test_an_answer_is_handed_over_at_its_simulated_moment(self) -> None:
        line = Line(compute_s=30.0, straggle_sigma=1.0)
        asked = line.ask(1)
        moments: dict[str, float] = {}
        for _ in range(100):
            moments |= dict.fromkeys(line.hear(asked), line.clock.now())
            line.clock.sleep(0.2)
        seconds = {name: line.plan.fault(name, round=1, attempt=1).seconds for name in NAMES}
        on_time = {name for name, value in seconds.items() if value <= 60.0}
        assert 0 < len(on_time) < len(NAMES)
        assert all(-1e-6 < moments[name] - 1000.0 - seconds[name] < 0.2001 for name in on_time)

    def test_a_damaged_reply_left_its_site_whole(self) -> None:
        line = Line(corrupt=0.5)
        heard, fates = line.hear(line.ask(1)), line.fates(1)
        assert len(line.served) == len(NAMES)
        for name, data in heard.items():
            assert (data == f"{name} answers".encode()) == (fates[name] is Fate.ANSWER)

    def test_a_poisoned_site_says_what_the_poison_makes_of_its_plan_and_reply(self) -> None:
        heard = (line := Line(poisoned=["site-2"])).hear(line.ask(1, b"the plan"))
        assert heard["site-2"] == b"poison for the plan" and heard["site-1"] == b"site-1 answers"

    def test_an_error_passes_as_it_is(self) -> None:
        line = Line(corrupt=1.0, poisoned=["site-3"])
        assert line.hear(line.ask(1, b"crash"))["site-3"] == b"error"

    def test_an_answer_comes_once_and_every_attempt_has_its_own_faults(self) -> None:
        line = Line(dropout=0.5)
        first = line.ask(7)
        assert line.hear(first).keys() == {name for name, fate in line.fates(7, 1).items() if fate is Fate.ANSWER}
        assert line.hear(first) == {}
        assert line.hear(line.ask(7)).keys() == {n for n, fate in line.fates(7, 2).items() if fate is Fate.ANSWER}

    def test_another_attempt_may_ask_other_sites_and_loses_none_of_them(self) -> None:
        line = Line(compute_s=30.0)
        first = line.ask(1, names=["site-1", "site-4"])
        assert line.hear(first) == {}
        line.clock.sleep(60.0)
        second = line.ask(1, names=["site-2", "site-3", "site-1"])
        line.clock.sleep(60.0)
        assert set(line.hear(second)) == {"site-2", "site-3", "site-1"}
        assert [name for name, _ in line.served] == ["site-1", "site-4", "site-2", "site-3", "site-1"]

    def test_nothing_is_expected_of_an_attempt_that_is_over(self) -> None:
        line = Line(compute_s=30.0, jitter_sigma=1.0)
        line.hear(line.ask(1))
        line.grid.let_work()
        line.clock.sleep(0.2)
        assert line.clock.now() == pytest.approx(1000.2, abs=1e-6)

    def test_a_server_app_runs_over_it_and_the_late_work_when_it_ends(self) -> None:
        line = Line(late=1.0)
        line.grid.drive(lambda grid, context: grid.push_messages(
            [Message(pack(b"?"), node, "train", group_id="1") for node in grid.get_node_ids()]
        ))  # fmt: skip
        assert len(line.served) == len(NAMES)


def behaviour_of(folder: Path, *, sites: int = 20, **settings: Any) -> Behaviour:
    config = small_config(folder, **({"simulation": settings} if settings else {}))
    clock = SimulatedClock(1000.0)
    return Behaviour.of(config, NAMES[:sites], keys=KEYS, operator=new_key().public_key(), clock=clock)


class TestBehaviour:
    def test_without_a_table_nothing_changes(self, tmp_path: Path) -> None:
        behaviour = behaviour_of(tmp_path)
        engine = InProcessGrid(client_app(lambda site: None), {})  # type: ignore[arg-type,return-value]
        assert behaviour.around(engine, {}) is engine
        assert behaviour.now() == 1000.0

    def test_without_a_simulated_clock_time_is_real(self, tmp_path: Path) -> None:
        behaviour = replace(behaviour_of(tmp_path), clock=None)
        assert (behaviour.now, behaviour.sleep) == (time.time, time.sleep)

    def test_never_more_than_policy_does_but_for_another_unit(self, tmp_path: Path) -> None:
        behaviour = behaviour_of(tmp_path, strict=0.2, other_unit=0.2)
        policy = population_of(small_bench(tmp_path), new_key()).sites["site-1"]._policy
        for name, temper in behaviour.tempers.items():
            own = behaviour.policy(name, policy)
            assert own.max_epsilon == (policy.max_epsilon / 2 if temper is Temper.STRICT else policy.max_epsilon)
            assert (own.unit is Unit.PATIENT) == (temper is Temper.OTHER_UNIT)
            assert (own == policy) == (temper is Temper.WILLING)

    def test_an_earlier_run_is_charged_once_to_those_whose_budget_is_spent(self, tmp_path: Path) -> None:
        behaviour = behaviour_of(tmp_path, spent=0.2)
        terms = behaviour.config.terms
        ledgers = {name: Ledger.in_memory(Budget(epsilon=terms.epsilon, delta=terms.delta)) for name in NAMES}
        behaviour.burden(ledgers)
        restored = {name: Ledger.restore(ledger.export(), budget=ledger.budget) for name, ledger in ledgers.items()}
        behaviour.burden(restored)
        quote = Quote.of(terms)
        for name, ledger in restored.items():
            assert ledger.head == ledgers[name].head
            if behaviour.tempers[name] is Temper.SPENT:
                with pytest.raises(BudgetError):
                    ledger.reserve(quote, run_id="this run")
                assert ledger.spent("this run", delta=terms.delta) == 0.0
            else:
                ledger.reserve(quote, run_id="this run")


class TestScaledReply:
    def test_every_number_times_the_factor_under_the_sites_own_key(self, tmp_path: Path) -> None:
        bench, operator = small_bench(tmp_path), new_key()
        plan = plan_bytes(bench, operator)
        reply = population_of(bench, operator).sites["site-1"].answer(plan)
        key = KEYS["site-1"]
        sent = scaled_reply(reply, plan=plan, key=key, operator=operator.public_key(), factor=-3.0)
        asked, adapter = decode_plan(plan, public_key=operator.public_key())
        spec = adapter.spec.subset(asked.training.groups)
        honest, poisoned = (decode_reply(data, public_key=key.public_key(), spec=spec) for data in (reply, sent))
        assert isinstance(honest, Update) and isinstance(poisoned, Update)
        assert (poisoned.delta.vector == honest.delta.vector * -3.0).all()
        assert poisoned.guarantee == honest.guarantee and poisoned.ledger_head == honest.ledger_head

    def test_a_refusal_stays(self, tmp_path: Path) -> None:
        bench, operator = small_bench(tmp_path), new_key()
        plan = encode_plan(plan_of(bench, expires_at=1.0), bench.prepared.bundle.initial, key=operator)
        reply = population_of(bench, operator).sites["site-1"].answer(plan)
        said = decode_reply(reply, public_key=KEYS["site-1"].public_key())
        assert isinstance(said, Refusal) and said.code is Code.EXPIRED and said.plan_id != NO_PLAN
        for given in (reply, b"rubbish"):
            arguments = {"plan": plan, "key": KEYS["site-1"], "operator": operator.public_key()}
            assert scaled_reply(given, factor=2.0, **arguments) is given  # type: ignore[arg-type]
