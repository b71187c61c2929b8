"""The lines about the policy: what was in force when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fedward_client.books.audit import AuditLine, Kind, Written
from fedward_client.installation.noted import PolicyNote, check_named, waivers_between
from fedward_common.errors import BudgetError
from fedward_common.privacy.journal import MemoryJournal
from support.sites import new_site

OLD = f"site.toml has the digest {'ab' * 32}"


def note(*waivers: str, column: str = "") -> str:
    return PolicyNote(digest="ab" * 32, column=column, waivers=waivers).reason


def lines(*reasons: str) -> tuple[Written, ...]:
    """A policy at 10 s, at 20 s, at 30 s."""
    ticks = iter(range(10, 1000, 10))
    journal = MemoryJournal(clock=lambda: float(next(ticks)))
    policies = [AuditLine(kind=Kind.POLICY, reason=reason) for reason in reasons]
    for policy in policies:
        journal.append(policy.to_json())
    return tuple(Written(entry=entry, line=line) for entry, line in zip(journal.entries(), policies, strict=True))


@pytest.mark.parametrize("column", ["", "cd" * 16])
@pytest.mark.parametrize("waivers", [(), ("allow_network",), ("a", "b_c")])
def test_a_note_is_read_back(column: str, waivers: tuple[str, ...]) -> None:
    written = PolicyNote(digest="ab" * 32, column=column, waivers=waivers)
    assert PolicyNote.of(written.reason) == written


@pytest.mark.parametrize("reason", ["", OLD, OLD + "; unit ids stand in no column", "x" + note()])
def test_anything_else_is_no_note(reason: str) -> None:
    assert PolicyNote.of(reason) is None


@pytest.mark.parametrize(
    ("begin", "end", "names"),
    [(12, 15, {"a"}), (12, 25, {"a", "b"}), (21, 22, {"b"}), (31, 99, set()), (12, 99, {"a", "b"})],
)
def test_the_waivers_of_a_time_are_those_of_every_policy_in_it(begin: float, end: float, names: set[str]) -> None:
    assert waivers_between(lines(note("a"), note("b"), note()), begin, end) == (frozenset(names), True)


@pytest.mark.parametrize(
    ("reasons", "begin", "names"),
    [((), 5, set()), ((note("a"),), 5, {"a"}), ((OLD,), 15, set()), ((OLD, note("a")), 15, {"a"})],
)
def test_books_that_do_not_tell_are_not_taken_for_books_without_waivers(
    reasons: Sequence[str], begin: float, names: set[str]
) -> None:
    assert waivers_between(lines(*reasons), begin, 25) == (frozenset(names), False)


def test_charged_units_are_never_taken_for_rows(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site").load_site()
    check_named(site, used=False)
    with pytest.raises(BudgetError, match="names no column of ids"):
        check_named(site, used=True)
    check_named(new_site(tmp_path / "other", record_id='"note_id"').load_site(), used=True)
