from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest

from fedward_common.errors import OutputError
from fedward_server.bundle import Bundle
from fedward_simulations.results.folders import (
    claim_folder,
    move_aside,
    read_stopped,
    read_summary,
    whole,
    write_bundle,
    write_summary,
)
from support.coordinating import bundle_of


def test_missing_and_empty_folders_are_free(tmp_path: Path) -> None:
    claim_folder(tmp_path / "missing")
    claim_folder(tmp_path)
    assert not (tmp_path / "missing").exists()


def test_what_holds_something_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(OutputError):
            claim_folder(taken)


def test_only_a_folder_can_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file") as caught:
        claim_folder(tmp_path / "file")
    assert "--resume" not in caught.value.hint
    with pytest.raises(OutputError, match="is not empty") as caught:
        claim_folder(tmp_path)
    assert "--resume" not in caught.value.hint
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(OutputError, match="is not empty") as caught:
        claim_folder(tmp_path)
    assert "--resume" in caught.value.hint


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write to .*run: Not a directory"):
        claim_folder(tmp_path / "file" / "deep" / "run")


@pytest.mark.parametrize(("flags", "reason"), [(0, errno.EACCES), (os.ST_RDONLY, errno.EROFS)])
@pytest.mark.parametrize("below", [".", "run", "deep/run"])
def test_what_cannot_be_written_is_found_before_any_work(
    below: str, flags: int, reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write anywhere, so the answers of the system are made up
    statvfs = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, flags, 255))
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    monkeypatch.setattr(os, "statvfs", lambda path: statvfs)
    with pytest.raises(OutputError, match=f"cannot write to .*: {os.strerror(reason)}") as caught:
        claim_folder(tmp_path / below)
    assert caught.value.hint


def test_what_lies_in_a_folder_that_may_not_be_entered_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def closed(path: str | Path, **options: bool) -> os.stat_result:
        if Path(path).parent == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", closed)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="Permission denied"):
        claim_folder(tmp_path / "run")


def test_earlier_results_are_numbered_and_none_is_lost(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "result").write_text(text)
        move_aside(tmp_path / "demo")
    assert (tmp_path / "demo.1" / "result").read_text() == "first"
    assert (tmp_path / "demo.2" / "result").read_text() == "second"
    assert move_aside(tmp_path / "demo") is None


def test_a_summary_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summary(tmp_path, {"accuracy": 0.5})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            write_summary(tmp_path, {"accuracy": 0.9})
    assert read_summary(tmp_path) == {"accuracy": 0.5}


def test_the_file_is_the_old_one_or_the_new_one_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "sites.png"
    with whole(path) as draft:
        draft.write_text("old")
    with pytest.raises(OutputError, match=r"cannot write .*sites\.png: No space left"), whole(path) as draft:
        draft.write_text("ha")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), whole(path) as draft:
        draft.write_text("ha")
        raise KeyboardInterrupt
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"sites.png": "old"}


def test_a_bundle_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left"):
            write_bundle(tmp_path / "deep" / "bundle", bundle_of())
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "deep" / "bundle").mkdir()
    write_bundle(tmp_path / "deep" / "bundle", bundle_of())
    assert Bundle.load(tmp_path / "deep" / "bundle").run_id == bundle_of().run_id
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_a_folder_without_a_run_has_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no run in"):
        read_stopped(tmp_path)
    write_summary(tmp_path, {})
    with pytest.raises(OutputError, match="is finished"):
        read_stopped(tmp_path)


def test_the_folder_one_stands_in_is_neither_moved_nor_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (Path(), Path(".."), tmp_path):
        with pytest.raises(OutputError, match="is the folder you are in"):
            move_aside(folder)
        with pytest.raises(OutputError, match="is the folder you are in"):
            write_bundle(folder, cast(Any, None))
    assert (tmp_path / "here" / "notes").exists()
