"""The round loop: plan out, answers in, folded as they arrive; advance, evaluate, record, checkpoint; again.

One loop for simulation and deployment, on Flower's Grid. Fewer answers than the minimum: the round is abandoned, says
so, and is retried under the same plan id, so that sites send what they stored rather than spend again; the adapter
does not move. One site's fault never ends a run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import Message
from flwr.serverapp import Grid

from fedward_common.codec import encode_plan, key_fingerprint
from fedward_common.config import RunConfig
from fedward_common.errors import InputError, MalformedMessage, RoundAbandoned
from fedward_common.round import Aggregate, Refusal, RoundPlan, RoundRecord, Training, Update
from fedward_common.wire import pack, unpack
from fedward_server.admission import Admission, Drop, weight_of
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoints
from fedward_server.evaluation import Evaluator
from fedward_server.records import RoundLog, write_witness
from fedward_server.state import State, advance

__all__ = ["Coordinator", "EnrolledSite", "Observer", "plan_for", "stage_of"]

POLL_S = 0.2


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


@dataclass(kw_only=True)
class _Attempt:
    """What happened so far in one attempt at a round."""

    aggregate: Aggregate
    started: float
    cohort: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Coordinator:
    """Runs a prepared bundle over a Grid.

    ``sites`` maps Flower's node ids to enrolled sites; nobody else is asked. ``heads`` holds the last ledger head of
    each site by name: it goes back to the site in the next plan, so that a ledger that was set back shows. ``witness``
    is a file that keeps them for a site that has to reconcile its ledger; a simulation needs none. ``extra`` is asked
    for JSON to keep in each checkpoint and ``spent`` for the largest epsilon over sites, where the caller knows it.

    Guarantees:
      - Memory does not grow with the number of sites: one update and one sum at a time.
      - After each finished round the checkpoint and the round's record are on disk before the next plan is sent.
    """

    bundle: Bundle
    key: Ed25519PrivateKey
    sites: Mapping[int, EnrolledSite]
    evaluator: Evaluator
    observer: Observer
    checkpoints: Checkpoints
    log: RoundLog
    heads: dict[str, str] = field(default_factory=dict)
    witness: Path | None = None
    extra: Callable[[], dict[str, Any]] = dict
    spent: Callable[[], float | None] = lambda: None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def run(self, grid: Grid, state: State) -> State:
        """Run every round that is left and return the last state.

        Raises:
          RoundAbandoned: a round found too few answers, also after every retry. The last checkpoint stands.
        """
        while state.finished < self.bundle.config.total_rounds:
            state = self._round(grid, state)
        return state

    def _round(self, grid: Grid, state: State) -> State:
        limits = self.bundle.config.rounds
        for attempt in range(1, limits.retries + 2):
            plan = plan_for(self.bundle, state, expires_at=self.clock() + limits.deadline_s)
            result = self._attempt(grid, state, plan, attempt)
            self._remember(plan)
            if result.aggregate.count >= limits.minimum:
                return self._finish(state, plan, attempt, result)
            self._note(plan, attempt, result, state, abandoned=True)
        raise RoundAbandoned(
            f"round {state.finished + 1} found fewer than {limits.minimum} answers in {limits.retries + 1} attempts",
            hint="look at the refusals in rounds.jsonl; `fedward-sim run --resume` continues from the last round",
        )

    def _attempt(self, grid: Grid, state: State, plan: RoundPlan, attempt: int) -> _Attempt:
        nodes = self._cohort(sorted(set(grid.get_node_ids()) & set(self.sites)), plan.round, attempt)
        stage = plan.terms.stages[plan.stage].name
        self.observer.round_started(round=plan.round, stage=stage, attempt=attempt, cohort=len(nodes))
        spec = self.bundle.spec.subset(plan.training.groups)
        result = _Attempt(aggregate=Aggregate.empty(spec), started=time.perf_counter(), cohort=len(nodes))
        admission = Admission(plan=plan, spec=spec, max_norm=self.bundle.config.server.max_update_norm)
        asked = self._push(grid, nodes, lambda node: self._plan_bytes(node, plan, state), plan.round, result)
        self._collect(grid, asked, admission, result, plan.expires_at)
        return result

    def _cohort(self, nodes: Sequence[int], round: int, attempt: int) -> list[int]:
        config = self.bundle.config
        if not config.rounds.cohort or config.rounds.cohort >= len(nodes):
            return list(nodes)
        # which sites are asked is public and no part of any guarantee: seeded, so that a resumed run asks the same.
        # Indices are drawn: Flower's ids are 64 bits wide and NumPy would round a mixed list of them to float64
        generator = np.random.default_rng([config.seed, round, attempt])
        chosen = generator.choice(len(nodes), size=config.rounds.cohort, replace=False)
        return sorted(nodes[index] for index in chosen)

    def _plan_bytes(self, node: int, plan: RoundPlan, state: State) -> bytes:
        site = self.sites[node]
        own = plan.addressed_to(key_fingerprint(site.key), ledger_head=self.heads.get(site.name, ""))
        return encode_plan(own, state.adapter, key=self.key)

    def _push(
        self, grid: Grid, nodes: Sequence[int], plan_bytes: Callable[[int], bytes], round: int, result: _Attempt
    ) -> dict[str, int]:
        plans = [plan_bytes(node) for node in nodes]
        messages = [
            Message(content=pack(data), dst_node_id=node, message_type="train", group_id=str(round))
            for node, data in zip(nodes, plans, strict=True)
        ]
        asked: dict[str, int] = {}
        # Flower gives None for a message that it could not send, and an empty list where it could send none
        for node, data, identifier in zip_longest(nodes, plans, grid.push_messages(messages)):
            if identifier:
                asked[identifier] = node
                result.bytes_down += len(data)
            else:
                self._drop(node, Drop.NO_ANSWER, result)
        return asked

    def _collect(
        self, grid: Grid, asked: dict[str, int], admission: Admission, result: _Attempt, deadline: float
    ) -> None:
        waiting = dict(asked)
        while waiting and self.clock() < deadline:
            before = len(waiting)
            for identifier in list(waiting):
                if self.clock() < deadline:
                    self._pull(grid, identifier, asked, waiting, admission, result)
            if len(waiting) == before:
                self.sleep(POLL_S)
        for node in waiting.values():
            self._drop(node, Drop.NO_ANSWER, result)

    def _pull(
        self,
        grid: Grid,
        identifier: str,
        asked: Mapping[str, int],
        waiting: dict[str, int],
        admission: Admission,
        result: _Attempt,
    ) -> None:
        # one message a pull, and no name of it outlives this call: memory holds one update, whatever the cohort
        for reply in grid.pull_messages([identifier]):
            # an error that the SuperLink invents names the SuperLink as its source: go by the message answered
            answered = reply.metadata.reply_to_message_id
            if answered not in asked:
                continue
            node = asked[answered]
            if waiting.pop(answered, None) is None:
                self._drop(node, Drop.DUPLICATE, result)
            elif self.clock() >= admission.plan.expires_at:
                self._drop(node, Drop.LATE, result)
            else:
                self._judge(node, reply, admission, result)

    def _judge(self, node: int, reply: Message, admission: Admission, result: _Attempt) -> None:
        if reply.has_error():
            return self._drop(node, Drop.NO_ANSWER, result)
        try:
            data = unpack(reply.content)
        except MalformedMessage:
            return self._drop(node, Drop.MALFORMED, result)
        result.bytes_up += len(data)
        site = self.sites.get(node)
        verdict = admission.admit(self._name(node), data, key=site.key if site else None)
        if isinstance(verdict, Update):
            weight = weight_of(verdict, self.bundle.config.server.weights)
            result.aggregate = result.aggregate + Aggregate.of(verdict, weight=weight)
            self.heads[self._name(node)] = verdict.ledger_head
            self.observer.answered(self._name(node), "update")
        elif isinstance(verdict, Refusal):
            result.refused[verdict.code.value] += 1
            self.observer.answered(self._name(node), verdict.code.value)
        else:
            self._drop(node, verdict, result)
        return None

    def _drop(self, node: int, reason: Drop, result: _Attempt) -> None:
        result.dropped[reason.value] += 1
        self.observer.answered(self._name(node), reason.value)

    def _name(self, node: int) -> str:
        return self.sites[node].name if node in self.sites else f"node-{node}"

    def _finish(self, state: State, plan: RoundPlan, attempt: int, result: _Attempt) -> State:
        config = self.bundle.config
        rate = config.stages[plan.stage].server_learning_rate or config.server.learning_rate
        after = advance(state, result.aggregate, optimiser=config.server.optimiser, learning_rate=rate)
        self._note(plan, attempt, result, after, abandoned=False)
        self.checkpoints.save(after, run_id=self.bundle.run_id, heads=self.heads, extra=self.extra())
        return after

    def _remember(self, plan: RoundPlan) -> None:
        # after every attempt, also an abandoned one: its updates have left the sites
        if self.witness:
            known = {key_fingerprint(site.key): self.heads.get(site.name) for site in self.sites.values()}
            heads = {site: head for site, head in known.items() if head}
            write_witness(self.witness, run_id=self.bundle.run_id, terms=plan.terms, heads=heads)

    def _note(self, plan: RoundPlan, attempt: int, result: _Attempt, state: State, *, abandoned: bool) -> None:
        record = RoundRecord(
            round=plan.round,
            stage=plan.terms.stages[plan.stage].name,
            attempt=attempt,
            cohort=result.cohort,
            replied=result.aggregate.count,
            refused=dict(result.refused),
            dropped=dict(result.dropped),
            bytes_down=result.bytes_down,
            bytes_up=result.bytes_up,
            seconds=round(time.perf_counter() - result.started, 3),
            update_norm=result.aggregate.mean().l2_norm(),
            adapter_digest=state.adapter.digest,
            abandoned=abandoned,
            evaluation=None if abandoned else self.evaluator.evaluate(state.adapter, round=plan.round),
            sites=None if abandoned else result.aggregate.site_metrics(),
            epsilon=self.spent(),
        )
        self.log.append(record)
        self.observer.round_finished(record)
