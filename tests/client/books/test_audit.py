from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fedward_client.books.audit import Audit, AuditLine, AuditTrail, Kind, NoAudit, reason_of
from fedward_client.books.files import Files
from fedward_client.books.journal import DurableJournal
from fedward_common.errors import BudgetError, OutputError, PrivacyError
from fedward_common.privacy.journal import MemoryJournal
from support.books import KEY

LINE = AuditLine(
    kind=Kind.RELEASE,
    coordinator="ab" * 32,
    run_id="cd" * 32,
    round=3,
    plan_id="ef" * 32,
    update_digest="01" * 32,
    size=1234,
    tensors={"head.weight": (2, 3), "head.bias": (2,)},
    ledger_sequence=7,
    ledger_head="23" * 32,
)


def test_a_line_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with DurableJournal.create(path, name="audit", key=KEY, clock=lambda: 5.0) as journal:
        audit: AuditTrail = Audit(journal)
        audit.write(LINE)
        audit.write(AuditLine(kind=Kind.REFUSAL, code="unavailable", reason="the run is held"))
    with DurableJournal.open(path, name="audit", key=KEY) as journal:
        first, second = Audit(journal).lines()
    assert (first.line, first.entry.at, first.entry.sequence) == (LINE, 5.0, 1)
    assert (second.line.kind, second.line.reason) == (Kind.REFUSAL, "the run is held")


def test_a_line_is_on_disk_before_write_returns(tmp_path: Path) -> None:
    class Watched(Files):
        dirty = False

        def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
            super().write_at(descriptor, data, offset)
            self.dirty = True

        def fsync(self, descriptor: int) -> None:
            self.dirty = False

    files = Watched()
    with DurableJournal.create(tmp_path / "audit.jsonl", name="audit", key=KEY, files=files) as journal:
        Audit(journal).write(LINE)
        assert not files.dirty


def test_a_trail_that_cannot_be_written_raises(tmp_path: Path) -> None:
    class Full(Files):
        full = False

        def write_at(self, descriptor: int, data: bytes, offset: int) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write_at(descriptor, data, offset)

    files = Full()
    with DurableJournal.create(tmp_path / "audit.jsonl", name="audit", key=KEY, files=files) as journal:
        files.full = True
        with pytest.raises(OutputError, match="the audit"):
            Audit(journal).write(LINE)


def test_no_epsilon_and_no_values_can_be_written() -> None:
    names = {field.name for field in fields(AuditLine)}
    assert not [name for name in names if "epsilon" in name or "loss" in name or "count" in name]
    assert json.loads(json.dumps(LINE.to_json()))["schema"] == 1


@pytest.mark.parametrize(
    "edit", [{"kind": "other"}, {"schema": 2}, {"more": 1}, {"tensors": 7}, {"tensors": {"a": ["x"]}}]
)
def test_a_line_of_another_form_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(BudgetError):
        AuditLine.from_json({**LINE.to_json(), **edit})


def test_something_else_in_the_journal_is_refused() -> None:
    journal = MemoryJournal()
    journal.append({"entry": "grant"})
    with pytest.raises(BudgetError, match="malformed"):
        Audit(journal).lines()


def test_a_reason_is_our_own_text_or_a_type() -> None:
    assert reason_of(PrivacyError("the run is held", hint="x")) == "the run is held"
    assert reason_of(ValueError("patient John Doe")) == "internal error of type ValueError"
    assert len(reason_of(BudgetError("x" * 5000, hint=""))) == 1000
    with pytest.raises(BudgetError, match="too long"):
        AuditLine(kind=Kind.REFUSAL, reason="x" * 1001)


def test_nothing_is_kept_where_nothing_is_real() -> None:
    kept = NoAudit()
    trail: AuditTrail = kept
    trail.check_usable()
    trail.write(LINE)
    assert not vars(kept)
