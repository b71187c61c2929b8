"""The round loop: plan out, answers in, folded as they arrive; advance, evaluate, record, checkpoint; again.

One loop for simulation and deployment, on Flower's Grid. Fewer answers than the minimum: the round is abandoned, says
so, and is retried under the same plan id, so that sites send what they stored rather than spend again; the adapter
does not move. Neither one site's fault nor a SuperLink that is away for a moment ends a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import Message
from flwr.serverapp import Grid

from fedward_common.adapter import AdapterSpec
from fedward_common.codec import PlanParts, PlanWriter, key_fingerprint
from fedward_common.config import RunConfig, Weights
from fedward_common.errors import InputError, RoundAbandoned, RunStopped
from fedward_common.round import Aggregate, Fold, RoundPlan, RoundRecord, Training
from fedward_common.wire import pack, unpack
from fedward_server.admission import Admission
from fedward_server.attendance import Attendance
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoints
from fedward_server.collecting import Addressee, Attempt, Collector, PostError
from fedward_server.evaluation import Evaluator
from fedward_server.records import RoundLog, read_witness, write_witness
from fedward_server.state import State, advance

__all__ = ["Coordinator", "EnrolledSite", "Observer", "plan_for", "stage_of"]

WAIT_S = 1.0  # between two looks at who is connected


class Observer(Protocol):
    """Whoever watches a run: a terminal, a log, a test."""

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """Plans are about to be sent."""
        ...

    def answered(self, site: str, outcome: str) -> None:
        """One answer was judged: 'update', a refusal's code, or the reason why it was dropped."""
        ...

    def round_finished(self, record: RoundRecord) -> None:
        """An attempt is over, finished or abandoned."""
        ...

    def note(self, text: str) -> None:
        """One sentence for people: whom the run waits for, who was set aside, that messages do not pass."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnrolledSite:
    """A site as the operator enrolled it."""

    name: str
    key: Ed25519PublicKey


def stage_of(config: RunConfig, round: int) -> tuple[int, int]:
    """The index of a round's stage, and the round's number within it, from 1."""
    within = round
    for index, stage in enumerate(config.stages):
        if within <= stage.rounds:
            return index, within
        within -= stage.rounds
    raise InputError(f"round {round} lies beyond the run", hint=f"the run has {config.total_rounds} rounds")


def plan_for(bundle: Bundle, state: State, *, expires_at: float) -> RoundPlan:
    """The plan of the round after ``state``, addressed to nobody yet: a function of bundle, state and expiry alone."""
    config, number = bundle.config, state.finished + 1
    index, within = stage_of(config, number)
    stage = config.stages[index]
    return RoundPlan(
        run_id=bundle.run_id,
        round=number,
        stage=index,
        spec_digest=bundle.spec.digest,
        adapter_digest=state.adapter.digest,
        terms=config.terms,
        training=Training(
            groups=stage.train,
            local_steps=stage.local_steps,
            optimiser=stage.optimiser,
            learning_rate=stage.learning_rate,
        ),
        evaluate=bool(stage.evaluate_every) and within % stage.evaluate_every == 0,
        public_seed=config.seed,
        weights=config.server.weights,
        expires_at=expires_at,
        states_min_sites=config.rounds.minimum,
    )


@dataclass(frozen=True, kw_only=True)
class _Letter:
    """An answer in a Flower message."""

    message: Message

    @property
    def answers(self) -> str:
        # an error that the SuperLink invents names the SuperLink as its source: go by the message answered
        return self.message.metadata.reply_to_message_id

    def read(self) -> bytes | None:
        return unpack(self.message.content) if self.message.has_content() else None


@dataclass(frozen=True, kw_only=True)
class _FlowerPost:
    """A Grid as the collector sees it.

    Flower's Grid tries again by itself, without end, where nobody listens, and raises what else can go wrong: a status
    such as 500, or whatever its own parsing raises on the records of one site. So every exception is for now; Ctrl-C
    and Flower's own end of a run are none.
    """

    grid: Grid

    def connected(self) -> set[int]:
        """Ids of the nodes that are there."""
        try:
            return set(self.grid.get_node_ids())
        except Exception as error:
            raise PostError(type(error).__name__) from None

    def send(self, node: int, plan: PlanParts, *, group: str, seconds: float) -> str | None:
        # a new message at each try: half a push may lie at the SuperLink under the old one's id. Its time to live is
        # the plan's, so that a node that comes back does not find stale plans
        message = Message(content=pack(plan), dst_node_id=node, message_type="train", group_id=group, ttl=seconds)
        try:
            sent = list(self.grid.push_messages([message]))
        except Exception as error:
            raise PostError(type(error).__name__) from None
        # Flower gives None for a message that it could not send, and an empty list where it could send none
        return (sent[0] or None) if sent else None

    def fetch(self, identifier: str) -> Iterator[_Letter]:
        try:
            found = self.grid.pull_messages([identifier])
        except Exception as error:
            raise PostError(type(error).__name__) from None
        return (_Letter(message=message) for message in found)


@dataclass(kw_only=True)
class Coordinator:
    """Runs a prepared bundle over a Grid.

    ``sites`` maps Flower's node ids to enrolled sites; nobody else is asked. ``heads`` holds the last ledger head of
    each site by name: it goes back to the site in the next plan, so that a ledger that was set back shows. ``missed``
    counts the attempts that each failing site has missed, and ``units`` is the number of units that each site declared
    in its first counted update; all three begin as the checkpoint has them. ``witness`` is a file that keeps the heads
    for a site that has to reconcile its ledger; it is written after every attempt, so a head in it is newer than the
    checkpoint's. A simulation needs none. ``extra`` is asked for JSON to keep in each checkpoint and ``spent`` for the
    largest epsilon over sites, where the caller knows it. ``stopping`` is asked, often, whether to stop.

    Guarantees:
      - Memory does not grow with the number of sites: one update and one sum at a time.
      - After each finished round the checkpoint and the round's record are on disk before the next plan is sent.
      - A round ends: it waits for sites, and for answers, no longer than the deadline each.
      - A head that was once written into the witness stays in it until there is a newer one of that key.
      - Where weights are declared numbers, a site's weight is the same in all rounds.
    """

    bundle: Bundle
    key: Ed25519PrivateKey
    sites: Mapping[int, EnrolledSite]
    evaluator: Evaluator
    observer: Observer
    checkpoints: Checkpoints
    log: RoundLog
    heads: dict[str, str] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    witness: Path | None = None
    extra: Callable[[], dict[str, Any]] = dict
    spent: Callable[[], float | None] = lambda: None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    stopping: Callable[[], bool] = lambda: False

    def run(self, grid: Grid, state: State) -> State:
        """Run every round that is left and return the last state.

        Raises:
          RoundAbandoned: a round found too few answers, also after every retry. The last checkpoint stands.
          RunStopped: ``stopping`` said so. The last checkpoint stands.
          OutputError: the witness is damaged or of another run; it is as it was.
        """
        for site in self.sites.values():
            if head := self._witnessed.get(key_fingerprint(site.key)):
                self.heads[site.name] = head
        while state.finished < self.bundle.config.total_rounds:
            state = self._round(_FlowerPost(grid=grid), state)
        return state

    def _round(self, post: _FlowerPost, state: State) -> State:
        limits = self.bundle.config.rounds
        for number in range(1, limits.retries + 2):
            nodes = self._wait_for_sites(post)
            plan = plan_for(self.bundle, state, expires_at=self.clock() + limits.deadline_s)
            result = self._attempt(post, state, plan, number, self._cohort(nodes, plan.round, number))
            if result.fold.count >= limits.minimum:
                return self._finish(state, plan, number, result)
            self._note(plan, number, result, state, result.fold.aggregate())
        raise RoundAbandoned(
            f"round {state.finished + 1} found fewer than {limits.minimum} answers in {limits.retries + 1} attempts",
            hint="look at the refusals in rounds.jsonl; a resumed run goes on from its last finished round",
        )

    def _wait_for_sites(self, post: _FlowerPost) -> list[int]:
        # asking fewer than the minimum would cost them a round of work for an attempt that cannot succeed
        needed, until, told = self.bundle.config.rounds.minimum, self.clock() + self.bundle.config.rounds.deadline_s, ""
        while True:
            self._pause(0.0)
            try:
                there = {node: self.sites[node].name for node in post.connected() if node in self.sites}
                why = f"{len(set(there.values()))} of at least {needed} sites are connected"
            except PostError as error:
                there, why = {}, f"the SuperLink does not say who is connected ({error})"
            if len(set(there.values())) >= needed:
                return self._attendance.invited(there, minimum=needed)
            if self.clock() >= until:
                return []
            if why != told:
                self.observer.note(f"waiting: {why}")
                told = why
            self._pause(min(WAIT_S, until - self.clock()))

    def _pause(self, seconds: float) -> None:
        if self.stopping():
            raise RunStopped("the run was asked to stop", hint="resume it: it continues from the last checkpoint")
        if seconds > 0:
            self.sleep(seconds)

    @cached_property
    def _attendance(self) -> Attendance:
        return Attendance(limit=self.bundle.config.rounds.set_aside_after, missed=self.missed)

    @cached_property
    def _witnessed(self) -> dict[str, str]:
        return read_witness(self.witness, run_id=self.bundle.run_id) if self.witness else {}

    def _attempt(self, post: _FlowerPost, state: State, plan: RoundPlan, number: int, nodes: Sequence[int]) -> Attempt:
        stage = plan.terms.stages[plan.stage].name
        self.observer.round_started(round=plan.round, stage=stage, attempt=number, cohort=len(nodes))
        spec = self.bundle.spec.subset(plan.training.groups)
        result = Attempt(fold=Fold(spec))
        collector = Collector(
            post=post,
            plans=self._writer(plan, state),
            admission=self._admission(plan, spec),
            weights=plan.weights,
            goal=self.bundle.config.rounds.goal,
            clock=self.clock,
            pause=self._pause,
            told=self.observer.answered,
            note=self.observer.note,
            attempt=result,
        )
        try:
            collector.collect([self._addressee(node) for node in nodes])
        finally:
            self._remember(plan, result)
        self._take_attendance(result)
        return result

    def _admission(self, plan: RoundPlan, spec: AdapterSpec) -> Admission:
        declared = self.units if plan.weights is Weights.NOMINAL else {}
        return Admission(plan=plan, spec=spec, max_norm=self.bundle.config.server.max_update_norm, declared=declared)

    def _cohort(self, nodes: Sequence[int], round: int, attempt: int) -> list[int]:
        config = self.bundle.config
        if not config.rounds.cohort or config.rounds.cohort >= len(nodes):
            return list(nodes)
        # which sites are asked is public and no part of any guarantee: seeded, so that a resumed run asks the same.
        # Indices are drawn: Flower's ids are 64 bits wide and NumPy would round a mixed list of them to float64
        generator = np.random.default_rng([config.seed, round, attempt])
        chosen = generator.choice(len(nodes), size=config.rounds.cohort, replace=False)
        return sorted(nodes[index] for index in chosen)

    def _addressee(self, node: int) -> Addressee:
        return Addressee(node=node, name=self.sites[node].name, key=self.sites[node].key)

    def _writer(self, plan: RoundPlan, state: State) -> Callable[[Addressee], PlanParts]:
        writer = PlanWriter(state.adapter, key=self.key)

        def parts(site: Addressee) -> PlanParts:
            fingerprint = key_fingerprint(site.key)
            head = self.heads.get(site.name) or self._witnessed.get(fingerprint, "")
            return writer.parts(plan.addressed_to(fingerprint, ledger_head=head))

        return parts

    def _remember(self, plan: RoundPlan, result: Attempt) -> None:
        # after every attempt, also one that was abandoned or stopped: its updates have left the sites
        self.heads.update(result.heads)
        self.units = {**result.units, **self.units}  # what a site said first holds
        if self.witness:
            known = {key_fingerprint(site.key): self.heads.get(site.name) for site in self.sites.values()}
            self._witnessed.update({site: head for site, head in known.items() if head})
            write_witness(self.witness, run_id=self.bundle.run_id, terms=plan.terms, heads=self._witnessed)

    def _take_attendance(self, result: Attempt) -> None:
        for name in self._attendance.note(asked=result.asked, updated=result.updated, spared=result.spared):
            self.observer.note(f"{name} is set aside: {self.missed[name]} attempts in a row without an update from it")

    def _finish(self, state: State, plan: RoundPlan, attempt: int, result: Attempt) -> State:
        config = self.bundle.config
        rate = config.stages[plan.stage].server_learning_rate or config.server.learning_rate
        aggregate = result.fold.aggregate()
        after = advance(state, aggregate, optimiser=config.server.optimiser, learning_rate=rate)
        self._note(plan, attempt, result, after, aggregate)
        self.checkpoints.save(
            after,
            run_id=self.bundle.run_id,
            heads=self.heads,
            missed=self.missed,
            units=self.units,
            extra=self.extra(),
        )
        return after

    def _note(self, plan: RoundPlan, attempt: int, result: Attempt, state: State, aggregate: Aggregate) -> None:
        abandoned = state.finished < plan.round
        record = RoundRecord(
            round=plan.round,
            stage=plan.terms.stages[plan.stage].name,
            attempt=attempt,
            cohort=result.cohort,
            replied=aggregate.count,
            refused=dict(result.refused),
            dropped=dict(result.dropped),
            bytes_down=result.bytes_down,
            bytes_up=result.bytes_up,
            seconds=round(time.perf_counter() - result.started, 3),
            update_norm=aggregate.mean().l2_norm(),
            adapter_digest=state.adapter.digest,
            abandoned=abandoned,
            evaluation=None if abandoned else self.evaluator.evaluate(state.adapter, round=plan.round),
            sites=None if abandoned else aggregate.site_metrics(),
            epsilon=self.spent(),
            set_aside=self._attendance.aside,
        )
        self.log.append(record)
        self.observer.round_finished(record)
