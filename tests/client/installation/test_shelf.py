from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedward_client.books.audit import AuditLine, Kind
from fedward_client.installation.keys import create_keys
from fedward_client.installation.shelf import lines_beyond, make_books, open_books, read_books
from fedward_common.errors import BudgetError, OutputError
from fedward_common.privacy.grants import Budget
from support.sites import ONE_STAGE

BUDGET = Budget(epsilon=16.0, delta=1e-3)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", BUDGET, keys)
    with open_books(tmp_path / "books", keys) as books:
        books.note(Kind.CLEAR, run_id="run-1", reason="why")
        books.outbox.store("run-1", "ab" * 32, b"reply")
        head, first = books.ledger.head, books.first
    read = read_books(tmp_path / "books", keys)
    assert (read.ledger.head, read.first) == (head, first)
    assert read.ledger.owner == keys.fingerprint
    line = read.audit[-1].line
    assert (line.kind, line.run_id, line.reason, line.ledger_head) == (Kind.CLEAR, "run-1", "why", head)
    assert [row["digest"] for row in read.audit_rows] == [written.entry.digest for written in read.audit]


def test_books_have_one_writer_but_readers_beside_it(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", BUDGET, keys)
    with open_books(tmp_path / "books", keys) as books:
        with pytest.raises(BudgetError, match="another process"), open_books(tmp_path / "books", keys):
            pass
        grant = books.ledger.reserve(books.ledger.quote(ONE_STAGE), run_id="run-1", units=["n1", "n2"])
        read = read_books(tmp_path / "books", keys)
        assert read.ledger.grants() == (grant,)
        assert len(read.bearers("run-1") or ()) == 2


def test_the_bearers_of_a_run_are_those_whose_budget_bore_it(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", Budget(epsilon=10.0, delta=1e-3), keys)
    with open_books(tmp_path / "books", keys) as books:
        for run, units in (("run-1", ["n1", "n2"]), ("run-2", ["n2", "n3"])):
            quote = books.ledger.quote(replace(ONE_STAGE, epsilon=8.0))
            books.ledger.reserve(quote, run_id=run, units=units)
    read = read_books(tmp_path / "books", keys)
    assert [len(read.bearers(run) or ()) for run in ("run-1", "run-2")] == [2, 1]


def test_that_nobody_bears_a_run_and_that_the_source_does_are_two_answers(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", Budget(epsilon=10.0, delta=1e-3), keys)
    with open_books(tmp_path / "books", keys) as books:
        for run in ("run-1", "run-2"):
            books.ledger.reserve(books.ledger.quote(ONE_STAGE), run_id=run, units=["n1", "n2"])
    read = read_books(tmp_path / "books", keys)
    assert [read.bearers(run) for run in ("run-2", "run-3")] == [(), None]


def test_lines_beyond_the_ledger_are_those_with_a_head_that_it_never_had(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", BUDGET, keys)
    with open_books(tmp_path / "books", keys) as books:
        books.audit.write(AuditLine(kind=Kind.REFUSAL, reason="no head at all"))
        assert lines_beyond(books.ledger, books.audit.lines()) == ()
        books.audit.write(AuditLine(kind=Kind.REFUSAL, reason="strange", ledger_head="ab" * 32))
        assert [each.line.reason for each in lines_beyond(books.ledger, books.audit.lines())] == ["strange"]


def test_a_run_that_the_source_bears_has_no_bearers(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", BUDGET, keys)
    with open_books(tmp_path / "books", keys) as books:
        books.ledger.reserve(books.ledger.quote(ONE_STAGE), run_id="run-1")
    assert read_books(tmp_path / "books", keys).bearers("run-1") is None


def test_a_reader_waits_for_a_register_that_is_being_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedward_client.installation.shelf as shelf

    keys = create_keys(tmp_path / "keys")
    make_books(tmp_path / "books", BUDGET, keys)
    real, failures = shelf._read, iter((True, True, False))

    def sometimes(*arguments: Path) -> object:
        if next(failures):
            raise BudgetError("the register of units that the ledger names is missing", hint="")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf, "_read", sometimes)
    assert read_books(tmp_path / "books", keys).ledger.budget == BUDGET


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make_books(tmp_path / "no" / "books", BUDGET, create_keys(tmp_path / "keys"))
