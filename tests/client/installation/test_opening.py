"""A real site folder, opened and asked: the whole path with durable books, the site's own model, its own data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedward_client.books.audit import Audit, Kind
from fedward_client.certificates.certificate import verify
from fedward_client.commands.certificates import certify
from fedward_client.commands.ledger import reconcile
from fedward_client.installation.folder import Folder
from fedward_client.installation.opening import open_site
from fedward_client.training import LocalTrainer
from fedward_common.codec import key_fingerprint
from fedward_common.errors import BudgetError, FedwardError, OutputError
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.ledger import LIFETIME
from fedward_common.round import Code, Update
from fedward_server.records import write_witness
from support.hospital import Hospital, write_notes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def hospital(made: Hospital, tmp_path: Path) -> Hospital:
    """A fresh copy of one site's folder, with the same keys."""
    shutil.copytree(made.root, tmp_path / "site")
    return Hospital(root=tmp_path / "site", operator=made.operator, keys=made.keys, bundle=made.bundle)


def audit_of(hospital: Hospital) -> list[Kind]:
    return [written.line.kind for written in Folder.open(hospital.root).read_books(hospital.keys).audit]


def test_a_run_is_served_written_down_and_remembered(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        first = site.answer(hospital.plan_bytes())
        update = hospital.read(first)
        assert isinstance(update, Update) and update.guarantee.waivers == ()
        second = hospital.read(site.answer(hospital.plan_bytes(round=2, ledger_head=update.ledger_head)))
        assert isinstance(second, Update) and second.ledger_head != update.ledger_head
    assert audit_of(hospital)[-2:] == [Kind.RELEASE, Kind.RELEASE]
    with open_site(hospital.root) as site:  # another process, another day
        assert site.answer(hospital.plan_bytes()) == first
        third = hospital.read(site.answer(hospital.plan_bytes(round=3, ledger_head=second.ledger_head)))
        assert isinstance(third, Update) and third.metrics is not None
        adapter = hospital.read(site.answer(hospital.plan_bytes(round=4)), groups=("adapter",))
        assert isinstance(adapter, Update) and np.all(adapter.delta.vector != 0)
    assert Kind.RESEND in audit_of(hospital)


def test_a_certificate_names_the_last_adapter_that_was_answered(hospital: Hospital, tmp_path: Path) -> None:
    with open_site(hospital.root) as site:
        site.answer(hospital.plan_bytes())
        initial = hospital.bundle.initial
        later = replace(initial, vector=initial.vector + np.float32(0.01))
        site.answer(hospital.plan_bytes(round=2, adapter=later))
        site.answer(hospital.plan_bytes(round=3, adapter=replace(initial, vector=initial.vector + np.float32(1e30))))
    certify(Folder.open(hospital.root), hospital.bundle.run_id, tmp_path / "certificate.json")
    assert verify((tmp_path / "certificate.json").read_bytes()).run_id == hospital.bundle.run_id
    assert later.digest in (tmp_path / "certificate.json").read_text()


def test_two_runs_of_two_coordinators_together_cannot_exceed_the_budget(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        codes = [hospital.code(site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))) for n in range(3)]
        held = [site._ledger.taking_part(f"{n:064x}", ["p0", "p1"]).tolist() for n in range(3)]
    # life 16, each run 8: the third is noise alone, and nothing in its answer says so
    assert codes == [None, None, None]
    assert held == [[True, True], [True, True], [False, False]]


def test_a_unit_that_came_later_is_not_trained_on_in_a_run_that_began_before(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[LocalTrainer] = []
    train = LocalTrainer.train

    def seen(self: LocalTrainer, *arguments: object) -> object:
        trainers.append(self)
        return train(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTrainer, "train", seen)
    with open_site(hospital.root) as site:
        site.answer(hospital.plan_bytes())
    write_notes(hospital.root / "notes.csv", [f"p{n}" for n in range(20, 60)])  # half of them left, as many came
    with open_site(hospital.root) as site:
        site.answer(hospital.plan_bytes(round=2))
        site.answer(hospital.plan_bytes(run_id="e" * 64))
    used = [{t.data.records.unit_ids[u] for u in (*t.data.training_units, *t.data.validation_units)} for t in trainers]
    assert used[0] == {f"p{n}" for n in range(40)}
    assert used[1] == {f"p{n}" for n in range(20, 40)}
    assert used[2] == {f"p{n}" for n in range(20, 60)}


def test_a_unit_whose_budget_is_spent_is_left_out_and_the_others_go_on(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        assert [hospital.code(site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))) for n in range(2)] == [None, None]
    write_notes(hospital.root / "notes.csv", [f"p{n}" for n in range(30, 60)])
    with open_site(hospital.root) as site:
        assert hospital.code(site.answer(hospital.plan_bytes(run_id="f" * 64))) is None
        data = site._trainers._opened[1].data  # type: ignore[attr-defined]
        ids = {data.records.unit_ids[u] for u in (*data.training_units, *data.validation_units)}
    assert ids == {f"p{n}" for n in range(40, 60)}


def test_a_moved_or_renamed_table_keeps_its_spending(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        assert [hospital.code(site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))) for n in range(2)] == [None, None]
    site_file = hospital.root / "site.toml"
    (hospital.root / "notes.csv").rename(hospital.root / "fresh.csv")
    text = site_file.read_text().replace("notes.csv", "fresh.csv").replace('id = "notes"', 'id = "fresh"')
    site_file.write_text(text)
    with open_site(hospital.root) as site:
        assert hospital.code(site.answer(hospital.plan_bytes(run_id="f" * 64))) is None  # of noise alone
        assert not site._ledger.taking_part("f" * 64, [f"p{n}" for n in range(40)]).any()


def test_where_nobody_can_bear_a_run_one_new_patient_changes_nothing_that_is_seen(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        for n in range(2):
            site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))
        before = site.answer(hospital.plan_bytes(run_id="d" * 64))
        write_notes(hospital.root / "notes.csv", [f"p{n}" for n in range(41)])
        after = site.answer(hospital.plan_bytes(run_id="e" * 64))
        assert site._ledger.taking_part("e" * 64, ["p0", "p40"]).tolist() == [False, True]
    assert [hospital.code(before), hospital.code(after)] == [None, None]
    assert len(before) == len(after)


def test_a_trainer_that_fails_holds_the_run_until_the_operator_clears_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("patient John Doe")

    with open_site(hospital.root) as site:
        with monkeypatch.context() as patch:
            patch.setattr(LocalTrainer, "train", fail)
            assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
        assert hospital.code(site.answer(hospital.plan_bytes(round=2))) is Code.UNAVAILABLE
    run_id = hospital.bundle.run_id
    folder = Folder.open(hospital.root)
    with folder.lock(), folder.open_books(folder.load_site(), hospital.keys) as books:
        assert books.ledger.held() == (run_id,)
        books.ledger.clear(run_id)
    with open_site(hospital.root) as site:
        assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE  # that round is spent
        assert hospital.code(site.answer(hospital.plan_bytes(round=2))) is None
    assert b"John" not in b"".join(path.read_bytes() for path in hospital.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("what", ["outbox.Outbox.store", "audit.Audit.write", "journal.DurableJournal.append"])
def test_a_full_disk_releases_nothing_and_spends_nothing_twice(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*arguments: object, **fields: object) -> None:
        raise OutputError("the disk is full", hint="free disk space")

    with open_site(hospital.root) as site:
        with monkeypatch.context() as patch:
            patch.setattr(f"fedward_client.books.{what}", full)
            assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
        events = site._ledger.events(hospital.bundle.run_id)
    with open_site(hospital.root) as site:
        again = hospital.read(site.answer(hospital.plan_bytes()))
        if isinstance(again, Update):  # it was never started, or stored whole: in neither case trained twice
            assert sum(e.count for e in site._ledger.events(hospital.bundle.run_id)) == 1
        else:
            assert site._ledger.events(hospital.bundle.run_id) == events


def test_a_clock_that_is_moved_back_buys_no_second_look(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    old = hospital.plan_bytes(expires_at=time.time() + 5)
    with open_site(hospital.root) as site:
        first = site.answer(old)
        assert isinstance(hospital.read(first), Update)
        site._clock = lambda: time.time() + 10
        assert hospital.code(site.answer(hospital.plan_bytes(round=2, expires_at=time.time() + 5))) is Code.EXPIRED
        site._clock = lambda: time.time() - 10**6
        events = site._ledger.events(hospital.bundle.run_id)
        assert site.answer(old) == first
        assert site._ledger.events(hospital.bundle.run_id) == events


def test_a_ledger_that_was_set_back_shows_by_the_head_that_the_coordinator_holds(
    hospital: Hospital, tmp_path: Path
) -> None:
    shutil.copytree(hospital.root / "books", tmp_path / "yesterday")
    with open_site(hospital.root) as site:
        update = hospital.read(site.answer(hospital.plan_bytes()))
        assert isinstance(update, Update)
    shutil.rmtree(hospital.root / "books")
    shutil.copytree(tmp_path / "yesterday", hospital.root / "books")
    with open_site(hospital.root) as site:
        again = hospital.plan_bytes(round=2, ledger_head=update.ledger_head)
        assert hospital.code(site.answer(again)) is Code.UNAVAILABLE
    folder = Folder.open(hospital.root)
    with folder.lock(), folder.open_books(folder.load_site(), hospital.keys) as books:
        books.ledger.reconcile([(hospital.bundle.run_id, hospital.plan().terms)], [update.ledger_head])
        assert "set back" in books.audit.lines()[-1].line.reason
    with open_site(hospital.root) as site:  # 8 of 16 are spent for everybody, and that run is closed
        assert hospital.code(site.answer(again)) is Code.UNAVAILABLE
        for n in range(2):
            site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))
        assert [site._ledger.taking_part(f"{n:064x}", ["p0"]).all() for n in range(2)] == [True, False]


def test_a_ledger_that_is_older_than_the_audit_log_beside_it_is_refused(hospital: Hospital, tmp_path: Path) -> None:
    books = hospital.root / "books"
    shutil.copytree(books, tmp_path / "yesterday")
    with open_site(hospital.root) as site:
        update = hospital.read(site.answer(hospital.plan_bytes()))
        assert isinstance(update, Update)
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(tmp_path / "yesterday" / name, books / name)
    shutil.rmtree(books / "units")
    shutil.copytree(tmp_path / "yesterday" / "units", books / "units")
    with pytest.raises(BudgetError, match="audit log knows"), open_site(hospital.root):
        pass
    heads = {key_fingerprint(hospital.keys.public_key): update.ledger_head}
    write_witness(tmp_path / "w.json", run_id=hospital.bundle.run_id, terms=hospital.plan().terms, heads=heads)
    reconcile(Folder.open(hospital.root), tmp_path / "w.json")
    with open_site(hospital.root) as site:
        assert site._ledger.spent(LIFETIME, delta=1e-2) > 7.9


@pytest.mark.parametrize("content", [b"", b"[" * 60_000, b"not the reply"])
def test_a_damaged_reply_holds_its_run_and_no_other(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    with open_site(hospital.root) as site, monkeypatch.context() as patch:  # stored, and cut off before it was settled
        patch.setattr(Audit, "write", lambda *_: (_ for _ in ()).throw(OutputError("full", hint="free space")))
        assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
    (reply,) = (hospital.root / "books" / "outbox").glob("*.reply")
    reply.write_bytes(content)
    with open_site(hospital.root) as site:
        assert site._ledger.held() == (hospital.bundle.run_id,)
        assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
        assert hospital.code(site.answer(hospital.plan_bytes(round=2))) is Code.UNAVAILABLE
        assert hospital.code(site.answer(hospital.plan_bytes(run_id="d" * 64))) is None
    lines = [written.line for written in Folder.open(hospital.root).read_books(hospital.keys).audit]
    (held,) = (line for line in lines if line.kind is Kind.HOLD)
    assert held.plan_id == hospital.plan().plan_id and "a stored reply is damaged" in held.reason


def test_another_column_of_ids_is_refused_before_a_plan_is_read(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        site.answer(hospital.plan_bytes())
    file = hospital.root / "site.toml"
    file.write_text(file.read_text().replace('unit = "patient"\n', 'unit = "id"\n', 1))
    with pytest.raises(BudgetError, match=r"data\.unit is not the column"), open_site(hospital.root):
        pass


def test_what_a_killed_process_left_of_a_table_goes(hospital: Hospital) -> None:
    left = hospital.root / "scratch" / "fedward-left" / "table.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("records")
    with open_site(hospital.root) as site:
        assert not left.exists()
        site.answer(hospital.plan_bytes())
    assert not (hospital.root / "scratch").exists()


def test_a_stored_reply_of_a_failed_plan_is_never_sent_and_a_stricter_policy_outranks_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_site(hospital.root) as site:
        with monkeypatch.context() as patch:  # stored, and then the disk refuses the audit line
            patch.setattr(Audit, "write", lambda *_: (_ for _ in ()).throw(OutputError("full", hint="free space")))
            assert hospital.code(site.answer(hospital.plan_bytes())) is Code.UNAVAILABLE
        site._policy = replace(site._policy, max_clip_norm=0.5)
        assert hospital.code(site.answer(hospital.plan_bytes())) is Code.TERMS_NOT_ALLOWED
        site._policy = replace(site._policy, max_clip_norm=2.0)
        assert hospital.code(site.answer(hospital.plan_bytes())) is None
        site.answer(hospital.plan_bytes(round=2))
        plan_id = hospital.plan(round=3).plan_id
        grant = site._ledger.grants()[0]
        site._ledger.start(grant, plan_id, events=(replace(grant.quote.events[0], count=1),))
        site._ledger.settle(plan_id, Outcome.FAILED)
        site._outbox.store(grant.run_id, plan_id, b"never sent")
        assert hospital.code(site.answer(hospital.plan_bytes(round=3))) is Code.UNAVAILABLE


def test_a_plan_that_trains_what_the_adapter_lacks_costs_nothing(hospital: Hospital) -> None:
    with open_site(hospital.root) as site:
        training = replace(hospital.plan().training, groups=("nope",))
        assert hospital.code(site.answer(hospital.plan_bytes(training=training))) is Code.SPEC_MISMATCH
        assert site._ledger.grants() == ()


@pytest.mark.parametrize("unit_line", ["", 'record_id = "id"'])
def test_records_as_units_with_and_without_an_id_column(tmp_path: Path, unit_line: str) -> None:
    hospital = Hospital.make(tmp_path, unit="record", unit_line=unit_line)
    with open_site(hospital.root) as site:
        assert [hospital.code(site.answer(hospital.plan_bytes(run_id=f"{n:064x}"))) for n in range(2)] == [None, None]
        write_notes(hospital.root / "notes.csv", [f"new{n}" for n in range(30)])
        code = hospital.code(site.answer(hospital.plan_bytes(run_id="f" * 64)))
    # without ids spending belongs to the source, whatever it holds today; with ids the new records have spent nothing
    assert code is (None if unit_line else Code.UNAVAILABLE)


def test_one_writer_at_a_time(hospital: Hospital) -> None:
    with open_site(hospital.root), pytest.raises(OutputError, match="in use"), open_site(hospital.root):
        pass


@pytest.mark.parametrize("lost", ["keys/units.key", "keys/signing.key", "books/ledger.jsonl", "site.toml"])
def test_what_is_lost_refuses_with_a_hint(hospital: Hospital, lost: str) -> None:
    (hospital.root / lost).unlink()
    with pytest.raises(FedwardError) as caught, open_site(hospital.root):
        pass
    assert caught.value.hint


def test_another_sites_ledger_is_refused(hospital: Hospital, tmp_path: Path) -> None:
    other = Hospital.make(tmp_path / "other")
    shutil.rmtree(hospital.root / "books")
    shutil.copytree(other.root / "books", hospital.root / "books")
    with pytest.raises(BudgetError), open_site(hospital.root):
        pass
