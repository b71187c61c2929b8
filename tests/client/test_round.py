from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.books.audit import Audit, AuditLine, Kind, NoAudit
from fedward_client.policy import Denied, SitePolicy
from fedward_client.release import Gate
from fedward_client.round import MemoryOutbox, Site
from fedward_client.trainers import FixedTrainer
from fedward_client.training import LocalTrainer
from fedward_common.codec import decode_reply, encode_plan, new_key
from fedward_common.errors import BadSignature, BudgetError, PrivacyError
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.journal import MemoryJournal
from fedward_common.privacy.ledger import Ledger
from fedward_common.privacy.randomness import SecureRandom, SeededRandom
from fedward_common.round import Code, Refusal, Reply, Update
from fedward_simulations.run import Workbench
from fedward_simulations.sites.population import Population, Watcher
from support.federation import KEYS, plan_bytes, plan_of, population_of, site_of, small_bench

OPERATOR = new_key()


class Hospital:
    """One site of a small bench, with everything that came back and every reason that it noted."""

    def __init__(self, folder: Path) -> None:
        self.bench: Workbench = small_bench(folder, sites=1)
        self.notes: list[str] = []
        watcher = Watcher(caching=lambda site, done, total: None, note=self.notes.append)
        self.population: Population = population_of(self.bench, OPERATOR, watcher=watcher)
        self.site: Site = site_of(self.population)

    def read(self, reply: bytes, *, groups: tuple[str, ...] = ("head",)) -> Reply:
        spec = self.bench.prepared.bundle.spec.subset(groups)
        return decode_reply(reply, public_key=self.population.keys["site-1"], spec=spec)

    def code(self, reply: bytes) -> Code:
        answer = self.read(reply)
        assert isinstance(answer, Refusal)
        return answer.code


@pytest.fixture
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(tmp_path_factory.getbasetemp())


def test_a_plan_is_answered_with_a_signed_update(hospital: Hospital) -> None:
    reply = hospital.read(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR)))
    assert isinstance(reply, Update)
    assert reply.plan_id == plan_of(hospital.bench).plan_id
    assert set(reply.delta.spec.groups) == {"head"}
    assert reply.guarantee.waivers == ("seeded_randomness",)
    assert reply.nominal_units == 30
    assert reply.metrics is None


def test_metrics_come_only_when_asked_for(hospital: Hospital) -> None:
    reply = hospital.read(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR, round=2)))
    assert isinstance(reply, Update)
    assert reply.metrics is not None


def test_a_foreign_operator_is_refused_and_nothing_is_parsed(hospital: Hospital) -> None:
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, new_key()))) is Code.BAD_SIGNATURE
    assert hospital.population.ledgers["site-1"].grants() == ()


def test_a_plan_for_another_site_is_no_plan(hospital: Hospital) -> None:
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR, to="site-2"))) is Code.BAD_SIGNATURE
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR, site=""))) is Code.BAD_SIGNATURE
    assert hospital.population.ledgers["site-1"].grants() == ()


@pytest.mark.parametrize("data", [b"", b"FWRD", b"\x00" * 500])
def test_garbage_is_refused_as_spec_mismatch(hospital: Hospital, data: bytes) -> None:
    assert hospital.code(hospital.site.answer(data)) is Code.SPEC_MISMATCH


def test_an_expired_plan_is_refused(hospital: Hospital) -> None:
    late = plan_bytes(hospital.bench, OPERATOR, expires_at=time.time() - 1)
    assert hospital.code(hospital.site.answer(late)) is Code.EXPIRED


def test_terms_beyond_the_policy_are_refused(hospital: Hospital) -> None:
    terms = replace(plan_of(hospital.bench).terms, epsilon=8.01)
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR, terms=terms))) is (
        Code.TERMS_NOT_ALLOWED
    )
    assert "epsilon 8.01 exceeds 8" in hospital.notes[-1]


def test_an_unknown_base_model_is_refused(hospital: Hospital) -> None:
    bundle = hospital.bench.prepared.bundle
    spec = replace(bundle.spec, base_fingerprint="f" * 64)
    adapter = replace(bundle.initial, spec=spec)
    plan = plan_of(hospital.bench, spec_digest=spec.digest, adapter_digest=adapter.digest)
    assert hospital.code(hospital.site.answer(encode_plan(plan, adapter, key=OPERATOR))) is Code.UNKNOWN_MODEL


def test_an_adapter_of_huge_magnitude_is_refused(hospital: Hospital) -> None:
    bundle = hospital.bench.prepared.bundle
    adapter = replace(bundle.initial, vector=bundle.initial.vector + 1e6)
    plan = plan_of(hospital.bench, adapter_digest=adapter.digest)
    assert hospital.code(hospital.site.answer(encode_plan(plan, adapter, key=OPERATOR))) is Code.SPEC_MISMATCH


def test_a_served_plan_is_answered_with_the_same_bytes_and_no_second_event(hospital: Hospital) -> None:
    first = hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))
    spent = hospital.population.ledgers["site-1"].export()
    again = plan_bytes(hospital.bench, OPERATOR, expires_at=time.time() + 7200)  # a retry under a new deadline
    assert hospital.site.answer(again) == first
    assert hospital.population.ledgers["site-1"].export() == spent


def test_the_whole_run_is_reserved_before_data_is_opened(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = hospital.population.ledgers["site-1"]
    run_id = hospital.bench.prepared.bundle.run_id
    seen: list[tuple[object, ...]] = []

    def look(*args: object, **kwargs: object) -> None:
        seen.append((ledger.granted(run_id), ledger.events(run_id)))
        raise RuntimeError("patient John Doe")

    monkeypatch.setattr(LocalTrainer, "train", look)
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.UNAVAILABLE
    granted, started = seen[0]
    assert sum(event.count for event in granted) == 5  # type: ignore[attr-defined]  # 4 steps and 1 evaluation
    assert sum(event.count for event in started) == 1  # type: ignore[attr-defined]


def test_a_trainer_that_fails_is_unavailable_and_nothing_is_refunded(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("patient John Doe")

    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "train", fail)
        assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.UNAVAILABLE
    assert "John" not in hospital.notes[-1]
    assert "RuntimeError" in hospital.notes[-1]
    ledger, run_id = hospital.population.ledgers["site-1"], hospital.bench.prepared.bundle.run_id
    assert sum(event.count for event in ledger.events(run_id)) == 1
    # the same plan again would be a second look at data for the price of one
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.UNAVAILABLE


def test_other_terms_under_the_same_run_are_unavailable(hospital: Hospital) -> None:
    hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))
    terms = replace(plan_of(hospital.bench).terms, epsilon=4.0)
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR, round=2, terms=terms))) is (
        Code.UNAVAILABLE
    )


def test_a_second_run_does_not_fit_the_budget(hospital: Hospital) -> None:
    hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))
    second = plan_bytes(hospital.bench, OPERATOR, run_id="a" * 64)
    assert hospital.code(hospital.site.answer(second)) is Code.UNAVAILABLE


def test_too_few_units_and_too_large_a_delta_are_unavailable(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    site = hospital.site
    site._policy = replace(site._policy, minimum_units=31)
    assert hospital.code(site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.UNAVAILABLE
    assert "minimum_units" in hospital.notes[-1]
    site._policy = replace(site._policy, minimum_units=5, max_delta=0.04)  # not below 1 / 30
    data = plan_bytes(hospital.bench, OPERATOR, run_id="b" * 64)
    assert hospital.code(site.answer(data)) is Code.UNAVAILABLE
    assert "run_delta" in hospital.notes[-1]
    assert hospital.population.ledgers["site-1"].grants() == ()


def test_a_reason_that_is_too_long_is_cut_and_still_written(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(MemoryJournal())
    monkeypatch.setattr(hospital.site, "_audit", audit)
    denied = Denied(code=Code.TERMS_NOT_ALLOWED, reason="why " * 1000)
    monkeypatch.setattr(SitePolicy, "admit", lambda *arguments, **about: denied)
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.TERMS_NOT_ALLOWED
    (written,) = audit.lines()
    assert (written.line.kind, written.line.code) == (Kind.REFUSAL, Code.TERMS_NOT_ALLOWED.value)
    assert written.line.reason == denied.reason[:1000]


class DeadTrail:
    """An audit trail whose disk refused a write."""

    def write(self, line: AuditLine) -> None:
        self.check_usable()

    def check_usable(self) -> None:
        raise BudgetError("the audit is closed, or the disk refused a write of it", hint="mend the disk")


def test_where_nothing_can_be_written_down_nothing_is_spent(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hospital.population.ledgers["site-1"].export()
    monkeypatch.setattr(hospital.site, "_audit", DeadTrail())
    assert hospital.code(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))) is Code.UNAVAILABLE
    assert hospital.population.ledgers["site-1"].export() == before
    monkeypatch.undo()
    assert isinstance(hospital.read(hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))), Update)


def a_site(bench: Workbench, randomness: SecureRandom | SeededRandom, *, waivers: frozenset[str]) -> Site:
    data = bench.data["site-1"]
    policy = SitePolicy(
        unit=Unit.RECORD,
        base_fingerprints=frozenset({bench.prepared.base.fingerprint}),
        max_delta=1e-3,
        waivers=waivers,
    )
    key: Ed25519PrivateKey = KEYS["site-1"]
    ledger = Ledger.in_memory(Budget(epsilon=8.0, delta=1e-3))
    return Site(
        policy=policy,
        operator=OPERATOR.public_key(),
        ledger=ledger,
        trainers=FixedTrainer(
            trainer=LocalTrainer(
                model=bench.prepared.model, data=data, inputs=bench.inputs["site-1"], randomness=randomness
            )
        ),
        gate=Gate(key=key, nominal_units=30, max_update_bytes=2**20, ledger=ledger),
        outbox=MemoryOutbox(),
        audit=NoAudit(),
    )


def test_seeded_randomness_needs_a_waiver_by_name(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=1)
    with pytest.raises(PrivacyError, match="seeded randomness"):
        a_site(bench, SeededRandom(seed=0, site="a"), waivers=frozenset())
    a_site(bench, SeededRandom(seed=0, site="a"), waivers=frozenset({"seeded_randomness"}))


def test_a_site_with_secure_randomness_never_answers_alike(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, sites=1)
    replies = [a_site(bench, SecureRandom(), waivers=frozenset()).answer(plan_bytes(bench, OPERATOR)) for _ in range(2)]
    assert len(replies[0]) == len(replies[1])
    assert replies[0] != replies[1]


def test_a_reply_is_signed_by_the_site_alone(hospital: Hospital) -> None:
    reply = hospital.site.answer(plan_bytes(hospital.bench, OPERATOR))
    with pytest.raises(BadSignature):
        decode_reply(
            reply, public_key=OPERATOR.public_key(), spec=hospital.bench.prepared.bundle.spec.subset(("head",))
        )
