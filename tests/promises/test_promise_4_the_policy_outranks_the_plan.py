"""Promise 4, against a hostile coordinator: whatever it signs, the site trains within its policy or says a code.

Ten thousand plans and messages reach a real site with durable books. Everything that a hostile operator, a hostile
courier or a stranger could send is in the mix; what is signed is really signed.
"""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.installation.opening import open_site
from fedward_client.policy import SitePolicy
from fedward_client.round import Site
from fedward_client.training import LocalTrainer
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply, encode_reply, new_key
from fedward_common.config import LocalOptimiser
from fedward_common.errors import FedwardError
from fedward_common.privacy import accounting
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.round import Code, Refusal, RoundPlan, Training, Update
from support.hospital import Hospital
from support.signed import put_together, taken_apart

MESSAGES = 10_000
STRANGER = new_key()
Forge = Callable[[random.Random, Hospital], bytes]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("hostile"))


@contextmanager
def watched(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, list[RoundPlan]]]:
    """The site, and every plan for which data was opened. Its training is real."""
    opened: list[RoundPlan] = []
    with open_site(hospital.root) as site:
        trainers = site._trainers
        open_data = trainers.open

        def seen(plan: RoundPlan, *arguments: Any) -> LocalTrainer:
            opened.append(plan)
            return open_data(plan, *arguments)

        monkeypatch.setattr(trainers, "open", seen)
        yield site, opened


def within(policy: SitePolicy, plan: RoundPlan, hospital: Hospital) -> bool:
    """The policy in other words than its own."""
    terms = plan.terms
    return (
        plan.site == hospital.keys.fingerprint
        and terms.unit is policy.unit
        and terms.epsilon <= policy.max_epsilon
        and terms.delta <= policy.max_delta
        and terms.clip_norm <= policy.max_clip_norm
        and terms.max_records_per_unit <= policy.max_records_per_unit
        and sum(stage.rounds * stage.local_steps for stage in terms.stages) <= policy.max_steps
        and plan.spec_digest == hospital.bundle.spec.digest
        and plan.expires_at > time.time() - 60
    )


# ---- what a hostile coordinator may think of ----------------------------------------------------------------------
def _pick(random: random.Random, *values: Any) -> Any:
    return random.choice(values)


def _terms(random: random.Random, terms: PrivacyTerms) -> PrivacyTerms:
    """Terms with one or more numbers beyond reason; those that no constructor lets through are tried as text below."""
    stage = terms.stages[0]
    changes: dict[str, Callable[[], Any]] = {
        "epsilon": lambda: _pick(random, 8.0001, 9.0, 1e3, 1e300, 1e-9, 5e-324),
        "delta": lambda: _pick(random, 0.0011, 0.5, 0.999999, 1e-300, 5e-324),
        "clip_norm": lambda: _pick(random, 2.0001, 1e9, 1e-9),
        "max_records_per_unit": lambda: _pick(random, 5, 10**6, 2**53),
        "unit": lambda: Unit.RECORD,
        "stages": lambda: tuple(
            replace(stage, name=f"s{n}", rounds=rounds, local_steps=steps, sampling_rate=q, noise_ratio=ratio)
            for n, (rounds, steps, q, ratio) in enumerate(
                _pick(
                    random,
                    [(10**6, 1, 1.0, 1.0)],
                    [(1, 10**6, 0.5, 0.3)],
                    [(2**52, 1, 1e-300, 1e-3)],
                    [(1, 1, 1.0, 1e-3)],
                    [(25, 1, 1.0, 1e3), (25, 1, 0.5, 1e-3)],
                    [(1, 1, 1e-12, 1.0)] * 32,
                    [(51, 1, 1.0, 1.0)],
                )
            )
        ),
        "metrics": lambda: MetricTerms(evaluations=_pick(random, 0, 10**6, 2**52), share=1.0, validation_fraction=0.5),
    }
    names = random.sample(sorted(changes), random.choice((1, 1, 1, 2, 3)))
    return replace(terms, **{name: changes[name]() for name in names})


def _training(groups: tuple[str, ...], rate: float) -> Training:
    return Training(groups=groups, local_steps=1, optimiser=LocalOptimiser.SGD, learning_rate=rate)


def hostile_terms(random: random.Random, hospital: Hospital) -> bytes:
    plan = hospital.plan(run_id=f"{random.getrandbits(256):064x}")
    terms = _terms(random, plan.terms)
    training = replace(plan.training, local_steps=terms.stages[0].local_steps)
    return hospital.plan_bytes(run_id=plan.run_id, terms=terms, training=training, stage=0)


def hostile_fields(random: random.Random, hospital: Hospital) -> bytes:
    changes: dict[str, Any] = _pick(
        random,
        {"expires_at": 0.0},
        {"expires_at": time.time() - 1},
        {"expires_at": -1e300},
        {"site": f"{random.getrandbits(256):064x}"},
        {"site": ""},
        {"site": "../../../etc/passwd"},
        {"ledger_head": f"{random.getrandbits(256):064x}"},
        {"ledger_head": "../../.."},
        {"stage": 1},
        {"round": 2**40},
        {"public_seed": _pick(random, 2**62, 7, 2**63)},
        {"evaluate": True, "round": random.randrange(1, 50)},
        {"training": _training(("adapter", "head"), 1e30)},
        {"training": _training(("nothing",), 1e-300)},
        {"training": _training((), 1.0)},
        {"run_id": f"{random.getrandbits(256):064x}", "round": 10**9},
    )
    return hospital.plan_bytes(**changes)


def hostile_adapter(random: random.Random, hospital: Hospital) -> bytes:
    initial = hospital.bundle.initial
    vector = initial.vector.copy()
    kind = random.randrange(4)
    if kind == 0:
        vector[random.randrange(len(vector))] = _pick(random, 1e30, -3e38, 2e4)
    if kind == 1:
        vector = np.full_like(vector, 1e30)
    spec = initial.spec
    if kind == 2:
        spec = replace(spec, base_fingerprint=f"{random.getrandbits(256):064x}")
    if kind == 3:
        names = {name: f"../../{name}" if random.random() < 0.5 else f"{name}\x00/etc" for name in spec.tensors}
        spec = replace(
            spec,
            groups={group: tuple(sorted(names[name] for name in members)) for group, members in spec.groups.items()},
            tensors={names[name]: shape for name, shape in spec.tensors.items()},
        )
    return hospital.plan_bytes(adapter=Adapter(spec=spec, vector=vector), run_id=f"{random.getrandbits(256):064x}")


def hostile_signature(random: random.Random, hospital: Hospital) -> bytes:
    good = hospital.plan_bytes()
    kind = random.randrange(4)
    if kind == 0:
        return hospital.plan_bytes(key=STRANGER)
    if kind == 1:
        at = random.randrange(len(good))
        return good[:at] + bytes([good[at] ^ (1 << random.randrange(8))]) + good[at + 1 :]
    if kind == 2:
        return good[: random.randrange(len(good))]
    refusal = encode_reply(Refusal(plan_id="0" * 64, code=Code.EXPIRED), key=hospital.operator)
    return random.choice([refusal, good + b"\x00", b"", random.randbytes(random.randrange(2000))])


def hostile_spelling(random: random.Random, hospital: Hospital) -> bytes:
    """Rightly signed bytes that no constructor would make: other types, NaN, huge numbers, unknown keys."""
    kind, header, body = taken_apart(hospital.plan_bytes())
    changes: list[tuple[bytes, bytes]] = [
        (
            b'"epsilon":8.0',
            _pick(random, b'"epsilon":NaN', b'"epsilon":Infinity', b'"epsilon":"8"', b'"epsilon":1e999'),
        ),
        (b'"round":1', _pick(random, b'"round":1.0', b'"round":true', b'"round":-1', b'"round":1' + b"0" * 5000)),
        (b'"noise_ratio":1.0', _pick(random, b'"noise_ratio":0.0', b'"noise_ratio":-1.0', b'"noise_ratio":1e-300')),
        (b'"clip_norm":1.0', _pick(random, b'"clip_norm":1e10', b'"clip_norm":null', b'"clip_norm":[]')),
        (b'"site":"', b'"extra":1,"site":"'),
        (b'"rank":4', _pick(random, b'"rank":-4', b'"rank":1e9', b'"rank":4.0')),
        (b"[3,32]", _pick(random, b"[9223372036854775807,4]", b"[-3,-32]", b"[96]", b"[[3],32]")),
        (b'"method":"core"', _pick(random, b'"method":"__import__"', b'"method":{"core":1}', b'"method":"lora"')),
    ]
    old, new = random.choice(changes)
    assert old in header
    return put_together(kind, header.replace(old, new, 1), body, key=hospital.operator)


def harmless(random: random.Random, hospital: Hospital) -> bytes:
    """What an honest coordinator sends, now and then again."""
    return hospital.plan_bytes(round=random.randrange(1, 6))


FORGERS: list[Forge] = [hostile_terms, hostile_fields, hostile_adapter, hostile_signature, hostile_spelling, harmless]


def forged(random: random.Random, hospital: Hospital) -> bytes | None:
    """One message; None where a constructor of the coordinator's own side refuses to make it."""
    try:
        return random.choice(FORGERS)(random, hospital)
    except FedwardError:
        return None


# ---- what must hold -------------------------------------------------------------------------------------------------
def test_ten_thousand_hostile_messages(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = random.Random(20_160_523)  # noqa: S311  # a fixed seed: the same ten thousand every time
    outside = {
        path: path.stat().st_mtime_ns for path in hospital.root.parent.rglob("*") if hospital.root not in path.parents
    }
    outside.pop(hospital.root)
    seen: Counter[str] = Counter()
    slowest, sent = 0.0, 0
    with watched(hospital, monkeypatch) as (site, opened):
        policy = site._policy
        while sent < MESSAGES:
            message = forged(chosen, hospital)
            if message is None:
                continue
            sent += 1
            began = time.perf_counter()
            reply = site.answer(message)
            slowest = max(slowest, time.perf_counter() - began)
            seen[what(reply, hospital)] += 1
        assert all(within(policy, plan, hospital) for plan in opened)
        assert len({plan.plan_id for plan in opened}) == len(opened)  # no plan has a second look at the data
        ledger = site._ledger
        assert ledger.spent(ledger_scope(), delta=ledger.budget.delta) <= ledger.budget.epsilon * (1 + 1e-9)
        releases = [written.line.plan_id for written in site._audit.lines() if written.line.kind == "release"]  # type: ignore[attr-defined]
        assert set(releases) <= {plan.plan_id for plan in opened}
        assert sum(written.line.kind in ("release", "resend", "refusal") for written in site._audit.lines()) == sent  # type: ignore[attr-defined]
    assert set(seen) == {"update", *(code.value for code in Code)}  # every code was needed, and nothing else came
    assert min(seen.values()) >= 10
    assert slowest < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # kB: no accountant asked for gigabytes
    now = {
        path: path.stat().st_mtime_ns for path in hospital.root.parent.rglob("*") if hospital.root not in path.parents
    }
    now.pop(hospital.root)
    assert now == outside
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out


def ledger_scope() -> Any:
    from fedward_common.privacy.ledger import LIFETIME

    return LIFETIME


def what(reply: bytes, hospital: Hospital) -> str:
    """A reply in one word; it is always signed by the site, and always well formed."""
    for groups in (("head",), ("adapter",)):
        try:
            answer = decode_reply(reply, public_key=hospital.keys.public_key, spec=hospital.bundle.spec.subset(groups))
        except FedwardError:
            continue
        return "update" if isinstance(answer, Update) else answer.code.value
    raise AssertionError("a reply that no coordinator can read")


def test_an_accountant_is_never_asked_beyond_the_caps(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    honest = accounting._pld

    def counted(events: Any, delta: float) -> float:
        asked.append(sum(event.count for event in events))
        return honest(events, delta)

    monkeypatch.setattr(accounting, "_pld", counted)
    terms = hospital.plan().terms
    stages = tuple(
        StageTerms(name=f"s{n}", sampling_rate=0.5, rounds=1, local_steps=25, noise_ratio=0.3) for n in range(2)
    )
    huge = (StageTerms(name="s", sampling_rate=0.5, rounds=10**6, local_steps=1, noise_ratio=0.3),)
    with open_site(hospital.root) as site:
        for wanted in (huge, stages):
            training = replace(hospital.plan().training, local_steps=wanted[0].local_steps)
            site.answer(hospital.plan_bytes(run_id="ab" * 32, terms=replace(terms, stages=wanted), training=training))
    assert max(asked, default=0) <= 51


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 8.0001),
        ("delta", 0.001001),
        ("clip_norm", 2.0001),
        ("max_records_per_unit", 5),
        ("unit", Unit.RECORD),
    ],
)
def test_each_cap_of_the_policy_is_a_code_and_costs_nothing(hospital: Hospital, name: str, value: Any) -> None:
    terms = replace(hospital.plan().terms, **{name: value})
    with open_site(hospital.root) as site:
        before = site._ledger.head
        reply = site.answer(hospital.plan_bytes(run_id="cd" * 32, terms=terms))
        assert hospital.code(reply) is Code.TERMS_NOT_ALLOWED
        assert site._ledger.head == before


def test_a_plan_may_be_stricter_than_the_policy(tmp_path: Path) -> None:
    hospital = Hospital.make(tmp_path)
    terms = replace(hospital.plan().terms, epsilon=1.0, delta=1e-6, clip_norm=0.1)
    with open_site(hospital.root) as site:
        update = hospital.read(site.answer(hospital.plan_bytes(terms=terms)))
        assert isinstance(update, Update)
        assert site._ledger.spent(hospital.bundle.run_id, delta=1e-6) <= 1.0
