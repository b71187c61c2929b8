from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.codec import PlanParts, PlanWriter, encode_reply
from fedward_common.config import Weights
from fedward_common.errors import MalformedMessage, RunStopped
from fedward_common.round import Code, Fold, Refusal
from fedward_server.admission import Admission
from fedward_server.collecting import Addressee, Attempt, Collector, Letter, PostError
from support.coordinating import Clock
from support.nouns import HEAD, KEY, START, plan_from, update_for

SECONDS = 30.0
PLAN = plan_from(expires_at=1000.0 + SECONDS)
UPDATE = encode_reply(update_for(PLAN), key=KEY)
REFUSAL = encode_reply(Refusal(plan_id=PLAN.plan_id, code=Code.EXPIRED), key=KEY)
WRITER = PlanWriter(START, key=KEY)


@dataclass(frozen=True)
class Paper:
    """A letter with these bytes; None is an error of the transport."""

    answers: str
    data: bytes | None

    def read(self) -> bytes | None:
        if self.data == b"other content":
            raise MalformedMessage("other content", hint="none")
        return self.data


@dataclass
class Desk:
    """A Post: what each node answers, and what fails how often."""

    answers: dict[int, list[bytes | None]]
    failing: Counter[str] = field(default_factory=Counter)
    unsendable: frozenset[int] = frozenset()
    seconds: list[float] = field(default_factory=list)
    sent: Counter[int] = field(default_factory=Counter)

    def _fail(self, call: str) -> None:
        if self.failing[call]:
            self.failing[call] -= 1
            raise PostError(call)

    def send(self, node: int, plan: PlanParts, *, group: str, seconds: float) -> str | None:
        self._fail(f"send {node}")
        self.sent[node] += 1
        self.seconds.append(seconds)
        return None if node in self.unsendable else str(node)

    def fetch(self, identifier: str) -> Iterable[Letter]:
        self._fail(f"fetch {identifier}")
        found, self.answers[int(identifier)] = self.answers.get(int(identifier), []), []
        return [Paper(identifier, data) for data in found]


def collected(desk: Desk, *, goal: int = 0, pause: Callable[[float], None] | None = None) -> tuple[Attempt, list[str]]:
    """One attempt over all nodes of a desk, and what was told."""
    clock = Clock()
    told: list[str] = []
    attempt = Attempt(fold=Fold(HEAD))
    Collector(
        post=desk,
        plans=lambda site: WRITER.parts(PLAN.addressed_to(f"{site.node:064x}")),
        admission=Admission(plan=PLAN, spec=HEAD, max_norm=1000.0),
        weights=Weights.EQUAL,
        goal=goal,
        clock=clock,
        pause=pause or clock.sleep,
        told=lambda name, outcome: told.append(f"{name} {outcome}"),
        note=told.append,
        attempt=attempt,
    ).collect([Addressee(node=node, name=f"s{node}", key=KEY.public_key()) for node in sorted(desk.answers)])
    return attempt, told


ANSWERS = [
    [UPDATE],
    [REFUSAL],
    [None],
    [b"garbage"],
    [b"other content"],
    [],
    [UPDATE, UPDATE],
    [None, UPDATE],
    [UPDATE[:-1], UPDATE],
]


@settings(deadline=None, max_examples=60)
@given(
    picked=st.lists(st.sampled_from(ANSWERS), max_size=6),
    goal=st.integers(0, 3),
    failing=st.dictionaries(
        st.sampled_from([f"{call} {node}" for call in ("send", "fetch") for node in range(4)]), st.integers(1, 500)
    ),
    unsendable=st.frozensets(st.integers(0, 5)),
)
def test_every_site_that_was_asked_has_one_outcome_besides_duplicates(
    picked: list[list[bytes | None]], goal: int, failing: dict[str, int], unsendable: frozenset[int]
) -> None:
    desk = Desk(dict(enumerate(map(list, picked))), Counter(failing), unsendable)
    attempt, told = collected(desk, goal=goal)
    outcomes = Counter(line.split()[0] for line in told if line.startswith("s") and not line.endswith("duplicate"))
    assert outcomes == {f"s{node}": 1 for node in desk.answers}
    dropped = attempt.dropped.total() - attempt.dropped["duplicate"]
    assert attempt.fold.count + attempt.refused.total() + dropped == attempt.cohort == len(picked)
    assert attempt.fold.count == len(attempt.updated)
    assert attempt.updated <= attempt.asked


@pytest.mark.parametrize("call", ["send", "fetch"])
def test_no_fault_of_the_transport_ends_the_attempt_or_holds_up_the_other_sites(call: str) -> None:
    desk = Desk({0: [UPDATE], 1: [UPDATE], 2: [UPDATE]}, Counter({f"{call} 0": 3, f"{call} 1": 10**6}))
    attempt, told = collected(desk)
    assert (attempt.updated, attempt.dropped) == ({"s0", "s2"}, {"no_answer": 1})
    assert [line for line in told if line.endswith("update")] == ["s2 update", "s0 update"]
    assert sum("messages do not pass" in line for line in told) == 2  # once a kind


def test_what_was_sent_is_not_sent_again_and_lives_as_long_as_the_plan() -> None:
    desk = Desk({0: [UPDATE], 1: []}, Counter({"send 0": 2}))
    attempt, _ = collected(desk)
    assert desk.sent == {0: 1, 1: 1}
    assert desk.seconds[0] == SECONDS
    assert 0 < desk.seconds[1] < SECONDS
    assert attempt.bytes_down == 2 * WRITER.parts(PLAN.addressed_to("0" * 64)).size
    assert attempt.bytes_up == len(UPDATE)


def test_a_goal_spares_the_rest_and_asks_nobody_more() -> None:
    desk = Desk({node: [UPDATE] for node in range(5)}, Counter({"send 4": 10**6}))
    attempt, _ = collected(desk, goal=2)
    assert (attempt.updated, attempt.spared) == ({"s0", "s1"}, {"s2", "s3", "s4"})
    assert attempt.dropped == {"not_needed": 3}
    assert attempt.asked == {"s0", "s1", "s2", "s3"}


def test_the_plans_body_is_let_go_once_all_are_sent() -> None:
    clock, seen = Clock(), []

    class Looking(Desk):
        def fetch(self, identifier: str) -> Iterable[Letter]:
            seen.append(collector.plans)
            return super().fetch(identifier)

    collector = Collector(
        post=Looking({0: [UPDATE], 1: [UPDATE]}),
        plans=lambda site: WRITER.parts(PLAN.addressed_to(f"{site.node:064x}")),
        admission=Admission(plan=PLAN, spec=HEAD, max_norm=1000.0),
        weights=Weights.EQUAL,
        goal=0,
        clock=clock,
        pause=clock.sleep,
        told=lambda *_: None,
        note=lambda _: None,
        attempt=Attempt(fold=Fold(HEAD)),
    )
    collector.collect([Addressee(node=node, name=f"s{node}", key=KEY.public_key()) for node in (0, 1)])
    assert seen == [None, None]


def test_a_stop_is_seen_in_every_pass() -> None:
    passes = 0

    def pause(_: float) -> None:
        nonlocal passes
        passes += 1
        raise RunStopped("stop", hint="none")

    for answers in ([UPDATE], []):
        with pytest.raises(RunStopped):
            collected(Desk({0: list(answers), 1: []}), pause=pause)
    assert passes == 2
