from __future__ import annotations

import ast
import hashlib
import json
import os
import runpy
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.books.journal import DurableJournal
from fedward_client.certificates.certificate import PURPOSE, Subject, Trust, make, verify, write
from fedward_client.certificates.commitment import check_commitment, new_nonce, open_commitment
from fedward_client.installation.keys import public_key_text
from fedward_common.canonical import canonical
from fedward_common.codec import key_fingerprint
from fedward_common.errors import BadSignature, BudgetError, FedwardError, MalformedMessage, OutputError, PrivacyError
from fedward_common.privacy.accounting import epsilon
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.ledger import LIFETIME, Ledger
from fedward_common.privacy.spending import MemoryRegister
from support.nouns import KEY, OTHER_KEY

SCRIPT = Path(__file__).parents[3] / "docs" / "verify_certificate.py"
STAGE = StageTerms(name="head", sampling_rate=1.0, rounds=5, local_steps=2, noise_ratio=1.0)
TERMS = PrivacyTerms(
    epsilon=4.0,
    delta=1e-5,
    unit=Unit.PATIENT,
    clip_norm=0.5,
    max_records_per_unit=3,
    stages=(STAGE,),
    metrics=MetricTerms(evaluations=2, share=0.5, validation_fraction=0.1),
)
BUDGET = Budget(epsilon=10.0, delta=1e-4)
SAMPLED = replace(TERMS, stages=(replace(STAGE, sampling_rate=0.25), replace(STAGE, name="adapter", noise_ratio=0.5)))
UNITS = [bytes([number]) * 32 for number in range(5)]
SUBJECT = Subject(run_id="run-1", adapter_digest="ab" * 32, waivers=("b", "a"))
AT = 1.8e9
Json = dict[str, Any]


def ledger_of(*terms: PrivacyTerms, budget: Budget = BUDGET, units: Sequence[str] | None = None) -> Ledger:
    """A ledger with the runs run-1, run-2 and so on."""
    ledger = Ledger.in_memory(budget)
    for number, one in enumerate(terms, start=1):
        ledger.reserve(ledger.quote(one), run_id=f"run-{number}", units=units)
    return ledger


def made(ledger: Ledger, subject: Subject = SUBJECT, *, key: Ed25519PrivateKey = KEY) -> bytes:
    return make(ledger.export(), subject, key=key, units=UNITS, nonce=new_nonce(), at=AT)


def content_of(certificate: bytes) -> Json:
    content: Json = json.loads(certificate)["certificate"]
    return content


def signed(content: Json, *, key: Ed25519PrivateKey = KEY) -> bytes:
    """What a dishonest site could sign: anything, in the right spelling."""
    whole = {"certificate": content, "signature": key.sign(PURPOSE + canonical(content)).hex()}
    return json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"


@pytest.fixture(scope="module")
def certificate() -> bytes:
    return made(ledger_of(TERMS, TERMS))


# ---- what it says ------------------------------------------------------------------
def test_it_says_what_the_run_and_the_life_cost(certificate: bytes) -> None:
    verified = verify(certificate, key=KEY.public_key())
    ledger = ledger_of(TERMS, TERMS)
    assert (verified.run_id, verified.unit, verified.delta) == ("run-1", Unit.PATIENT, 1e-5)
    assert verified.epsilon == pytest.approx(ledger.spent("run-1", delta=1e-5), rel=1e-5)
    assert verified.life_epsilon == pytest.approx(ledger.spent(LIFETIME, delta=1e-4), rel=1e-5)
    assert verified.life_delta == pytest.approx(2e-5)
    assert (verified.sequence, verified.head) == (ledger.sequence, ledger.head)
    assert (verified.site, verified.trust) == (key_fingerprint(KEY.public_key()), Trust.GIVEN)
    assert (verified.waivers, verified.adapter_digest) == (("a", "b"), "ab" * 32)
    assert verified.issued == "2027-01-15T08:00:00+00:00"


def test_it_holds_everything_that_a_privacy_officer_asks_for(certificate: bytes) -> None:
    content = content_of(certificate)
    training, metrics = content["run"]["events"]
    (event, evaluation) = ledger_of(TERMS).granted("run-1")
    assert (training["sampling_rate"], training["noise_multiplier"]) == (1.0, event.noise_multiplier)
    assert (training["clip_norm"], training["steps"], training["stage"], training["side"]) == (
        0.5,
        10,
        "head",
        "training",
    )
    assert training["grid"] <= 2**-20 * 0.5 * event.noise_multiplier < 2 * training["grid"]
    assert (metrics["clip_norm"], metrics["steps"]) == (3**0.5, 2)
    assert metrics["noise_multiplier"] == evaluation.noise_multiplier
    assert [grant["run_id"] for grant in content["life"]["grants"]] == ["run-1", "run-2"]
    assert content["accounting"] == {
        "accountant": "dp_accounting.pld.PLDAccountant",
        "neighbours": "data sets that differ by one unit: one has it, the other does not",
        "version": "0.6.0",
    }
    assert content["life"]["budget"] == BUDGET.to_json()
    assert content["life"]["rule"].startswith("the sum of the grants' (epsilon, delta)")
    assert set(content["code"]) == {"fedward", "sources"}
    assert set(content["noise"]) == {"deviation", "grid", "rounding"}


def test_the_file_itself_says_what_a_stranger_can_verify_and_what_not(certificate: bytes) -> None:
    verified, reading = verify(certificate), content_of(certificate)["reading"]
    assert list(verified.shown) == reading["a stranger can verify"]
    assert list(verified.not_shown) == reading["a stranger cannot verify"]
    shown, not_shown = " ".join(verified.shown), " ".join(verified.not_shown)
    for word in ("who signed", "the chain", "the arithmetic"):
        assert word in shown
    for word in ("that this code ran", "that the data is what the site says", "that no other ledger exists"):
        assert word in not_shown


def test_an_epsilon_is_rounded_up_and_exact_to_four_digits() -> None:
    for target in (0.013, 0.7, 3.99999, 12.3456789):
        ledger = ledger_of(replace(TERMS, epsilon=target), budget=replace(BUDGET, epsilon=99.0))
        exact = epsilon(ledger.granted("run-1"), delta=1e-5)
        assert exact <= verify(made(ledger)).epsilon <= exact * (1 + 1e-5)


def test_it_shows_nothing_of_how_rounds_ended() -> None:
    quiet, noisy = ledger_of(TERMS), ledger_of(TERMS)
    (grant,) = noisy.grants()
    noisy.start(grant, "plan-1", events=(replace(grant.quote.events[0], count=2),))
    noisy.settle("plan-1", Outcome.FAILED)
    noisy.clear("run-1")
    one, other = content_of(made(quiet)), content_of(made(noisy))
    assert other["ledger"].pop("sequence") > one["ledger"].pop("sequence")
    assert other["ledger"].pop("head") != one["ledger"].pop("head")
    one["data"].pop("commitment"), other["data"].pop("commitment")
    assert one == other


def test_it_shows_nothing_of_which_units_bore_which_grants() -> None:
    apart, together = (Ledger.in_memory(BUDGET) for _ in range(2))
    for ledger, second in ((apart, ["c", "d", "e"]), (together, ["a", "b"])):
        ledger.reserve(ledger.quote(TERMS), run_id="run-1", units=["a", "b"])
        ledger.reserve(ledger.quote(TERMS), run_id="run-2", units=second)
    one, other = (verify(made(ledger)) for ledger in (apart, together))
    assert (one.epsilon, one.life_epsilon, one.life_delta) == (other.epsilon, other.life_epsilon, other.life_delta)
    assert len(one.commitment) == len(other.commitment) == 64


# ---- the bound for the data's life -----------------------------------------------------
def test_grants_beyond_the_budget_that_different_units_bore_cost_each_no_more_than_the_budget() -> None:
    ledger = Ledger.in_memory(BUDGET)
    for number in (1, 2, 3):
        ledger.reserve(ledger.quote(TERMS), run_id=f"run-{number}", units=["always", f"only-{number}"])
    verified = verify(made(ledger))
    assert (verified.life_epsilon, verified.life_delta) == (10.0, 1e-4)
    assert 3 * verified.epsilon > 11.0


def test_what_a_witness_added_counts_also_beyond_the_budget() -> None:
    ledger = ledger_of(TERMS, TERMS)
    ledger.reconcile([("run-0", TERMS), ("run-00", TERMS)], ["cd" * 32])
    verified = verify(made(ledger))
    assert verified.life_epsilon == pytest.approx(4 * verified.epsilon, rel=1e-5)
    assert verified.life_epsilon > BUDGET.epsilon
    assert verify(made(ledger, Subject(run_id="run-0"))).epsilon == verified.epsilon


def test_a_renyi_budget_is_composed_by_its_own_rule() -> None:
    budget = Budget(epsilon=12.0, delta=1e-5, renyi_order=8)
    ledger = ledger_of(TERMS, TERMS, budget=budget)
    verified = verify(made(ledger))
    assert verified.life_epsilon == pytest.approx(ledger.spent(LIFETIME, delta=1e-5), rel=1e-5)
    assert verified.life_delta == 1e-5
    assert "2008.11193" in content_of(made(ledger))["life"]["rule"]


def test_a_source_that_bears_more_than_the_budget_is_refused() -> None:
    content = content_of(made(ledger_of(TERMS, TERMS)))
    poor = ledger_of(TERMS, budget=replace(BUDGET, epsilon=5.0)).export()
    rich = ledger_of(TERMS, TERMS).export()
    rows = relinked([poor[0]["body"], *(row["body"] for row in rich[1:])])
    with pytest.raises(BudgetError, match="exceed its budget"):
        make(rows, SUBJECT, key=KEY, units=UNITS, nonce=new_nonce(), at=AT)
    content["ledger"] |= {"entries": rows, "head": rows[-1]["digest"], "sequence": len(rows)}
    with pytest.raises(PrivacyError, match="exceed its budget"):
        verify(signed(content))


def relinked(bodies: Sequence[Json]) -> list[Json]:
    from fedward_common.privacy.journal import MemoryJournal

    journal = MemoryJournal()
    for body in bodies:
        journal.append(body)
    return journal.export()


# ---- units -------------------------------------------------------------------------
def test_a_run_that_units_bear_needs_a_commitment_to_them() -> None:
    ledger = ledger_of(TERMS, units=["a", "b"])
    with pytest.raises(PrivacyError, match="none are named"):
        make(ledger.export(), SUBJECT, key=KEY, units=None, nonce=new_nonce(), at=AT)
    content = content_of(made(ledger))
    content["data"]["commitment"] = ""
    with pytest.raises(PrivacyError, match="none are named"):
        verify(signed(content))


def test_a_run_that_the_source_bears_may_commit_to_nothing() -> None:
    data = make(ledger_of(TERMS).export(), SUBJECT, key=KEY, units=None, nonce=new_nonce(), at=AT)
    assert verify(data).commitment == ""


def test_an_auditor_can_have_the_commitment_opened(tmp_path: Path) -> None:
    nonce, vault = new_nonce(), tmp_path / "vault"
    data = make(ledger_of(TERMS).export(), SUBJECT, key=KEY, units=UNITS, nonce=nonce, at=AT)
    write(tmp_path / "certificate.json", data, nonce=nonce, vault=vault)
    commitment = verify((tmp_path / "certificate.json").read_bytes()).commitment
    assert check_commitment(commitment, open_commitment(commitment, UNITS, vault=vault)) == tuple(UNITS)
    assert nonce.hex() not in data.decode()
    assert all(unit.hex() not in data.decode() for unit in UNITS)


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path, certificate: bytes) -> None:
    path, vault = tmp_path / "certificate.json", tmp_path / "vault"
    write(path, certificate, nonce=new_nonce(), vault=vault)
    (kept,) = vault.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="never overwritten"):
        write(path, made(ledger_of(TERMS)), nonce=new_nonce(), vault=vault)
    assert path.read_bytes() == certificate


# ---- ledgers -----------------------------------------------------------------------
def test_the_rows_of_a_ledger_on_disk_will_do(tmp_path: Path) -> None:
    with DurableJournal.create(tmp_path / "ledger.jsonl", name="ledger", key=KEY) as journal:
        ledger = Ledger.create(journal, MemoryRegister(), budget=BUDGET)
        ledger.reserve(ledger.quote(TERMS), run_id="run-1")
        head = ledger.head
    rows = DurableJournal.read(tmp_path / "ledger.jsonl", name="ledger", public_keys=(KEY.public_key(),))
    verified = verify(make(rows, SUBJECT, key=KEY, units=None, nonce=new_nonce(), at=AT))
    assert (verified.head, verified.sequence) == (head, 2)


def test_there_is_no_certificate_of_a_run_without_a_grant_nor_of_a_broken_ledger() -> None:
    ledger = ledger_of(TERMS)
    with pytest.raises(BudgetError, match="no grant for this run"):
        made(ledger, Subject(run_id="run-2"))
    rows = ledger.export()
    rows[1]["at"] = 1.0
    for broken in ([], rows[1:], rows):
        with pytest.raises(BudgetError):
            make(broken, SUBJECT, key=KEY, units=UNITS, nonce=new_nonce(), at=AT)


# ---- whoever changes it --------------------------------------------------------------
def test_any_changed_byte_is_refused(certificate: bytes) -> None:
    assert verify(certificate)
    tail = len(certificate) - 300  # the signature and the last fields; before them every fifth byte
    for place in (*range(0, tail, 5), *range(tail, len(certificate))):
        changed = bytearray(certificate)
        changed[place] ^= 1 + place % 127
        with pytest.raises(FedwardError):
            verify(bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: b" " + data,
        lambda data: data.replace(b'"signature": "', b'"signature": "0', 1),
        lambda data: data.replace(b'"kind"', b'"kind": 1,\n  "kind"', 1),
        lambda data: json.dumps(json.loads(data)).encode(),
        lambda data: (
            data.rpartition(b'"signature"')[0] + data.rpartition(b'"signature"')[2].upper().join([b'"signature"', b""])
        ),
        lambda data: b"",
        lambda data: b"\xff",
        lambda data: b"null\n",
        lambda data: b"[" * 100_000,
        lambda data: b'{\n "certificate": NaN,\n "signature": ""\n}\n',
    ],
)
def test_there_is_one_spelling(certificate: bytes, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(MalformedMessage):
        verify(change(certificate))


def test_it_is_signed_by_the_key_that_was_given_or_else_by_the_one_in_the_file(certificate: bytes) -> None:
    assert verify(certificate).trust is Trust.EMBEDDED
    with pytest.raises(BadSignature):
        verify(certificate, key=OTHER_KEY.public_key())
    forged = content_of(certificate)
    with pytest.raises(BadSignature):
        verify(signed(forged, key=OTHER_KEY))
    with pytest.raises(BadSignature, match="names another key"):
        verify(signed(forged, key=OTHER_KEY), key=OTHER_KEY.public_key())
    forged["public_key"] = public_key_text(OTHER_KEY.public_key())
    assert verify(signed(forged, key=OTHER_KEY)).site == key_fingerprint(OTHER_KEY.public_key())
    with pytest.raises(BadSignature):
        verify(signed(forged, key=OTHER_KEY), key=KEY.public_key())


def test_a_signature_for_another_purpose_is_none(certificate: bytes) -> None:
    content = content_of(certificate)
    for purpose in (b"", b"fedward/rotation/1\x00", b"fedward/2/2\x00"):
        whole = {"certificate": content, "signature": KEY.sign(purpose + canonical(content)).hex()}
        with pytest.raises(BadSignature):
            verify(json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")


def begin_at(sequence: int, ledger: Json) -> None:
    """The same entries, rightly chained, as if there had been others before."""
    head = "ab" * 32
    for number, entry in enumerate(ledger["entries"], start=sequence):
        entry.update(sequence=number, previous=head)
        content = {name: entry[name] for name in ("at", "body", "nonce", "previous", "sequence")}
        head = entry["digest"] = hashlib.sha256(canonical(content)).hexdigest()
    ledger.update(head=head, sequence=ledger["entries"][-1]["sequence"])


LIES: dict[str, Callable[[Json], object]] = {
    "less epsilon": lambda c: c["run"].update(epsilon=c["run"]["epsilon"] * 0.9),
    "less delta": lambda c: c["run"].update(delta=1e-6),
    "less for life": lambda c: c["life"].update(epsilon=c["run"]["epsilon"]),
    "less delta for life": lambda c: c["life"].update(delta=1e-5),
    "less for a grant": lambda c: c["life"]["grants"][0].update(epsilon=1.0),
    "a grant kept back": lambda c: c["life"]["grants"].pop(),
    "another basis": lambda c: c["life"].update(basis="budget"),
    "another budget": lambda c: c["life"]["budget"].update(epsilon=10.0001),
    "another rule": lambda c: c["life"].update(rule="none"),
    "another run": lambda c: c["run"].update(id="run-3"),
    "another unit": lambda c: c["run"].update(unit="record"),
    "another clip norm": lambda c: c["run"]["events"][0].update(clip_norm=0.25),
    "another grid": lambda c: c["run"]["events"][0].update(grid=2.0**-40),
    "fewer steps": lambda c: c["run"]["events"][0].update(steps=9),
    "another accountant": lambda c: c["accounting"].update(accountant="mine"),
    "other neighbours": lambda c: c["accounting"].update(neighbours="replace one unit"),
    "another noise": lambda c: c["noise"].update(rounding="none"),
    "a better reading": lambda c: c["reading"]["a stranger cannot verify"].pop(),
    "another register": lambda c: c["ledger"]["entries"][1]["body"].update(register="ab" * 32),
    "an older entry": lambda c: c["ledger"]["entries"][2].update(at=-1.0),
    "a chain without its beginning": lambda c: begin_at(2, c["ledger"]),
    "an edited entry": lambda c: c["ledger"]["entries"][1]["body"].update(run_id="run-9"),
    "an entry taken out": lambda c: c["ledger"]["entries"].pop(1),
    "the budget taken out": lambda c: c["ledger"]["entries"].pop(0),
    "no entries": lambda c: c["ledger"].update(entries=[]),
    "another head": lambda c: c["ledger"].update(head="ab" * 32),
    "an older sequence": lambda c: c["ledger"].update(sequence=2),
    "a sequence that is none": lambda c: c["ledger"].update(sequence="3"),
    "a commitment that is none": lambda c: c["data"].update(commitment="../../x"),
    "waivers that are none": lambda c: c.update(waivers=7),
    "no date": lambda c: c.update(issued="yesterday"),
    "one key more": lambda c: c.update(note="trust me"),
    "one key less": lambda c: c.pop("noise"),
    "no run": lambda c: c.update(run=[]),
    "an adapter that is none": lambda c: c["run"].pop("adapter_digest"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_that_the_site_itself_signed_is_refused(certificate: bytes, lie: str) -> None:
    content = content_of(certificate)
    LIES[lie](content)
    with pytest.raises(PrivacyError):
        verify(signed(content))


def test_a_difference_beyond_the_fourth_digit_is_none(certificate: bytes) -> None:
    content = content_of(certificate)
    content["run"]["epsilon"] *= 1 - 5e-5
    assert verify(signed(content))
    content["run"]["epsilon"] *= 1 - 2e-4
    with pytest.raises(PrivacyError, match=r"run\.epsilon"):
        verify(signed(content))


# ---- the script in docs --------------------------------------------------------------
def checked(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": os.environ["PATH"]})


def test_the_script_in_docs_recomputes_epsilon_to_four_digits(tmp_path: Path) -> None:
    data = made(ledger_of(SAMPLED, TERMS))
    (tmp_path / "certificate.json").write_bytes(data)
    done = checked(tmp_path / "certificate.json", public_key_text(KEY.public_key()))
    verified = verify(data)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"run run-1: ({verified.epsilon:.4g}, 1e-05)-differentially private for each patient" in done.stdout
    assert f"at most {verified.life_epsilon:.4g}" in done.stdout


def test_the_script_in_docs_refuses_a_changed_file(tmp_path: Path, certificate: bytes) -> None:
    (tmp_path / "certificate.json").write_bytes(certificate.replace(b'"steps": 10', b'"steps": 11', 1))
    done = checked(tmp_path / "certificate.json")
    assert done.returncode != 0
    assert not done.stdout


@pytest.mark.parametrize("lie", ["less epsilon", "a grant kept back", "an edited entry", "another head", "another run"])
def test_the_script_in_docs_refuses_a_signed_lie(
    tmp_path: Path, certificate: bytes, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(certificate)
    LIES[lie](content)
    (tmp_path / "certificate.json").write_bytes(signed(content))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "certificate.json")])
    with pytest.raises((SystemExit, ValueError, KeyError)) as stopped:
        runpy.run_path(str(SCRIPT))
    assert stopped.value.args[0]


def test_the_script_in_docs_refuses_another_key_and_another_spelling(
    tmp_path: Path, certificate: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = tmp_path / "certificate.json", public_key_text(KEY.public_key())
    other = public_key_text(OTHER_KEY.public_key())
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), key])
    path.write_bytes(certificate)
    runpy.run_path(str(SCRIPT))
    for changed, given in ((certificate, other), (certificate + b"\n", key)):
        path.write_bytes(changed)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), given])
        with pytest.raises(SystemExit, match="refused"):
            runpy.run_path(str(SCRIPT))


def test_the_script_in_docs_needs_no_fedward_and_stays_short() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    outside = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"cryptography", "dp_accounting"}
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 60
