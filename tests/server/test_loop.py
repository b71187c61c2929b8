from __future__ import annotations

import contextlib
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedward_common.adapter import Adapter
from fedward_common.codec import encode_plan, encode_reply, key_fingerprint
from fedward_common.errors import FedwardError, InputError, OutputError, RoundAbandoned, RunStopped
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.round import Code, Fold, Refusal, RoundPlan, Update
from fedward_common.wire import pack
from fedward_server.loop import EnrolledSite, plan_for, stage_of
from fedward_server.state import State
from support.coordinating import (
    OPERATOR,
    Answer,
    Asked,
    Clock,
    FakeGrid,
    Notes,
    Site,
    bundle_of,
    config_of,
    coordinator_of,
    delta_for,
    honest,
    reply_bytes,
    silent,
)
from support.nouns import KEY, OTHER_KEY, SPEC, START, update_for

NODES = (1000, 1001, 1002)
ONE_ROUND: list[dict[str, Any]] = [{"name": "head", "train": ["head"], "rounds": 1}]


def refusing(code: Code) -> Site:
    """A site that says no."""
    return lambda asked: [pack(encode_reply(Refusal(plan_id=asked.plan.plan_id, code=code), key=KEY))]


def grid_of(*others: Site) -> FakeGrid:
    """The given sites at the first nodes, an honest one at each other."""
    return FakeGrid({node: others[i] if i < len(others) else honest() for i, node in enumerate(NODES)})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- the schedule


def test_stage_of_counts_rounds_stage_by_stage() -> None:
    config = config_of()
    assert [stage_of(config, round) for round in (1, 2, 3, 4)] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    with pytest.raises(InputError, match="beyond the run") as caught:
        stage_of(config, 5)
    assert "4 rounds" in caught.value.hint


def test_a_plan_is_a_function_of_bundle_state_and_expiry() -> None:
    bundle = bundle_of()
    state = State.initial(START)
    plan = plan_for(bundle, state, expires_at=5.0)
    assert plan == plan_for(bundle, state, expires_at=5.0)
    assert plan.plan_id == plan_for(bundle, state, expires_at=6.0).plan_id
    assert (plan.round, plan.stage, plan.public_seed, plan.run_id) == (1, 0, 3, bundle.run_id)
    assert (plan.spec_digest, plan.adapter_digest) == (SPEC.digest, START.digest)


def test_plans_follow_the_schedule(tmp_path: Path) -> None:
    grid = grid_of()
    end = coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid, State.initial(START))
    assert end.finished == 4
    seen = [(p.round, p.stage, p.training.groups, p.training.local_steps, p.evaluate) for _, p, _ in grid.plans[::3]]
    assert seen == [
        (1, 0, ("head",), 1, False),
        (2, 0, ("head",), 1, True),
        (3, 1, ("adapter",), 3, False),
        (4, 1, ("adapter",), 3, False),
    ]
    assert len({plan.plan_id for _, plan, _ in grid.plans}) == 4


# ---- a run in which all goes well


def test_a_run_adds_mean_deltas_and_writes_records_and_checkpoints(tmp_path: Path) -> None:
    bundle = bundle_of()
    grid = FakeGrid({1000: honest(value=1.0), 1001: honest(value=2.0), 1002: honest(value=6.0)})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, extra=lambda: {"kept": 1}, spent=lambda: 2.5)
    end = coordinator.run(grid, State.initial(START))
    # two head rounds at rate 1, two adapter rounds at the stage's own rate 0.5; the mean delta is 3
    np.testing.assert_allclose(end.adapter.vector, START.vector + np.array([6.0] * 6 + [3.0] * 3), rtol=1e-6)
    found = coordinator.checkpoints.latest(SPEC)
    assert (found.run_id, found.extra, found.state.finished) == (bundle.run_id, {"kept": 1}, 4)
    assert found.state.adapter.digest == end.adapter.digest
    rows = lines(tmp_path)
    assert [(row["round"], row["attempt"], row["replied"], row["abandoned"]) for row in rows] == [
        (n, 1, 3, False) for n in (1, 2, 3, 4)
    ]
    assert rows[-1]["adapter_digest"] == end.adapter.digest
    assert [row["sites"] for row in rows] == [
        None,
        {"accuracy": 0.75, "loss": 0.5, "units": 12.0, "sites": 3.0},
        None,
        None,
    ]
    assert rows[0]["epsilon"] == 2.5
    assert rows[0]["update_norm"] == pytest.approx(3 * 6**0.5)
    assert rows[0]["bytes_down"] > 0 < rows[0]["bytes_up"]


def test_every_site_gets_the_adapter_of_the_round(tmp_path: Path) -> None:
    grid = grid_of()
    coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid, State.initial(START))
    heads = [float(adapter.vector[0]) for _, _, adapter in grid.plans]
    assert heads == [0.5] * 3 + [1.5] * 3 + [2.5] * 6
    assert all(plan.adapter_digest == adapter.digest for _, plan, adapter in grid.plans)


def test_nominal_weights_are_the_declared_numbers(tmp_path: Path) -> None:
    def heavy(asked: Asked) -> list[Answer]:
        return [pack(reply_bytes(asked, value=4.0, nominal_units=30))]

    bundle = bundle_of(stages=ONE_ROUND, server={"optimiser": "sgd", "learning_rate": 1.0, "weights": "nominal"})
    end = coordinator_of(tmp_path, bundle, nodes=NODES).run(
        FakeGrid({1000: heavy, 1001: honest(value=0.0)}), State.initial(START)
    )
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 4.0 * 30 / 40, rtol=1e-6)


def declaring(*units: int) -> Site:
    """A site that declares these numbers of units, one a round."""
    return lambda asked: [pack(reply_bytes(asked, nominal_units=units[asked.plan.round - 1]))]


def test_under_nominal_weights_a_site_keeps_the_number_that_it_first_declared(tmp_path: Path) -> None:
    bundle = bundle_of(server={"optimiser": "sgd", "learning_rate": 1.0, "weights": "nominal"})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES)
    coordinator.run(grid_of(declaring(30, 100_000_000, 31, 30)), State.initial(START))
    assert [(row["replied"], row["dropped"]) for row in lines(tmp_path)] == [
        (3, {}),
        (2, {"other_units": 1}),
        (2, {"other_units": 1}),
        (3, {}),
    ]
    units = coordinator.checkpoints.latest(SPEC).units
    assert units == {"site-1000": 30, "site-1001": 10, "site-1002": 10}
    resumed = coordinator_of(tmp_path, bundle, nodes=NODES, units=units)
    resumed.run(grid_of(declaring(31, 31, 31, 31)), State.initial(START))
    rows = lines(tmp_path)[4:]
    assert [row["dropped"] for row in rows] == [*[{"other_units": 1}] * 3, {}], "and then it is set aside"
    assert rows[-1]["cohort"] == 2


def test_under_equal_weights_a_declared_number_weighs_nothing_and_may_change(tmp_path: Path) -> None:
    coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid_of(declaring(30, 31, 32, 33)), State.initial(START))
    assert [row["replied"] for row in lines(tmp_path)] == [3, 3, 3, 3]


def test_a_run_continues_from_any_checkpoint_to_the_same_end(tmp_path: Path) -> None:
    bundle = bundle_of(server={"optimiser": "adam", "learning_rate": 0.1})
    whole = coordinator_of(tmp_path / "a", bundle, nodes=NODES)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    end = whole.run(grid_of(), State.initial(START))

    def dies_at_round_3(asked: Asked) -> list[Answer]:
        if asked.plan.round == 3:
            raise KeyboardInterrupt
        return honest()(asked)

    broken = coordinator_of(tmp_path / "b", bundle, nodes=NODES)
    with pytest.raises(KeyboardInterrupt):
        broken.run(grid_of(dies_at_round_3), State.initial(START))
    found = broken.checkpoints.latest(SPEC)
    assert found.state.finished == 2
    assert broken.run(grid_of(), found.state).adapter.digest == end.adapter.digest


def test_record_and_checkpoint_are_on_disk_before_the_next_plan_is_sent(tmp_path: Path) -> None:
    coordinator = coordinator_of(tmp_path, bundle_of(), nodes=NODES)

    def looks(asked: Asked) -> list[Answer]:
        if asked.plan.round > 1:
            assert coordinator.checkpoints.latest(SPEC).state.finished == asked.plan.round - 1
            assert lines(tmp_path)[-1]["round"] == asked.plan.round - 1
        return honest()(asked)

    assert coordinator.run(FakeGrid({1000: looks}), State.initial(START)).finished == 4


# ---- too few answers


def test_a_round_with_too_few_answers_is_retried_under_the_same_plan_id_and_nothing_moves(tmp_path: Path) -> None:
    def second_time(asked: Asked) -> list[Answer]:
        return honest()(asked) if asked.before else refusing(Code.UNAVAILABLE)(asked)

    bundle = bundle_of(stages=ONE_ROUND, rounds={"minimum": 3, "retries": 1, "deadline_s": 10.0})
    grid = grid_of(second_time)
    end = coordinator_of(tmp_path, bundle, nodes=NODES).run(grid, State.initial(START))
    assert end.finished == 1
    assert len(grid.plans) == 6
    assert len({plan.plan_id for _, plan, _ in grid.plans}) == 1
    assert {adapter.digest for _, _, adapter in grid.plans} == {START.digest}
    first, second = lines(tmp_path)
    assert (first["abandoned"], first["attempt"], first["replied"]) == (True, 1, 2)
    assert first["refused"] == {"unavailable": 1}
    assert (first["adapter_digest"], first["evaluation"], first["sites"]) == (START.digest, None, None)
    assert (second["abandoned"], second["attempt"], second["replied"]) == (False, 2, 3)


def test_after_every_retry_the_run_ends_and_the_last_checkpoint_stands(tmp_path: Path) -> None:
    def only_one_round(asked: Asked) -> list[Answer]:
        return honest()(asked) if asked.plan.round == 1 else []

    notes = Notes()
    bundle = bundle_of(rounds={"minimum": 3, "retries": 2, "deadline_s": 10.0})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, observer=notes)
    with pytest.raises(RoundAbandoned, match="round 2 found fewer than 3 answers in 3 attempts") as caught:
        coordinator.run(grid_of(only_one_round), State.initial(START))
    assert caught.value.hint
    assert coordinator.checkpoints.latest(SPEC).state.finished == 1
    assert [(r.round, r.attempt, r.abandoned) for r in notes.records] == [
        (1, 1, False),
        (2, 1, True),
        (2, 2, True),
        (2, 3, True),
    ]
    assert len({record.adapter_digest for record in notes.records}) == 1


def test_a_run_without_any_site_is_abandoned(tmp_path: Path) -> None:
    with pytest.raises(RoundAbandoned):
        coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(FakeGrid({}), State.initial(START))
    assert [row["cohort"] for row in lines(tmp_path)] == [0, 0, 0]


# ---- sites that do not do as they are told


def test_silence_lasts_until_the_deadline_and_no_longer(tmp_path: Path) -> None:
    clock = Clock()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"deadline_s": 10.0})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock)
    end = coordinator.run(grid_of(silent), State.initial(START))
    assert end.finished == 1
    assert 1010.0 <= clock.now < 1010.5
    assert lines(tmp_path)[0]["dropped"] == {"no_answer": 1}


def test_without_silence_nobody_waits(tmp_path: Path) -> None:
    clock = Clock()
    coordinator_of(tmp_path, bundle_of(), nodes=NODES, clock=clock).run(grid_of(), State.initial(START))
    assert clock.slept == 0


def nan(asked: Asked) -> list[Answer]:
    return [pack(reply_bytes(asked, value=float("nan")))]


def too_large(asked: Asked) -> list[Answer]:
    return [pack(reply_bytes(asked, value=1e6))]


def another_plan(asked: Asked) -> list[Answer]:
    update = update_for(asked.plan, delta=delta_for(asked.plan, 1.0), plan_id="0" * 64)
    return [pack(encode_reply(update, key=KEY))]


def other_tensors(asked: Asked) -> list[Answer]:
    return [pack(encode_reply(update_for(asked.plan, delta=Adapter.zeros(SPEC)), key=KEY))]


def forged(asked: Asked) -> list[Answer]:
    return [pack(reply_bytes(asked, key=OTHER_KEY))]


def echo(asked: Asked) -> list[Answer]:
    return [pack(encode_plan(asked.plan, asked.adapter, key=OPERATOR))]


BAD: dict[str, tuple[Site, str]] = {
    "an error of the transport": (lambda _: [Error(code=3, reason="gone")], "no_answer"),
    "other content": (lambda _: [RecordDict({"x": ConfigRecord({"y": 1})})], "malformed"),
    "no content": (lambda _: [RecordDict({})], "malformed"),
    "garbage": (lambda _: [pack(b"garbage" * 30)], "malformed"),
    "nothing": (lambda _: [pack(b"")], "malformed"),
    "the plan sent back": (echo, "malformed"),
    "NaN": (nan, "not_finite"),
    "a huge update": (too_large, "too_large"),
    "another plan's answer": (another_plan, "wrong_plan"),
    "other tensors": (other_tensors, "spec_mismatch"),
    "a forged signature": (forged, "bad_signature"),
    "silence": (silent, "no_answer"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_answer_is_counted_under_its_reason_and_the_run_goes_on(bad: str, tmp_path: Path) -> None:
    site, reason = BAD[bad]
    notes = Notes()
    bundle = bundle_of(rounds={"minimum": 2, "deadline_s": 5.0, "set_aside_after": 0})
    end = coordinator_of(tmp_path, bundle, nodes=NODES, observer=notes).run(grid_of(site), State.initial(START))
    assert end.finished == 4
    assert np.isfinite(end.adapter.vector).all()
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 2.0, rtol=1e-6)
    for row in lines(tmp_path):
        assert (row["replied"], row["refused"], row["dropped"]) == (2, {}, {reason: 1})
    assert Counter(notes.outcomes)["site-1000", reason] == 4


@pytest.mark.parametrize("code", Code)
def test_refusals_are_counted_by_code(code: Code, tmp_path: Path) -> None:
    end = coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(
        grid_of(refusing(code)), State.initial(START)
    )
    assert end.finished == 1
    (row,) = lines(tmp_path)
    assert (row["replied"], row["refused"], row["dropped"]) == (2, {code.value: 1}, {})


def test_a_node_that_nobody_enrolled_is_not_asked(tmp_path: Path) -> None:
    asked: list[int] = []

    def site(one: Asked) -> list[Answer]:
        asked.append(one.node)
        return honest()(one)

    grid = FakeGrid(dict.fromkeys(NODES, site))
    coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES[:2]).run(grid, State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["cohort"], row["replied"], row["dropped"], asked) == (2, 2, {}, list(NODES[:2]))


def test_a_plan_is_addressed_and_brings_the_last_head_back_also_after_a_resume(tmp_path: Path) -> None:
    plans: list[RoundPlan] = []

    def site(one: Asked) -> list[Answer]:
        plans.append(one.plan)
        return [pack(reply_bytes(one, ledger_head=f"{one.plan.round:064x}"))]

    coordinator = coordinator_of(tmp_path, bundle_of(), nodes=NODES[:1], witness=tmp_path / "witness.json")
    end = coordinator.run(FakeGrid({NODES[0]: site}), State.initial(START))
    assert {plan.site for plan in plans} == {key_fingerprint(KEY.public_key())}
    witness = json.loads((tmp_path / "witness.json").read_text())
    assert witness["heads"] == {key_fingerprint(KEY.public_key()): f"{4:064x}"}
    assert PrivacyTerms.from_json(witness["terms"]) == plans[0].terms
    assert (witness["schema"], witness["run_id"]) == (1, plans[0].run_id)
    assert [plan.ledger_head for plan in plans] == ["", *(f"{n:064x}" for n in (1, 2, 3))]
    assert list(coordinator.checkpoints.latest(end.adapter.spec).heads.values()) == [f"{4:064x}"]


PAIR = {
    NODES[0]: EnrolledSite(name="a", key=KEY.public_key()),
    NODES[1]: EnrolledSite(name="b", key=OTHER_KEY.public_key()),
}


def heading(head: int, key: Ed25519PrivateKey = KEY) -> Site:
    """An honest site whose ledger has this head."""
    return lambda asked: [pack(reply_bytes(asked, key=key, ledger_head=f"{head:064x}"))]


def test_a_head_that_only_the_witness_knows_comes_back_in_the_next_plan_after_a_resume(tmp_path: Path) -> None:
    bundle = bundle_of(stages=ONE_ROUND, rounds={"minimum": 2, "retries": 0, "deadline_s": 10.0})
    witness = tmp_path / "witness.json"
    broken = coordinator_of(tmp_path, bundle, nodes=(), sites=PAIR, witness=witness)
    with pytest.raises(RoundAbandoned):  # the update of a has left the site, and no checkpoint was written
        broken.run(FakeGrid({NODES[0]: heading(7), NODES[1]: silent}), State.initial(START))
    grid = FakeGrid({NODES[0]: heading(8), NODES[1]: heading(9, OTHER_KEY)})
    resumed = coordinator_of(tmp_path, bundle, nodes=(), sites=PAIR, witness=witness, heads={"a": f"{3:064x}"})
    resumed.run(grid, State.initial(START))
    assert {node: plan.ledger_head for node, plan, _ in grid.plans} == {NODES[0]: f"{7:064x}", NODES[1]: ""}


def test_a_witness_never_drops_a_site_also_where_it_was_revoked(tmp_path: Path) -> None:
    bundle, witness = bundle_of(stages=ONE_ROUND), tmp_path / "witness.json"
    both = FakeGrid({NODES[0]: heading(7), NODES[1]: heading(8, OTHER_KEY)})
    coordinator_of(tmp_path, bundle, nodes=(), sites=PAIR, witness=witness).run(both, State.initial(START))
    sites = dict(PAIR)
    later = coordinator_of(tmp_path, bundle, nodes=(), sites=sites, witness=witness)
    del sites[NODES[1]]  # revoked
    later.run(FakeGrid({NODES[0]: heading(9)}), State.initial(START))
    a, b = (key_fingerprint(site.key) for site in PAIR.values())
    assert json.loads(witness.read_text())["heads"] == {a: f"{9:064x}", b: f"{8:064x}"}


def test_a_site_that_is_revoked_while_the_run_goes_on_stays_in_the_witness(tmp_path: Path) -> None:
    sites, witness = dict(PAIR), tmp_path / "witness.json"

    def last_words(asked: Asked) -> list[Answer]:
        if asked.plan.round == 2:
            del sites[NODES[1]]
        return heading(7)(asked)

    grid = FakeGrid({NODES[0]: last_words, NODES[1]: heading(8, OTHER_KEY)})
    coordinator_of(tmp_path, bundle_of(), nodes=(), sites=sites, witness=witness).run(grid, State.initial(START))
    assert set(json.loads(witness.read_text())["heads"]) == {key_fingerprint(site.key) for site in PAIR.values()}


def test_a_key_that_comes_back_under_another_name_while_the_run_goes_on_gets_its_head(tmp_path: Path) -> None:
    bundle, witness = bundle_of(stages=[ONE_ROUND[0] | {"rounds": 2}]), tmp_path / "witness.json"
    both = FakeGrid({NODES[0]: heading(7), NODES[1]: heading(8, OTHER_KEY)})
    first = coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=(), sites=PAIR, witness=witness)
    first.run(both, State.initial(START))
    sites = {NODES[0]: PAIR[NODES[0]]}

    def enrols(asked: Asked) -> list[Answer]:
        sites[NODES[1]] = EnrolledSite(name="b-again", key=OTHER_KEY.public_key())
        return heading(9)(asked)

    grid = FakeGrid({NODES[0]: enrols, NODES[1]: heading(10, OTHER_KEY)})
    coordinator_of(tmp_path, bundle, nodes=(), sites=sites, witness=witness).run(grid, State.initial(START))
    assert [plan.ledger_head for node, plan, _ in grid.plans if node == NODES[1]] == [f"{8:064x}"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1, "run_id": "ab", "heads": {}, "terms": {}}'])
def test_a_witness_that_cannot_be_believed_ends_the_run_before_a_plan_and_stays(tmp_path: Path, content: str) -> None:
    witness, grid = tmp_path / "witness.json", grid_of()
    witness.write_text(content)
    with pytest.raises(OutputError, match=r"witness\.json is no witness of this run") as caught:
        coordinator_of(tmp_path, bundle_of(), nodes=NODES, witness=witness).run(grid, State.initial(START))
    assert "move it aside" in caught.value.hint
    assert (witness.read_text(), grid.plans) == (content, [])


def test_a_second_answer_to_one_message_does_not_count(tmp_path: Path) -> None:
    def twice(asked: Asked) -> list[Answer]:
        return [pack(reply_bytes(asked, value=1.0)), pack(reply_bytes(asked, value=9.0))]

    end = coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(grid_of(twice), State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (3, {"duplicate": 1})
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 1.0)


def test_a_message_has_one_answer_also_when_the_first_was_worthless(tmp_path: Path) -> None:
    def second_thoughts(asked: Asked) -> list[Answer]:
        return [pack(b"garbage"), pack(reply_bytes(asked))]

    coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(
        grid_of(second_thoughts), State.initial(START)
    )
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (2, {"malformed": 1, "duplicate": 1})


def test_one_site_at_two_nodes_counts_once(tmp_path: Path) -> None:
    sites = {node: EnrolledSite(name="same", key=KEY.public_key()) for node in NODES[:2]}
    coordinator = coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=(), sites=sites)
    coordinator.run(FakeGrid(dict.fromkeys(NODES[:2], honest())), State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (1, {"duplicate": 1})


def test_a_site_cannot_answer_for_another(tmp_path: Path) -> None:
    sites = {
        1000: EnrolledSite(name="a", key=KEY.public_key()),
        1001: EnrolledSite(name="b", key=OTHER_KEY.public_key()),
    }
    coordinator = coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=(), sites=sites)
    coordinator.run(FakeGrid({1000: honest(KEY), 1001: honest(KEY)}), State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (1, {"bad_signature": 1})


class SlowGrid(FakeGrid):
    """Each pull takes a while."""

    def __init__(self, sites: dict[int, Site], clock: Clock) -> None:
        super().__init__(sites)
        self.clock = clock

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.clock.now += 4.0
        return replies


def test_an_answer_that_arrives_after_the_deadline_is_late(tmp_path: Path) -> None:
    clock = Clock()
    grid = SlowGrid(dict.fromkeys(NODES, honest()), clock)
    bundle = bundle_of(stages=ONE_ROUND, rounds={"deadline_s": 7.0})
    coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock).run(grid, State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (1, {"late": 1, "no_answer": 1})


class LossyGrid(FakeGrid):
    """The SuperLink takes none, or not all, of the messages."""

    def __init__(self, sites: dict[int, Site], change: Callable[[list[Any]], list[Any]]) -> None:
        super().__init__(sites)
        self.change = change

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return self.change(super().push_messages(messages))


def test_messages_that_could_not_be_sent_are_no_answer(tmp_path: Path) -> None:
    grid = LossyGrid(dict.fromkeys(NODES, honest()), lambda sent: [None] if sent == ["message-1"] else sent)
    coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(grid, State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["cohort"], row["replied"], row["dropped"]) == (3, 2, {"no_answer": 1})
    with pytest.raises(RoundAbandoned):
        coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(
            LossyGrid(dict.fromkeys(NODES, honest()), lambda _: []), State.initial(START)
        )
    assert lines(tmp_path)[-1]["dropped"] == {"no_answer": 3}


def test_answers_to_other_messages_are_ignored(tmp_path: Path) -> None:
    class Mixed(FakeGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            strangers = super().pull_messages(super().push_messages([self.old]))
            return [*strangers, *replies]

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            messages = list(messages)
            self.old = Message(messages[0].content, 1000, "train", group_id="0")
            return super().push_messages(messages)

    grid = Mixed({1000: honest()})
    coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES).run(grid, State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (1, {})


# ---- who is asked


def cohorts(folder: Path, *, seed: int, nodes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The nodes asked in each round of a run that asks three."""
    folder.mkdir()
    grid = FakeGrid(dict.fromkeys(nodes, honest()))
    stages = [{"name": "head", "train": ["head"], "rounds": 12}]
    bundle = bundle_of(seed=seed, stages=stages, rounds={"cohort": 3})
    coordinator_of(folder, bundle, nodes=nodes).run(grid, State.initial(START))
    asked: dict[int, list[int]] = {}
    for node, plan, _ in grid.plans:
        asked.setdefault(plan.round, []).append(node)
    return [tuple(row) for row in asked.values()]


def test_cohorts_are_sampled_without_replacement_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    nodes = tuple(range(1000, 1010))
    first = cohorts(tmp_path / "a", seed=3, nodes=nodes)
    assert first == cohorts(tmp_path / "b", seed=3, nodes=nodes[::-1])
    assert first != cohorts(tmp_path / "c", seed=4, nodes=nodes)
    assert all(len(set(row)) == 3 for row in first)
    assert len(set(first)) > 6
    assert {node for row in first for node in row} == set(nodes)


def test_node_ids_of_64_bits_survive_sampling(tmp_path: Path) -> None:
    nodes = (5, 2**53 + 1, 2**63 - 1, 2**63 + 1, 2**64 - 1)
    assert {node for row in cohorts(tmp_path / "a", seed=3, nodes=nodes) for node in row} == set(nodes)


def test_a_retry_may_ask_other_sites(tmp_path: Path) -> None:
    nodes = tuple(range(1000, 1010))
    grid = FakeGrid(dict.fromkeys(nodes, refusing(Code.UNAVAILABLE)))
    bundle = bundle_of(stages=ONE_ROUND, rounds={"cohort": 3, "retries": 5})
    with pytest.raises(RoundAbandoned):
        coordinator_of(tmp_path, bundle, nodes=nodes).run(grid, State.initial(START))
    assert len(grid.plans) == 18
    assert len({node for node, _, _ in grid.plans}) > 3


# ---- over-selection


def test_a_round_closes_as_soon_as_its_goal_is_reached(tmp_path: Path) -> None:
    clock, notes = Clock(), Notes()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"goal": 2, "minimum": 2, "deadline_s": 50.0})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock, observer=notes)
    end = coordinator.run(grid_of(honest(value=1.0), honest(value=2.0), honest(value=99.0)), State.initial(START))
    np.testing.assert_allclose(end.adapter.vector[:6] - START.vector[:6], 1.5, rtol=1e-6)
    (row,) = lines(tmp_path)
    assert (row["cohort"], row["replied"], row["dropped"], clock.slept) == (3, 2, {"not_needed": 1}, 0)
    assert ("site-1002", "not_needed") in notes.outcomes


def test_with_a_goal_nobody_waits_for_silence(tmp_path: Path) -> None:
    clock = Clock()
    bundle = bundle_of(rounds={"goal": 2, "minimum": 1, "deadline_s": 50.0})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock)
    assert coordinator.run(grid_of(silent), State.initial(START)).finished == 4
    assert clock.slept == 0


def test_a_site_that_was_not_needed_has_not_failed(tmp_path: Path) -> None:
    bundle = bundle_of(rounds={"goal": 2, "minimum": 2, "set_aside_after": 1})
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES)
    assert coordinator.run(grid_of(), State.initial(START)).finished == 4
    assert coordinator.missed == {}
    assert [row["set_aside"] for row in lines(tmp_path)] == [[]] * 4


# ---- sites that keep failing


def many_rounds(rounds: int) -> list[dict[str, Any]]:
    return [{"name": "head", "train": ["head"], "rounds": rounds}]


@pytest.mark.parametrize("failing", [silent, refusing(Code.UNAVAILABLE), lambda _: [pack(b"garbage")]])
def test_a_site_that_keeps_failing_is_set_aside_reported_and_asked_every_tenth_time(
    failing: Site, tmp_path: Path
) -> None:
    notes = Notes()
    bundle = bundle_of(stages=many_rounds(24), rounds={"deadline_s": 1.0, "set_aside_after": 3})
    grid = grid_of(failing)
    coordinator_of(tmp_path, bundle, nodes=NODES, observer=notes).run(grid, State.initial(START))
    assert [plan.round for node, plan, _ in grid.plans if node == NODES[0]] == [1, 2, 3, 13, 23]
    rows = lines(tmp_path)
    assert [row["cohort"] for row in rows] == [3 if n in (1, 2, 3, 13, 23) else 2 for n in range(1, 25)]
    assert [row["set_aside"] for row in rows] == [[]] * 2 + [["site-1000"]] * 22
    assert notes.records[-1].set_aside == ("site-1000",)
    assert [note for note in notes.notes if "set aside" in note] == [
        "site-1000 is set aside: 3 attempts in a row without an update from it"
    ]


def test_a_site_that_answers_again_is_one_of_all_again(tmp_path: Path) -> None:
    def away_for_long(asked: Asked) -> list[Answer]:
        return [] if asked.before < 3 else honest()(asked)

    bundle = bundle_of(stages=many_rounds(16), rounds={"deadline_s": 1.0, "set_aside_after": 3})
    grid = grid_of(away_for_long)
    coordinator_of(tmp_path, bundle, nodes=NODES).run(grid, State.initial(START))
    assert [plan.round for node, plan, _ in grid.plans if node == NODES[0]] == [1, 2, 3, 13, 14, 15, 16]
    assert lines(tmp_path)[-1]["set_aside"] == []


def test_a_resumed_run_asks_whom_the_stopped_one_would_have_asked(tmp_path: Path) -> None:
    def run(folder: str, stops_at: int) -> list[tuple[int, int]]:
        (tmp_path / folder).mkdir()
        bundle = bundle_of(stages=many_rounds(16), rounds={"deadline_s": 1.0, "set_aside_after": 3})
        coordinator = coordinator_of(tmp_path / folder, bundle, nodes=NODES)
        grid = grid_of(silent)
        coordinator.stopping = lambda: any(plan.round > stops_at for _, plan, _ in grid.plans)
        with contextlib.suppress(RunStopped):
            coordinator.run(grid, State.initial(START))
            return [(node, plan.round) for node, plan, _ in grid.plans]
        found = coordinator.checkpoints.latest(SPEC)
        assert found.state.finished == stops_at
        asked = [(node, plan.round) for node, plan, _ in grid.plans if plan.round <= stops_at]
        again = coordinator_of(tmp_path / folder, bundle, nodes=NODES, missed=dict(found.missed))
        later = grid_of(silent)
        again.run(later, found.state)
        return asked + [(node, plan.round) for node, plan, _ in later.plans]

    assert run("whole", 99) == run("twice", 7)


def test_a_site_that_was_set_aside_and_comes_back_after_it_was_away_is_asked_at_once(tmp_path: Path) -> None:
    bundle = bundle_of(stages=many_rounds(8), rounds={"deadline_s": 1.0, "set_aside_after": 2})
    grid = grid_of(silent)
    connected = grid.get_node_ids

    def away_in_the_fourth_round() -> Any:
        asked = max((plan.round for _, plan, _ in grid.plans), default=0)
        return [node for node in connected() if asked != 3 or node != NODES[0]]

    grid.get_node_ids = away_in_the_fourth_round  # type: ignore[method-assign]
    coordinator_of(tmp_path, bundle, nodes=NODES).run(grid, State.initial(START))
    assert [plan.round for node, plan, _ in grid.plans if node == NODES[0]] == [1, 2, 5]


def test_never_so_many_are_set_aside_that_the_minimum_cannot_be_asked(tmp_path: Path) -> None:
    def comes_back(asked: Asked) -> list[Answer]:
        return [] if asked.before < 4 else honest()(asked)

    bundle = bundle_of(stages=ONE_ROUND, rounds={"minimum": 2, "deadline_s": 1.0, "set_aside_after": 1, "retries": 4})
    end = coordinator_of(tmp_path, bundle, nodes=NODES[:2]).run(
        FakeGrid({1000: comes_back, 1001: honest()}), State.initial(START)
    )
    assert end.finished == 1
    assert [row["cohort"] for row in lines(tmp_path)] == [2] * 5


# ---- waiting, stopping, a SuperLink that is away


class LateGrid(FakeGrid):
    """Sites connect one by one, a site every ten seconds."""

    def __init__(self, sites: dict[int, Site], clock: Clock) -> None:
        super().__init__(sites)
        self.clock = clock

    def get_node_ids(self) -> list[int]:
        return super().get_node_ids()[: int((self.clock.now - 1000.0) // 10)]


def test_an_attempt_waits_until_enough_sites_are_connected(tmp_path: Path) -> None:
    clock, notes = Clock(), Notes()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"minimum": 2, "deadline_s": 50.0})
    grid = LateGrid(dict.fromkeys(NODES, honest()), clock)
    coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock, observer=notes).run(grid, State.initial(START))
    assert 1020.0 <= clock.now <= 1021.0
    (row,) = lines(tmp_path)
    assert (row["attempt"], row["cohort"], row["replied"]) == (1, 2, 2)
    assert {plan.expires_at for _, plan, _ in grid.plans} == {clock.now + 50.0}
    assert notes.notes == [f"waiting: {n} of at least 2 sites are connected" for n in (0, 1)]


def test_too_few_sites_are_not_asked_and_waited_for_no_longer_than_the_deadline(tmp_path: Path) -> None:
    clock = Clock()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"minimum": 3, "deadline_s": 20.0, "retries": 1})
    grid = FakeGrid(dict.fromkeys(NODES[:2], honest()))
    with pytest.raises(RoundAbandoned):
        coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock).run(grid, State.initial(START))
    assert (clock.now, grid.plans) == (1040.0, [])
    assert [(row["cohort"], row["abandoned"]) for row in lines(tmp_path)] == [(0, True)] * 2


def test_a_message_lives_no_longer_than_its_plan(tmp_path: Path) -> None:
    lives: list[float] = []

    class Noting(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            lives.extend(message.metadata.ttl for message in messages)
            clock.now += 4.0
            return super().push_messages(messages)

    clock = Clock()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"deadline_s": 30.0})
    coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock).run(
        Noting(dict.fromkeys(NODES, honest())), State.initial(START)
    )
    assert lives == [30.0, 26.0, 22.0]


class Away(FakeGrid):
    """A SuperLink that fails at one call for a while, as Flower's client shows it."""

    def __init__(self, sites: dict[int, Site], call: str, error: BaseException, times: int) -> None:
        super().__init__(sites)
        self.call, self.error, self.times = call, error, times

    def _fail(self, call: str) -> None:
        if call == self.call and self.times:
            self.times -= 1
            raise self.error

    def get_node_ids(self) -> list[int]:
        self._fail("nodes")
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._fail("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._fail("pull")
        return super().pull_messages(message_ids)


REQUEST = httpx.Request("POST", "http://superlink")
ERRORS: dict[str, Exception] = {
    "a status": httpx.HTTPStatusError("500", request=REQUEST, response=httpx.Response(500, request=REQUEST)),
    "no connection": httpx.ConnectError("Jane Roe"),
    "a reset": ConnectionResetError("Jane Roe"),
    "a time-out": TimeoutError(),
    "a broken response": ValueError("Invalid protobuf response payload"),
    "Flower's own": RuntimeError("Jane Roe"),
}


@pytest.mark.parametrize("call", ["nodes", "push", "pull"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_superlink_that_is_away_for_a_moment_does_not_end_the_run(call: str, error: str, tmp_path: Path) -> None:
    notes = Notes()
    grid = Away(dict.fromkeys(NODES, honest()), call, ERRORS[error], times=5)
    coordinator = coordinator_of(tmp_path, bundle_of(rounds={"minimum": 3}), nodes=NODES, observer=notes)
    assert coordinator.run(grid, State.initial(START)).finished == 4
    assert [(row["attempt"], row["replied"], row["dropped"]) for row in lines(tmp_path)] == [(1, 3, {})] * 4
    (note,) = notes.notes
    assert type(ERRORS[error]).__name__ in note
    assert "Jane" not in note


@pytest.mark.parametrize("call", ["nodes", "push", "pull"])
def test_a_superlink_that_stays_away_is_waited_for_until_the_deadline(call: str, tmp_path: Path) -> None:
    clock = Clock()
    bundle = bundle_of(stages=ONE_ROUND, rounds={"deadline_s": 60.0, "retries": 0, "set_aside_after": 1})
    grid = Away(dict.fromkeys(NODES, honest()), call, httpx.ConnectError("away"), times=10**9)
    coordinator = coordinator_of(tmp_path, bundle, nodes=NODES, clock=clock)
    with pytest.raises(RoundAbandoned):
        coordinator.run(grid, State.initial(START))
    assert clock.now == 1060.0
    if call == "push":  # who was not asked has not failed
        assert coordinator.missed == {}


@pytest.mark.parametrize("call", ["nodes", "push", "pull"])
def test_an_interrupt_passes_through(call: str, tmp_path: Path) -> None:
    grid = Away(dict.fromkeys(NODES, honest()), call, KeyboardInterrupt(), times=1)
    with pytest.raises(KeyboardInterrupt):
        coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid, State.initial(START))


def test_one_sites_answer_that_flower_cannot_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    class Choking(FakeGrid):
        first: str | None = None

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            (identifier,) = message_ids
            if self.first in (None, identifier):
                self.first = identifier
                raise TypeError("Jane Roe")
            return super().pull_messages([identifier])

    bundle = bundle_of(stages=ONE_ROUND, rounds={"deadline_s": 5.0})
    coordinator_of(tmp_path, bundle, nodes=NODES).run(Choking(dict.fromkeys(NODES, honest())), State.initial(START))
    (row,) = lines(tmp_path)
    assert (row["replied"], row["dropped"]) == (2, {"no_answer": 1})


@pytest.mark.parametrize("when", ["before the first round", "while waiting for sites", "while collecting", "later"])
def test_a_stop_leaves_the_last_checkpoint(when: str, tmp_path: Path) -> None:
    clock = Clock()
    grid = grid_of(*[silent] * (3 if when == "while collecting" else 0))
    if when == "while waiting for sites":
        grid = FakeGrid({})
    stopping: dict[str, Callable[[], bool]] = {
        "before the first round": lambda: True,
        "while waiting for sites": lambda: clock.now > 1005.0,
        "while collecting": lambda: clock.now > 1005.0,
        "later": lambda: len(grid.plans) > 6,
    }
    witness = tmp_path / "witness.json"
    coordinator = coordinator_of(
        tmp_path, bundle_of(), nodes=NODES, clock=clock, stopping=stopping[when], witness=witness
    )
    with pytest.raises(RunStopped, match="asked to stop") as caught:
        coordinator.run(grid, State.initial(START))
    assert "checkpoint" in caught.value.hint
    assert clock.now < 1008.0
    if when == "later":
        assert coordinator.checkpoints.latest(SPEC).state.finished == 2
    assert witness.exists() == (when in ("while collecting", "later"))


# ---- memory, and faults on the coordinator's side


def test_the_loop_never_holds_two_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Adapter]] = []
    most, folded = 0, 0
    add = Fold.add

    def counted(self: Fold, update: Update, *, weight: float) -> None:
        nonlocal most, folded
        held.append(weakref.ref(update.delta))
        most = max(most, sum(1 for ref in held if ref() is not None))
        folded += 1
        add(self, update, weight=weight)

    monkeypatch.setattr(Fold, "add", counted)
    nodes = tuple(range(1000, 1020))
    grid = FakeGrid(dict.fromkeys(nodes, honest()))
    coordinator_of(tmp_path, bundle_of(), nodes=nodes).run(grid, State.initial(START))
    assert (folded, most) == (80, 1)


def test_the_loop_never_holds_two_answers(tmp_path: Path) -> None:
    answers: list[weakref.ref[RecordDict]] = []
    nodes = tuple(range(1000, 1010))

    class Lazy(FakeGrid):
        """Makes an answer only when it is pulled."""

        def _answers(self, message: Message) -> list[Message]:
            return [message]

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            queued = super().pull_messages(message_ids)
            assert sum(1 for answer in answers if answer() is not None) == 0
            replies = [reply for message in queued for reply in FakeGrid._answers(self, message)]
            answers.extend(weakref.ref(reply.content) for reply in replies)
            return replies

    end = coordinator_of(tmp_path, bundle_of(), nodes=nodes).run(
        Lazy(dict.fromkeys(nodes, honest())), State.initial(START)
    )
    assert (end.finished, len(answers)) == (4, 40)


class Measured:
    """An evaluator that remembers when it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def evaluate(self, adapter: Adapter, *, round: int) -> dict[str, float]:
        self.seen.append((round, adapter.digest))
        return {"accuracy": 0.5}


def test_a_finished_round_is_evaluated_once_with_its_own_adapter(tmp_path: Path) -> None:
    evaluator = Measured()
    coordinator_of(tmp_path, bundle_of(), nodes=NODES, evaluator=evaluator).run(grid_of(), State.initial(START))
    rows = lines(tmp_path)
    assert evaluator.seen == [(row["round"], row["adapter_digest"]) for row in rows]
    assert [row["evaluation"] for row in rows] == [{"accuracy": 0.5}] * 4


def test_a_full_disk_ends_the_run_with_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FedwardError, match="No space left"):
        coordinator_of(tmp_path, bundle_of(), nodes=NODES).run(grid_of(), State.initial(START))


def test_the_observer_sees_every_round_and_answer(tmp_path: Path) -> None:
    notes = Notes()
    coordinator_of(tmp_path, bundle_of(stages=ONE_ROUND), nodes=NODES, observer=notes).run(
        grid_of(refusing(Code.EXPIRED), silent), State.initial(START)
    )
    assert notes.started == [(1, 1, 3)]
    assert notes.outcomes == [("site-1000", "expired"), ("site-1002", "update"), ("site-1001", "no_answer")]
    assert [record.round for record in notes.records] == [1]
