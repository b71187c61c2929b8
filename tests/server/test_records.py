from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import OutputError
from fedward_common.round import RoundRecord
from fedward_server.records import RoundLog, read_witness, write_witness
from support.nouns import plan_from


def record(round: int, **changes: Any) -> RoundRecord:
    """A record of one attempt."""
    fields: dict[str, Any] = {
        "round": round,
        "stage": "hé\u2028ad",
        "attempt": 1,
        "cohort": 3,
        "replied": 2,
        "refused": {"expired": 1},
        "dropped": {},
        "bytes_down": 10,
        "bytes_up": 20,
        "seconds": 0.5,
        "update_norm": 1.25,
        "adapter_digest": "ab" * 32,
        "evaluation": {"accuracy": 0.5},
    }
    return RoundRecord(**{**fields, **changes})


def log_of(path: Path, *rounds: int) -> RoundLog:
    """A diary of these rounds."""
    log = RoundLog(path)
    for number in rounds:
        log.append(record(number))
    return log


def rounds_in(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_for_every_attempt(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1)
    log.append(record(1, attempt=2, abandoned=True))
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert RoundRecord(**first) == record(1)
    assert (second["attempt"], second["abandoned"], second["refused"]) == (2, True, {"expired": 1})


def test_rewind_forgets_rounds_that_will_be_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1, 2, 2, 3, 4)
    log.rewind(finished=2)
    assert rounds_in(path) == [1, 2, 2]
    log.append(record(3))
    assert rounds_in(path) == [1, 2, 2, 3]
    log.rewind(finished=0)
    assert rounds_in(path) == []


@pytest.mark.parametrize("torn", ['{"round": 1, "sta', "{", '{"stage": "x"}', "7", "null", "\x00\x00\x00"])
def test_rewind_drops_a_torn_last_line(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1, 2)
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    log.rewind(finished=2)
    log.append(record(3))
    assert rounds_in(path) == [1, 2, 3]


def test_rewind_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1)
    with path.open("ab") as file:
        file.write(b'{"round": 1, "stage": "\xff\xfe')
    log.rewind(finished=1)
    assert rounds_in(path) == [1]


def test_a_complete_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1, 2)
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    log.rewind(finished=2)
    log.append(record(3))
    assert rounds_in(path) == [1, 2, 3]


def test_rewind_of_no_diary_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    RoundLog(path).rewind(finished=3)
    assert not path.exists()


def test_a_diary_that_cannot_be_written_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rounds.jsonl"
    log = log_of(path, 1, 2)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, call in ((Path, "open"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, full)
            with pytest.raises(OutputError, match="No space left") as caught:
                log.append(record(3)) if call == "open" else log.rewind(finished=1)
            assert caught.value.hint
        assert path.read_bytes() == before


def test_the_heads_of_a_witness_are_read_back_and_none_where_there_is_no_file(tmp_path: Path) -> None:
    path, heads = tmp_path / "witness.json", {"ab" * 32: "cd" * 32}
    assert read_witness(path, run_id="12" * 32) == {}
    write_witness(path, run_id="12" * 32, terms=plan_from().terms, heads=heads)
    assert read_witness(path, run_id="12" * 32) == heads


@pytest.mark.parametrize(
    "change",
    [{"run_id": "34" * 32}, {"schema": 2}, {"heads": []}, {"heads": {"ab" * 32: "x"}}, {"heads": {"ab" * 32: 7}}],
)
def test_a_witness_that_is_damaged_or_of_another_run_is_an_error_with_a_hint(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "witness.json"
    write_witness(path, run_id="12" * 32, terms=plan_from().terms, heads={})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OutputError, match="is no witness of this run") as caught:
        read_witness(path, run_id="12" * 32)
    assert caught.value.hint


@pytest.mark.parametrize("what", ["a rewound diary", "a witness", "a new diary"])
def test_what_was_said_to_be_written_outlives_a_power_cut(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is on disk before it gets its name, and the name after that."""
    log = log_of(tmp_path / "rounds.jsonl", *([] if what == "a new diary" else [1, 2]))
    happened: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append("folder" if path == tmp_path else "file")
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        happened.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    if what == "a new diary":
        log.append(record(1))
    elif what == "a witness":
        write_witness(tmp_path / "witness.json", run_id="ab" * 32, terms=plan_from().terms, heads={})
    else:
        log.rewind(finished=1)
    assert happened == ["file", *([] if what == "a new diary" else ["rename"]), "folder"]
