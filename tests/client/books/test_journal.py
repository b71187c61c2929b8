from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedward_client.books.files import Files
from fedward_client.books.journal import DurableJournal, head_path
from fedward_client.books.seals import SLOT_BYTES
from fedward_common.errors import BudgetError, OutputError
from fedward_common.privacy.journal import Journal, linked
from support.books import KEY, OTHER_KEY


def create(path: Path, **options: Any) -> DurableJournal:
    return DurableJournal.create(path, name="ledger", key=KEY, **options)


def opened(path: Path, **options: Any) -> DurableJournal:
    return DurableJournal.open(path, **{"name": "ledger", "key": KEY, **options})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with five entries, closed."""
    path = tmp_path / "ledger.jsonl"
    with create(path, clock=lambda: 1.5) as journal:
        for number in range(5):
            journal.append({"entry": "note", "number": number})
    return path


def refused(path: Path) -> bool:
    try:
        opened(path).close()
    except BudgetError as error:
        assert "backup" in error.hint
        return True
    return False


def test_a_durable_journal_is_a_journal(path: Path) -> None:
    with opened(path) as journal:
        held: Journal = journal
        entries = held.entries()
        assert [entry.body["number"] for entry in entries] == [0, 1, 2, 3, 4]
        assert held.head == entries[-1].digest
        assert all(held.knows(entry.digest) for entry in entries)
        assert held.knows("")
        assert not held.knows("0" * 64)


def test_a_head_tells_nothing_of_when_its_entry_was_written(tmp_path: Path) -> None:
    """Two sites at one instant, with one body: without a nonce both would show one head, and it could be searched."""
    heads: set[str] = set()
    nonces: set[str] = set()
    for number in range(3):
        with create(tmp_path / f"{number}.jsonl", clock=lambda: 1.5) as journal:
            heads.add(journal.append({"entry": "settle"}).digest)
            nonces.update(journal.append({}).nonce for _ in range(2))
    assert len(heads) == 3
    assert len(nonces) == 6 and {len(nonce) for nonce in nonces} == {32}


def test_it_goes_on_where_it_ended(path: Path) -> None:
    with opened(path) as journal:
        before = journal.head
        assert journal.append({"more": 1}).previous == before
        assert len(journal.entries()) == 6
    with opened(path) as journal:
        assert len(journal.entries()) == 6
        assert journal.entries() == journal.entries()


def test_an_empty_journal_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    create(path).close()
    with opened(path) as journal:
        assert (journal.head, journal.entries()) == ("", ())


def test_a_clock_that_is_moved_back_does_not_move_entries_back(path: Path) -> None:
    with opened(path, clock=lambda: 0.5) as journal:
        assert journal.append({}).at == 1.5
    with opened(path, clock=lambda: 9.0) as journal:
        assert journal.append({}).at == 9.0


def test_files_are_private_and_never_made_anew(path: Path) -> None:
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
    with pytest.raises(BudgetError, match="already"):
        create(path)
    path.unlink()
    with pytest.raises(BudgetError, match="head knows entries"):
        create(path)


def test_a_making_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    create(path).close()
    path.unlink()
    create(path).close()
    with opened(path) as journal:
        assert (journal.head, journal.entries()) == ("", ())
        first = journal.append({"entry": "open"})
    with opened(path) as journal:
        assert journal.entries() == (first,)


def test_a_second_writer_is_refused(path: Path) -> None:
    with opened(path), pytest.raises(BudgetError, match="open in another process"):
        opened(path)
    opened(path).close()


def test_after_closing_nothing_is_written(path: Path) -> None:
    journal = opened(path)
    journal.close()
    journal.close()
    with pytest.raises(BudgetError, match="closed"):
        journal.append({})
    assert len(DurableJournal.read(path, name="ledger", public_keys=(KEY.public_key(),))) == 5


def test_a_body_that_is_no_json_adds_nothing_and_closes_the_journal(path: Path) -> None:
    with opened(path) as journal, pytest.raises(BudgetError, match="no JSON"):
        journal.append({"x": b""})
    with opened(path) as journal:
        assert len(journal.entries()) == 5


# ---- damage ------------------------------------------------------------------------------
def test_truncation_is_detected_at_every_line_and_every_byte(path: Path) -> None:
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for cut in sorted({0, *ends, *(end - 1 for end in ends), *range(1, len(data), 97)} - {len(data)}):
        path.write_bytes(data[:cut])
        assert refused(path), cut


def flips(data: bytes) -> Iterator[bytes]:
    for index in range(0, len(data), 13):
        for bit in (1, 128):
            yield data[:index] + bytes([data[index] ^ bit]) + data[index + 1 :]


def test_a_flip_of_any_byte_of_the_lines_is_detected(path: Path) -> None:
    data = path.read_bytes()
    for number, flipped in enumerate(flips(data)):
        path.write_bytes(flipped)
        assert refused(path), number
    path.write_bytes(data)
    assert not refused(path)


def test_a_flip_of_any_byte_of_the_head_is_detected_or_mended(path: Path) -> None:
    """The newest slot damaged looks like a crash while it was written: nothing is lost, and it is written anew."""
    good = head_path(path).read_bytes()
    for number, flipped in enumerate(flips(good)):
        head_path(path).write_bytes(flipped)
        if not refused(path):
            assert flipped[:SLOT_BYTES] == good[:SLOT_BYTES], number  # the fifth's head lies in the second slot
            assert head_path(path).read_bytes() == good
    assert not refused(path)


Edit = Callable[[list[bytes]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines.pop(2),
        lambda lines: lines.reverse(),
        lambda lines: lines.insert(1, lines[1]),
        lambda lines: lines.append(lines[-1]),
        lambda lines: lines.append(lines[0]),
        lambda lines: lines.insert(2, b"\n"),
        lambda lines: lines.__setitem__(1, lines[1].replace(b'"number":1', b'"number":7')),
        lambda lines: lines.__setitem__(1, lines[1].replace(b",", b", ", 1)),
    ],
)
def test_edited_and_reordered_lines_are_detected(path: Path, edit: Edit) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))
    assert refused(path)


def one_more(path: Path, key: Any = KEY, count: int = 1) -> tuple[bytes, bytes]:
    """Lines and head as they were before, and the lines with more entries."""
    old, head = path.read_bytes(), head_path(path).read_bytes()
    with DurableJournal.open(path, name="ledger", key=key, earlier=(KEY.public_key(),)) as journal:
        for _ in range(count):
            journal.append({"more": 1})
    new = path.read_bytes()
    head_path(path).write_bytes(head)
    return old, new


def test_one_whole_entry_may_lie_beyond_the_head_and_stays(path: Path) -> None:
    one_more(path)
    with opened(path) as journal:
        assert len(journal.entries()) == 6
        journal.append({})
    with opened(path) as journal:
        assert len(journal.entries()) == 7


def test_two_entries_beyond_the_head_are_refused(path: Path) -> None:
    one_more(path, count=2)
    assert refused(path)


def test_an_entry_beyond_the_head_needs_this_sites_signature(path: Path) -> None:
    one_more(path, key=OTHER_KEY)
    assert refused(path)


def test_a_torn_line_beyond_the_head_goes(path: Path) -> None:
    old, new = one_more(path)
    tail = new[len(old) :]
    for torn in (tail[:1], tail[:-1], bytes(len(tail)), bytes(40) + tail[40:], b"\n", b"\n\n"):
        path.write_bytes(old + torn)
        with opened(path) as journal:
            assert len(journal.entries()) == 5
        assert path.read_bytes() == old


def test_a_torn_head_is_borne_only_beside_the_entry_that_it_was_for(path: Path) -> None:
    old, new = one_more(path)  # the sixth: its head goes to the first slot
    head = head_path(path).read_bytes()
    head_path(path).write_bytes(b"\0" * 100 + head[100:])
    path.write_bytes(old)
    assert refused(path)
    path.write_bytes(new)
    with opened(path) as journal:
        assert len(journal.entries()) == 6
    assert not refused(path)


def test_a_head_that_is_set_back_alone_is_detected(path: Path) -> None:
    head = head_path(path).read_bytes()
    with opened(path) as journal:
        for _ in range(3):
            journal.append({})
    head_path(path).write_bytes(head)
    assert refused(path)


def test_lines_that_are_set_back_alone_are_detected(path: Path) -> None:
    old, _ = one_more(path)
    with opened(path):
        pass  # the head knows the sixth now
    path.write_bytes(old)
    assert refused(path)


@pytest.mark.parametrize("options", [{"key": OTHER_KEY}, {"name": "audit"}])
def test_another_key_or_another_name_is_refused(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="signed by this site"):
        opened(path, **options)


def test_a_site_that_changed_its_key_goes_on(path: Path) -> None:
    with opened(path, key=OTHER_KEY, earlier=(KEY.public_key(),)) as journal:
        journal.append({})
        journal.append({})  # both slots of the head are the new key's now
    with pytest.raises(BudgetError):
        opened(path)
    both = (OTHER_KEY.public_key(), KEY.public_key())
    assert len(DurableJournal.read(path, name="ledger", public_keys=both)) == 7
    for one, why in zip(both, ("edited", "signed by this site"), strict=True):  # old entries; the head
        with pytest.raises(BudgetError, match=why):
            DurableJournal.read(path, name="ledger", public_keys=(one,))


def test_a_file_that_is_edited_while_it_is_open_is_detected(path: Path) -> None:
    with opened(path) as journal:
        journal.append({})
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first[:-3] + (b"0" if first[-3:-2] != b"0" else b"1") + first[-2:] + b"\n" + rest)  # signature
        with pytest.raises(BudgetError, match="edited"):
            journal.entries()


# ---- reading -------------------------------------------------------------------------------
def test_a_reader_needs_public_keys_alone_and_may_read_beside_a_writer(path: Path) -> None:
    with opened(path) as journal:
        journal.append({"more": 1})
        rows = DurableJournal.read(path, name="ledger", public_keys=(KEY.public_key(),))
        assert rows[-1]["digest"] == journal.head
    entries = linked({key: value for key, value in row.items() if key != "signature"} for row in rows)
    assert len(entries) == 6
    assert json.loads(path.read_bytes().splitlines()[0]) == rows[0]


def test_a_reader_checks_every_signature_and_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_more(path)
    before = (path.read_bytes(), head_path(path).read_bytes())
    assert len(DurableJournal.read(path, name="ledger", public_keys=(KEY.public_key(),))) == 6
    assert (path.read_bytes(), head_path(path).read_bytes()) == before
    monkeypatch.setattr("fedward_client.books.journal.READS", 1)
    with pytest.raises(BudgetError):
        DurableJournal.read(path, name="ledger", public_keys=(OTHER_KEY.public_key(),))


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_file_is_refused(path: Path, which: int) -> None:
    (path, head_path(path))[which].unlink()
    assert refused(path)
    with pytest.raises(BudgetError, match="missing"):
        DurableJournal.read(path, name="ledger", public_keys=(KEY.public_key(),))


def test_after_a_failed_fsync_the_journal_stays_shut(path: Path) -> None:
    class Failing(Files):
        broken = False

        def fsync(self, descriptor: int) -> None:
            if self.broken:
                raise OSError(5, "Input/output error")

    files = Failing()
    with opened(path, files=files) as journal:
        head = journal.head
        files.broken = True
        with pytest.raises(OutputError):
            journal.append({})
        files.broken = False
        with pytest.raises(BudgetError, match="the disk refused"):
            journal.append({})
        assert journal.head == head
    assert not refused(path)
