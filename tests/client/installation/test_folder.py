from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from fedward_client.books.audit import Kind
from fedward_client.installation.folder import Folder, check_budget
from fedward_client.installation.keys import rotate_signing_key
from fedward_client.installation.noted import PolicyNote
from fedward_common.errors import BudgetError, ConfigError, FedwardError, OutputError, PrivacyError
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import Unit
from support.sites import filled, new_site, open_site_folder, spend

RUN = "ab" * 32


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_again(folder: Folder) -> None:
    with folder.lock(), folder.open_books(folder.load_site(), folder.load_keys()):
        pass


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- making ------------------------------------------------------------------------
def test_everything_that_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = open_site_folder(tmp_path / "site")
    finally:
        os.umask(before)
    (folder.root / "notes.csv").unlink()  # the test's own
    for path in (folder.root, *folder.root.rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_making_again_changes_nothing(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    before = contents(folder.root)
    Folder.create(folder.root, name="another")
    assert {name: text for name, text in contents(folder.root).items() if name != "keys/signing.pub"} == {
        name: text for name, text in before.items() if name != "keys/signing.pub"
    }


def test_an_empty_folder_may_become_a_site(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir(mode=0o755)
    Folder.create(tmp_path / "site", name="a")
    assert mode(tmp_path / "site") == 0o700


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="no site"):
        Folder.create(tmp_path, name="a")
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_is_no_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        Folder.create(Path(f"{tmp_path}/file{below}"), name="a")


def test_what_is_no_site_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no site"):
        Folder.open(tmp_path)


@pytest.mark.parametrize("inner", ["", "keys", "books"])
@pytest.mark.parametrize("bits", [0o750, 0o705])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, inner: str, bits: int) -> None:
    folder = open_site_folder(tmp_path / "site")
    (folder.root / inner).chmod(bits)
    with pytest.raises(PrivacyError, match="open to other accounts") as refused:
        Folder.open(folder.root)
    assert refused.value.hint == f"chmod 700 {folder.root / inner}"


def test_base_models_are_those_on_the_list_that_are_here(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "site", name="a")
    folder.model("ab" * 32).mkdir()
    folder.model("cd" * 32).mkdir()
    assert folder.base_models(["ab" * 32, "ef" * 32]) == {"ab" * 32: folder.model("ab" * 32)}


# ---- one writer --------------------------------------------------------------------
def holder(root: Path, held: Event, done: Event) -> None:
    with Folder(root).lock():
        held.set()
        done.wait(60)


def test_a_second_writer_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "site", name="a")
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=holder, args=(folder.root, held, done))
    assert not folder.in_use
    process.start()
    try:
        assert held.wait(60)
        assert folder.in_use
        with pytest.raises(OutputError, match=f"in use by process {process.pid}"), folder.lock():
            pass
    finally:
        done.set()
        process.join(60)
    assert not folder.in_use
    with folder.lock():
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "site", name="a")
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock():
        pass


# ---- the books ---------------------------------------------------------------------
def test_books_are_opened_once_and_read_back(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    spend(folder, RUN)
    books = folder.read_books(folder.load_keys())
    assert [grant.run_id for grant in books.ledger.grants()] == [RUN]
    assert books.ledger.budget == folder.load_site().budget()
    assert [written.line.kind for written in books.audit] == [Kind.OPENED, Kind.POLICY, Kind.RELEASE]
    assert len(books.bearers(RUN) or ()) == 40
    assert books.bearers("cd" * 32) is None
    with pytest.raises(OutputError, match="exists"), folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())


def test_reading_needs_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    spend(folder, RUN)
    stray = folder.books / "units" / f"units-{'0' * 64}.bin"
    stray.write_bytes(b"a charge that is under way")
    before = contents(folder.root)
    keys = folder.load_keys()
    with folder.lock():
        books = folder.read_books(keys)
        books.ledger.hold(RUN)  # goes nowhere
    after = contents(folder.root)
    assert {**after, "lock": b""} == {**before, "lock": b""}


def test_no_ledger_is_opened_by_the_way(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site")
    with pytest.raises(BudgetError, match="no ledger was opened") as refused:
        folder.read_books(folder.load_keys())
    assert "init" in refused.value.hint
    with pytest.raises(BudgetError, match="no ledger was opened"):
        open_again(folder)
    assert not folder.has_books


@pytest.mark.parametrize("left", [(), ("audit.jsonl", "audit.head", "units", "outbox")])
def test_books_that_are_gone_are_never_made_anew(tmp_path: Path, left: tuple[str, ...]) -> None:
    folder = open_site_folder(tmp_path / "site")
    for path in folder.books.iterdir():
        if path.name not in left:
            path.unlink() if path.is_file() else path.rmdir()
    if not left:
        folder.books.rmdir()
    for attempt in (open_again, lambda f: f.read_books(f.load_keys())):
        with pytest.raises(BudgetError):
            attempt(folder)
    with pytest.raises(FedwardError), folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())


def test_another_ledger_of_the_same_site_is_refused(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    (folder.keys / "ledger.first").rename(tmp_path / "mark")
    folder.books.rename(tmp_path / "books")
    with folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())  # as somebody with the keys would
    shutil.copy(tmp_path / "mark", folder.keys / "ledger.first")
    for attempt in (open_again, lambda f: f.read_books(f.load_keys())):
        with pytest.raises(BudgetError, match="not the one that this site opened"):
            attempt(folder)


def test_the_ledger_of_another_site_is_refused(tmp_path: Path) -> None:
    folder, other = open_site_folder(tmp_path / "a"), open_site_folder(tmp_path / "b")
    shutil.rmtree(folder.books)
    shutil.copytree(other.books, folder.books)
    for attempt in (open_again, lambda f: f.read_books(f.load_keys())):
        with pytest.raises(BudgetError):
            attempt(folder)


def test_another_digest_key_is_refused(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    (folder.keys / "units.key").write_text("ab" * 32 + "\n")
    for attempt in (open_again, lambda f: f.read_books(f.load_keys())):
        with pytest.raises(BudgetError, match="digest key"):
            attempt(folder)


def test_a_key_that_is_gone_is_not_made_anew_once_there_are_books(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    (folder.keys / "units.key").unlink()
    with pytest.raises(PrivacyError, match="is missing"):
        Folder.create(folder.root, name="a")
    assert not (folder.keys / "units.key").exists()


def test_a_key_that_is_gone_together_with_the_books_is_not_made_anew_either(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    (folder.keys / "units.key").unlink()
    shutil.rmtree(folder.books)
    with pytest.raises(PrivacyError, match="is missing"):
        Folder.create(folder.root, name="a")
    assert not (folder.keys / "units.key").exists()


@pytest.mark.parametrize("step", ["make_books", "rename"])
def test_making_the_books_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    import fedward_client.installation.shelf as shelf

    folder = new_site(tmp_path / "site")
    target = {"make_books": (shelf, "Audit"), "rename": (os, "rename")}[step]

    def cut(*arguments: object, **more: object) -> None:
        if step != "rename" or str(arguments[1]).endswith("books"):
            raise KeyboardInterrupt
        os.replace(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(*target, cut)
    with pytest.raises(KeyboardInterrupt), folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())
    monkeypatch.undo()
    assert not folder.has_books
    assert not [path for path in folder.root.iterdir() if path.name.startswith(".")]
    with folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())
    open_again(folder)


def test_books_that_were_never_opened_after_they_were_made_get_their_mark_later(tmp_path: Path) -> None:
    folder = new_site(tmp_path / "site")
    with folder.lock():
        folder.create_books(folder.load_site(), folder.load_keys())
    first = folder.read_books(folder.load_keys()).first
    assert not (folder.keys / "ledger.first").exists()
    open_again(folder)
    assert (folder.keys / "ledger.first").read_text().strip() == first


# ---- what is noted -----------------------------------------------------------------
def test_a_changed_policy_is_noted_once(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    folder.site_file.write_text(folder.site_file.read_text().replace("max_rank = 64", "max_rank = 8"))
    open_again(folder)
    open_again(folder)
    noted = [w.line.reason for w in folder.read_books(folder.load_keys()).audit if w.line.kind is Kind.POLICY]
    assert len(noted) == 2
    assert f"site.toml has the digest {folder.load_site().digest}; " in noted[1]


# ---- the column of unit ids --------------------------------------------------------
def with_ids(folder: Folder, name: str) -> None:
    folder.site_file.write_text(filled(**({"record_id": f'"{name}"'} if name else {})))


@pytest.mark.parametrize("name", ["note", ""])
def test_once_units_were_charged_the_column_of_their_ids_is_fixed(tmp_path: Path, name: str) -> None:
    folder = open_site_folder(tmp_path / "site", record_id='"note_id"')
    spend(folder, RUN)
    before = (folder.books / "audit.jsonl").read_bytes()
    with_ids(folder, name)
    with pytest.raises(BudgetError, match="not the column whose ids were charged") as refused:
        open_again(folder)
    assert "set the name back" in refused.value.hint
    assert (folder.books / "audit.jsonl").read_bytes() == before
    with_ids(folder, "note_id")
    open_again(folder)


def test_before_any_unit_was_charged_the_column_may_be_mended(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site", record_id='"note_di"')
    for name in ("", "note_id"):
        with_ids(folder, name)
        open_again(folder)
    spend(folder, RUN)
    with_ids(folder, "note_di")
    with pytest.raises(BudgetError, match="not the column"):
        open_again(folder)


def test_books_that_never_named_a_column_take_the_one_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # the line of an earlier version
        patch.setattr(PolicyNote, "reason", property(lambda note: f"site.toml has the digest {note.digest}"))
        folder = open_site_folder(tmp_path / "site", record_id='"note_id"')
        spend(folder, RUN)
    open_again(folder)
    with_ids(folder, "note")
    with pytest.raises(BudgetError, match="not the column"):
        open_again(folder)


def test_the_columns_name_stands_nowhere_in_the_books(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site", record_id='"note_id"')
    spend(folder, RUN)
    assert not [path for path in folder.books.rglob("*") if path.is_file() and b"note_id" in path.read_bytes()]


def test_books_open_after_a_rotation_which_is_noted_once(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    spend(folder, RUN)
    old = folder.load_keys().fingerprint
    rotate_signing_key(folder.keys)
    open_again(folder)
    open_again(folder)
    noted = [w.line.reason for w in folder.read_books(folder.load_keys()).audit if w.line.kind is Kind.KEYS]
    assert noted == [f"signing key {old} was replaced by {folder.load_keys().fingerprint}"]
    spend(folder, "cd" * 32, plan_id="ef" * 32)


# ---- the budget --------------------------------------------------------------------
OPENED = Budget(epsilon=16.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        Budget(epsilon=17.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4),
        Budget(epsilon=15.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4),
        Budget(epsilon=16.0, delta=2e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4),
        Budget(epsilon=16.0, delta=1e-3, unit=Unit.PATIENT, run_epsilon=8.0, run_delta=1e-4),
        Budget(epsilon=16.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=1e-4, renyi_order=16),
        Budget(epsilon=16.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.1, run_delta=1e-4),
        Budget(epsilon=16.0, delta=1e-3, unit=Unit.RECORD, run_epsilon=8.0, run_delta=2e-4),
    ],
)
def test_another_budget_than_the_ledgers_is_refused(asked: Budget) -> None:
    with pytest.raises(ConfigError, match="ledger was opened with"):
        check_budget(asked, OPENED)


def test_limits_for_one_run_may_be_made_stricter() -> None:
    check_budget(OPENED, OPENED)
    for stricter in (replace(OPENED, run_epsilon=1.0), replace(OPENED, run_delta=1e-6)):
        check_budget(stricter, OPENED)
        with pytest.raises(ConfigError, match="above the"):
            check_budget(OPENED, stricter)


def test_a_site_file_with_stricter_limits_for_one_run_opens_the_same_ledger(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    before = folder.read_books(folder.load_keys()).ledger.budget
    folder.site_file.write_text(folder.site_file.read_text().replace("run_epsilon = 8.0", "run_epsilon = 1.0"))
    open_again(folder)
    assert folder.load_site().policy().max_epsilon == 1.0
    assert folder.read_books(folder.load_keys()).ledger.budget == before


def test_a_site_file_with_another_budget_opens_nothing(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    folder.site_file.write_text(folder.site_file.read_text().replace("life_epsilon = 16.0", "life_epsilon = 32.0"))
    with pytest.raises(ConfigError, match=r"life_epsilon is 32, but the ledger was opened with 16"):
        open_again(folder)


def test_a_run_that_was_cut_off_is_held_for_a_reader(tmp_path: Path) -> None:
    folder = open_site_folder(tmp_path / "site")
    spend(folder, RUN, outcome=None)
    assert folder.read_books(folder.load_keys()).ledger.held() == (RUN,)
    spend(folder, "cd" * 32, plan_id="11" * 32, outcome=Outcome.FAILED)
    assert folder.read_books(folder.load_keys()).ledger.held() == tuple(sorted((RUN, "cd" * 32)))
