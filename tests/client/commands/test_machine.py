from __future__ import annotations

from pathlib import Path

import pytest

import fedward_client.commands.machine as module
from fedward_client.commands.machine import weaknesses


def names(folder: Path, data: Path) -> set[str]:
    return {weakness.name for weakness in weaknesses(folder, data)}


def test_what_no_program_can_mend_is_always_said(tmp_path: Path) -> None:
    assert {"root", "own_account", "at_rest", "network"} <= names(tmp_path, tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("file", "above", "found"),
    [
        (0o604, [0o701, 0o755], True),
        (0o640, [0o710, 0o755], True),
        (0o604, [0o700, 0o755], False),
        (0o644, [0o700, 0o755], False),
        (0o600, [0o755, 0o755], False),
    ],
)
def test_a_data_file_that_other_accounts_can_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int, above: list[int], found: bool
) -> None:
    data = tmp_path / "data.csv"
    data.touch()
    data.chmod(file)
    monkeypatch.setattr(module, "_above", lambda path: above)
    assert ("other_accounts" in names(tmp_path, data)) is found


@pytest.mark.parametrize(
    ("kind", "found"), [("tmpfs", True), ("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)]
)
def test_a_file_system_that_does_not_hold_what_it_is_told_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, found: bool
) -> None:
    monkeypatch.setattr(module, "_kind_of", lambda folder: kind)
    assert ("file_system" in names(tmp_path, tmp_path / "data.csv")) is found


def test_a_process_that_may_be_dumped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_prctl", lambda option: 1)
    assert "core_dumps" in names(tmp_path, tmp_path / "data.csv")
    monkeypatch.setattr(module, "_prctl", lambda option: 0)
    assert "core_dumps" not in names(tmp_path, tmp_path / "data.csv")
