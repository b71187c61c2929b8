from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import BudgetError
from fedward_common.privacy.journal import Entry, Journal, MemoryJournal, linked


def filled(count: int = 3) -> MemoryJournal:
    journal = MemoryJournal()
    for number in range(count):
        journal.append({"entry": "note", "number": number})
    return journal


def test_a_memory_journal_is_a_journal() -> None:
    journal: Journal = MemoryJournal()
    assert (journal.head, journal.entries(), journal.knows("")) == ("", (), True)


def test_each_entry_names_the_one_before() -> None:
    journal = filled()
    first, second, third = journal.entries()
    assert (first.sequence, second.sequence, third.sequence) == (1, 2, 3)
    assert (first.previous, second.previous, third.previous) == ("", first.digest, second.digest)
    assert journal.head == third.digest
    assert all(journal.knows(entry.digest) for entry in journal.entries())
    assert not journal.knows("0" * 64)


def test_the_digest_is_that_of_the_canonical_json() -> None:
    entry = MemoryJournal(clock=lambda: 1.5).append({"b": 1, "a": "é"})
    text = b'{"at":1.5,"body":{"a":"\\u00e9","b":1},"nonce":"","previous":"","sequence":1}'
    assert entry.digest == hashlib.sha256(text).hexdigest()
    assert entry.digest == "20a2e6ed2bcf830db201ae1bef4957fbb9346bfce57f8b2a9bfd959b2075f68f"


def test_a_nonce_is_part_of_the_digest_and_comes_back() -> None:
    plain, hidden = Entry.after(None, {}, now=1.5), Entry.after(None, {}, now=1.5, nonce="ab" * 16)
    assert plain.digest != hidden.digest
    assert linked([hidden.to_json()]) == (hidden,)
    with pytest.raises(BudgetError, match="does not continue the chain"):
        linked([{**hidden.to_json(), "nonce": ""}])


@pytest.mark.parametrize("nonce", [None, 7, "AB" * 16, "ab" * 8, "ab" * 16 + "\n", ["ab" * 16]])
def test_what_is_no_nonce_is_refused_also_under_a_digest_that_fits(nonce: Any) -> None:
    odd = Entry.after(None, {}, now=1.5, nonce=nonce)
    with pytest.raises(BudgetError, match="does not continue the chain"):
        linked([odd.to_json()])


def test_a_clock_that_is_moved_back_does_not_move_entries_back() -> None:
    times = iter([5.0, 3.0, 6.0])
    journal = MemoryJournal(clock=lambda: next(times))
    assert [journal.append({}).at for _ in range(3)] == [5.0, 5.0, 6.0]


def test_a_journal_keeps_a_copy_of_what_it_was_given() -> None:
    body: dict[str, Any] = {"list": [1, (2, 3)]}
    journal = MemoryJournal()
    entry = journal.append(body)
    body["list"].append(4)
    assert entry.body == {"list": [1, [2, 3]]}
    journal.export()[0]["body"]["list"].append(5)
    assert journal.export() == [entry.to_json()]


@pytest.mark.parametrize("body", [{"x": math.nan}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_what_is_no_json_is_refused_and_adds_nothing(body: dict[str, Any]) -> None:
    journal = filled()
    with pytest.raises(BudgetError, match="no JSON"):
        journal.append(body)
    assert len(journal.entries()) == 3


def test_export_restores_to_an_equal_journal() -> None:
    rows = json.loads(json.dumps(filled().export()))
    again = MemoryJournal.restore(rows)
    assert again.export() == rows
    assert again.append({"more": 1}).previous == rows[-1]["digest"]
    assert again.knows(rows[0]["digest"])


@pytest.mark.parametrize("key", ["at", "body", "digest", "nonce", "previous", "sequence"])
@pytest.mark.parametrize("value", [None, 7, "x", {"number": 9}, 1e9, True])
def test_any_changed_field_breaks_the_chain(key: str, value: object) -> None:
    rows = filled().export()
    rows[1][key] = value
    with pytest.raises(BudgetError):
        linked(rows)


@given(st.lists(st.integers(0, 4), max_size=8))
def test_only_the_entries_in_their_order_are_a_chain(order: list[int]) -> None:
    rows = filled(5).export()
    try:
        entries = linked([rows[index] for index in order])
    except BudgetError:
        assert order != list(range(len(order)))
    else:
        assert order == list(range(len(order)))
        assert [entry.to_json() for entry in entries] == rows[: len(order)]


def test_a_number_has_one_spelling() -> None:
    row = filled(1).export()[0]
    for value in (True, 1.0, "1"):
        with pytest.raises(BudgetError):
            linked([{**row, "sequence": value}])


def test_entries_that_go_back_in_time_are_refused() -> None:
    first = Entry.after(None, {}, now=5.0)
    early = Entry._chained(first, {}, 4.0, "")
    with pytest.raises(BudgetError, match="does not continue the chain"):
        Entry.from_json(early.to_json(), last=first)
