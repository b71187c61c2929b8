"""Virtual sites that behave as sites do: away, slow, garbled, unwilling, out of budget, or hostile.

Everything here stands around the sites: in what they allow and have spent before the run, and in what happens to
messages on the way. Nothing reaches into a site's rounds, so its privacy code is the same in fair weather and foul.
Time is simulated: nobody sleeps, and a straggler's hour takes as long as its computation does on this machine.

    behaviour = Behaviour.of(config, sites, keys=keys, operator=operator.public_key())
    site = Site(policy=behaviour.policy(name, policy), clock=behaviour.now, ...)
    coordinator = Coordinator(clock=behaviour.now, sleep=behaviour.sleep, ...)
    behaviour.around(InProcessGrid(app, nodes), nodes).drive(server_app(coordinator, ...))
"""

from __future__ import annotations

import heapq
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_client.policy import SitePolicy
from fedward_common.codec import decode_plan, decode_reply, encode_reply
from fedward_common.config import RunConfig
from fedward_common.errors import MessageError
from fedward_common.privacy.grants import Quote
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.ledger import Ledger
from fedward_common.round import Update
from fedward_common.simulated import Poison
from fedward_common.wire import pack, unpack
from fedward_simulations.sites.faults import Fate, Fault, FaultPlan, Temper, tempers

__all__ = ["Behaviour", "Carrier", "SimulatedClock", "Unreliable", "scaled_reply"]

GRAINS = 2**20  # of a second
EARLIER_RUN = "an earlier run of another coordinator"


class Carrier(Protocol):
    """What a coordinator uses of a Flower Grid, and what starts it."""

    def drive(self, app: Any) -> None:
        """Run a ServerApp over this Grid until it returns."""
        ...

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are connected."""
        ...

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        """Send messages; an identifier for each."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        """Answers to some of these that have arrived."""
        ...


class SimulatedClock:
    """Seconds since the epoch that pass when somebody sleeps, and at no other time.

    Guarantees:
      - ``sleep`` returns at once, at least so many seconds later; where nothing is expected until later than that, at
        the moment of what is expected next.
      - Moments are multiples of 2^-20 seconds: as far apart, and of as many digits, whenever a run begins.
      - Time never goes back, but within ``at``, where it stands still at a moment gone by.
    """

    def __init__(self, start: float) -> None:
        """Stand at ``start``."""
        self._now = start
        self._expected: list[float] = []

    def now(self) -> float:
        """The time."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        while self._expected and self._expected[0] <= self._now:
            heapq.heappop(self._expected)
        wanted = max(self._now + seconds, self._expected[0] if self._expected else 0.0)
        self._now = math.ceil(wanted * GRAINS) / GRAINS

    @contextmanager
    def at(self, moment: float) -> Iterator[None]:
        """For a while it is that moment: what a site did then is computed when its answer is due."""
        now, self._now = self._now, moment
        try:
            yield
        finally:
            self._now = now

    def expect(self, moment: float) -> None:
        """Something happens then that a sleeper would want to see."""
        heapq.heappush(self._expected, moment)

    def forget(self) -> None:
        """Nothing is expected any more, and what comes next begins at a whole second."""
        self._expected.clear()
        self._now = float(math.ceil(self._now))


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """How the sites of one run behave. Without ``[simulation]``: willingly, at once."""

    config: RunConfig
    tempers: Mapping[str, Temper]
    keys: Mapping[str, Ed25519PrivateKey]
    operator: Ed25519PublicKey
    clock: SimulatedClock | None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        sites: Iterable[str],
        *,
        keys: Mapping[str, Ed25519PrivateKey],
        operator: Ed25519PublicKey,
        clock: SimulatedClock | None,
    ) -> Behaviour:
        """The behaviour that a run file asks for.

        Args:
          config: the run file.
          sites: names of all sites.
          keys: their signing keys, with which a poisoned site signs what it sends.
          operator: the key that plans are signed with.
          clock: of all sites and the coordinator; None for the real one, where sites compute elsewhere. By a simulated
            one no plan expires because this machine is slow, and a plan has the same size whenever it is made.

        Raises:
          ConfigError: no willing site would be left.
        """
        kinds = tempers(config.simulation, seed=config.seed, sites=sites)
        return cls(config=config, tempers=kinds, keys=keys, operator=operator, clock=clock)

    @property
    def now(self) -> Callable[[], float]:
        """The clock of all sites and of the coordinator."""
        return self.clock.now if self.clock else time.time

    @property
    def sleep(self) -> Callable[[float], None]:
        """How the coordinator waits."""
        return self.clock.sleep if self.clock else time.sleep

    def policy(self, site: str, policy: SitePolicy) -> SitePolicy:
        """What this site allows, where a willing one allows ``policy``.

        Guarantees:
          - Never more than ``policy`` does, but for another unit.
        """
        match self.tempers[site]:
            case Temper.STRICT:
                return replace(policy, max_epsilon=policy.max_epsilon / 2)
            case Temper.OTHER_UNIT:
                return replace(policy, unit=next(unit for unit in Unit if unit is not policy.unit))
        return policy

    def burden(self, ledgers: Mapping[str, Ledger]) -> None:
        """Charge an earlier run, of the same terms as this one, to the sites whose budget is spent; once only."""
        spent = [ledger for name, ledger in ledgers.items() if self.tempers[name] is Temper.SPENT]
        fresh = [ledger for ledger in spent if all(grant.run_id != EARLIER_RUN for grant in ledger.grants())]
        if fresh:
            quote = Quote.of(self.config.terms)
            for ledger in fresh:
                ledger.reserve(quote, run_id=EARLIER_RUN)

    def around(self, engine: Carrier, nodes: Mapping[int, str]) -> Carrier:
        """The engine with this weather over it; without ``[simulation]`` the engine itself.

        Args:
          engine: whatever serves plans: one by one, many at once, elsewhere.
          nodes: the site at each of its nodes.
        """
        settings = self.config.simulation
        if settings is None or self.clock is None:
            return engine
        plan = FaultPlan(settings=settings, seed=self.config.seed, deadline_s=self.config.rounds.deadline_s)
        scaling = settings.poison is Poison.SCALE
        poisoned = {name for name, temper in self.tempers.items() if scaling and temper is Temper.POISONED}
        return Unreliable(engine, nodes, plan=plan, clock=self.clock, poisoned=poisoned, poison=self._poison)

    def _poison(self, site: str, plan: bytes, reply: bytes) -> bytes:
        factor = self.config.simulation.poison_factor if self.config.simulation else 1.0
        return scaled_reply(reply, plan=plan, key=self.keys[site], operator=self.operator, factor=factor)


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """A plan on its way: to whom, in which attempt, when, and what becomes of it; its bytes only if that needs them."""

    site: str
    round: int
    attempt: int
    moment: float
    fault: Fault
    plan: bytes

    @property
    def arrives(self) -> float:
        """When the reply does."""
        return self.moment + self.fault.seconds


class Unreliable:
    """A Grid between coordinator and sites that loses, delays and damages what passes, by a fault plan.

    Guarantees:
      - A silent site is not asked; every other site does its work, also where nobody will hear of it in time.
      - A reply that is damaged, delayed or poisoned left a site that had served its round as always.
      - An answer is handed over at its simulated moment, not before.
    """

    def __init__(
        self,
        engine: Carrier,
        nodes: Mapping[int, str],
        *,
        plan: FaultPlan,
        clock: SimulatedClock,
        poisoned: Iterable[str] = (),
        poison: Callable[[str, bytes, bytes], bytes] = lambda site, plan, reply: reply,
    ) -> None:
        """Stand before an engine.

        Args:
          engine: serves the plans.
          nodes: the site at each node.
          plan: decides what goes wrong.
          clock: decides when.
          poisoned: sites whose replies ``poison`` replaces.
          poison: from site, plan and reply to the reply that is sent instead.
        """
        self._engine, self._nodes, self._plan, self._clock = engine, nodes, plan, clock
        self._poisoned, self._poison = frozenset(poisoned), poison
        self._sent: dict[str, _Sent] = {}
        self._looked = False  # for answers, since the last plan went out
        self._asked: Counter[tuple[str, int]] = Counter()

    def drive(self, app: Any) -> None:
        """Run a ServerApp over this Grid until it returns."""
        self._engine.drive(lambda _, context: app(self, context))
        self.let_work()

    def get_node_ids(self) -> Iterable[int]:
        """The engine's."""
        return self._engine.get_node_ids()

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Send each message, or lose it; either way the sender gets an identifier."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """The answers that have arrived by now."""
        self._looked = True
        due = [(name, self._sent.get(name)) for name in message_ids]
        return [
            self._altered(reply, sent)
            for name, sent in due
            if sent is not None and sent.arrives <= self._clock.now()
            for reply in self._pull(name, sent)
        ]

    def _push(self, message: Any) -> str:
        sent = self._draw(message)
        self._clock.expect(sent.moment + self._plan.deadline_s)
        if sent.fault.fate is Fate.SILENCE:
            return uuid.uuid4().hex
        if sent.fault.fate is not Fate.LATE:
            self._clock.expect(sent.arrives)
        identifier = next(iter(self._engine.push_messages([message])))
        self._sent[identifier] = sent
        return identifier

    def _draw(self, message: Any) -> _Sent:
        site, round = self._nodes[message.metadata.dst_node_id], int(message.metadata.group_id)
        if self._looked:  # all plans of an attempt go out first: the one before is over
            self.let_work()
        self._looked = False
        self._asked[site, round] += 1
        attempt = self._asked[site, round]
        return _Sent(
            site=site,
            round=round,
            attempt=attempt,
            moment=self._clock.now(),
            fault=self._plan.fault(site, round=round, attempt=attempt),
            plan=unpack(message.content) if site in self._poisoned else b"",
        )

    def _pull(self, identifier: str, sent: _Sent) -> list[Any]:
        with self._clock.at(sent.moment):  # the site worked from then on: its plan had not expired
            found = list(self._engine.pull_messages([identifier]))
        if found:
            del self._sent[identifier]
        return found

    def let_work(self) -> None:
        """Who is late, or not needed any more, works all the same: its ledger is charged, its reply stored.

        Nothing of this attempt is waited for afterwards, so that a run that goes on from here meets the same moments.
        """
        for identifier, sent in list(self._sent.items()):
            self._pull(identifier, sent)
        self._sent.clear()
        self._clock.forget()

    def _altered(self, reply: Any, sent: _Sent) -> Any:
        if not reply.has_content():
            return reply
        before = after = unpack(reply.content)
        if sent.site in self._poisoned:
            after = self._poison(sent.site, sent.plan, after)
        if sent.fault.fate is Fate.CORRUPT:
            after = self._plan.damaged(after, sent.site, round=sent.round, attempt=sent.attempt)
        if after is not before:
            reply.content = pack(after)
        return reply


def scaled_reply(
    reply: bytes, *, plan: bytes, key: Ed25519PrivateKey, operator: Ed25519PublicKey, factor: float
) -> bytes:
    """An update as its own site might send it: every number times ``factor``, well signed. A refusal stays."""
    try:
        asked, adapter = decode_plan(plan, public_key=operator)
        said = decode_reply(reply, public_key=key.public_key(), spec=adapter.spec.subset(asked.training.groups))
    except MessageError:
        return reply
    if not isinstance(said, Update):
        return reply
    return encode_reply(replace(said, delta=said.delta.scaled(factor)), key=key)
