from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedward_client.books.journal import DurableJournal, head_path
from fedward_client.books.lines import judged, parsed_lines
from fedward_client.books.seals import Head, Seal, newest
from fedward_common.errors import BudgetError
from support.books import KEY

SEAL = Seal.of("ledger", KEY)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[bytes, bytes]:
    path = tmp_path / "ledger.jsonl"
    with DurableJournal.create(path, name="ledger", key=KEY) as journal:
        for number in range(3):
            journal.append({"number": number})
    return head_path(path).read_bytes(), path.read_bytes()


def test_what_is_written_is_what_is_read(parts: tuple[bytes, bytes]) -> None:
    content = judged(*parts, SEAL)
    assert [line.entry.body["number"] for line in content.lines] == [0, 1, 2]
    assert content.beyond is None
    assert b"".join(line.to_bytes() for line in content.lines) == parts[1]


def test_a_cut_names_what_happened(parts: tuple[bytes, bytes]) -> None:
    with pytest.raises(BudgetError, match="cut off"):
        judged(parts[0], parts[1][:-1], SEAL)
    with pytest.raises(BudgetError, match="edited"):
        judged(parts[0], b" " + parts[1][1:], SEAL)


@pytest.mark.parametrize("wrong", [{"sequence": 2}, {"digest": "0" * 64}])
def test_a_head_that_is_signed_and_says_something_else_is_refused(parts: tuple[bytes, bytes], wrong: Any) -> None:
    head = replace(newest(parts[0], SEAL).head, **wrong)
    with pytest.raises(BudgetError, match="edited"):
        judged(both(head), parts[1], SEAL)


def both(head: Head) -> bytes:
    """Two slots whose newer one is this head."""
    slots = {each.slot_offset: each.to_slot(SEAL) for each in (replace(head, sequence=head.sequence - 1), head)}
    return b"".join(slots[offset] for offset in sorted(slots))


def test_lines_of_another_spelling_are_refused(parts: tuple[bytes, bytes]) -> None:
    lines = parts[1].splitlines(keepends=True)
    for spelled in (lines[0].replace(b",", b", ", 1), lines[0][:-1] + b"\r\n", lines[0][:-1], b"[]\n", b"\n"):
        with pytest.raises(BudgetError):
            parsed_lines(spelled + lines[1], SEAL)
