from __future__ import annotations

from pathlib import Path

import pytest

from fedward_common.errors import OutputError
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.ledger import Ledger
from fedward_simulations.sites.ledgers import LedgerFile
from support.federation import small_config

BUDGET = Budget(epsilon=100.0, delta=1e-2)


def test_what_follows_the_checkpoint_is_forgotten_and_what_is_new_is_added_once(tmp_path: Path) -> None:
    path, ledger = tmp_path / "ledgers.jsonl", Ledger.in_memory(BUDGET)
    quote = ledger.quote(small_config(tmp_path).terms)
    file = LedgerFile(path)
    first = file.add({"ward": ledger.export})
    ledger.reserve(quote, run_id="run-1")
    second = file.add({"ward": ledger.export})
    assert file.add({"ward": ledger.export}) == second == path.stat().st_size > first
    assert LedgerFile(path, end=second).entries["ward"] == ledger.export()

    again = LedgerFile(path, end=first)  # the checkpoint before
    assert path.stat().st_size == first
    other = Ledger.restore(again.entries["ward"], budget=BUDGET)
    other.reserve(quote, run_id="run-2")
    assert LedgerFile(path, end=again.add({"ward": other.export})).entries["ward"] == other.export()


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not json at all\n", b'{"site": "ward"}\n'])
def test_a_file_that_does_not_hold_what_counts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledgers.jsonl").write_bytes(content)
    with pytest.raises(OutputError, match="does not hold what the checkpoint names"):
        LedgerFile(tmp_path / "ledgers.jsonl", end=len(content) or 7)


def test_a_disk_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot use"):
        LedgerFile(tmp_path / "nowhere" / "ledgers.jsonl")
    file = LedgerFile(tmp_path / "ledgers.jsonl")
    (tmp_path / "ledgers.jsonl").unlink()
    with pytest.raises(OutputError, match="cannot write"):
        file.add({"ward": Ledger.in_memory(BUDGET).export})
