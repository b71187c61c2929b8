from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_client.books.files import Files, disk_errors
from fedward_common.errors import BudgetError, OutputError

FILES = Files()


def test_a_file_is_created_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0)
    try:
        FILES.create(path, b"one")
    finally:
        os.umask(before)
    assert FILES.read(path) == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    FILES.create(path, b"two")
    assert FILES.names(tmp_path) == ["a"]
    assert FILES.read(path) == b"two"


def test_a_draft_that_a_crash_left_is_replaced_or_removed(tmp_path: Path) -> None:
    class Cut(Files):
        def fsync(self, descriptor: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cut().create(tmp_path / "a", b"one")
    assert not (tmp_path / "a").exists()
    (draft,) = FILES.names(tmp_path)
    FILES.create(tmp_path / "a", b"two")
    assert FILES.names(tmp_path) == ["a"]
    (tmp_path / draft).touch()
    (tmp_path / ".mine").touch()
    FILES.remove_drafts(tmp_path)
    assert FILES.names(tmp_path) == [".mine", "a"]


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    acts: list[Callable[[Path], object]] = [FILES.open, FILES.read, FILES.create_new]
    for act in acts:
        with pytest.raises(OSError):
            act(link)
    FILES.create(link, b"y")
    assert not link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"


def test_bytes_are_written_in_place_also_when_the_system_takes_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = FILES.create_new(tmp_path / "a")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:3], offset))
    FILES.write_at(descriptor, b"0123456789", 2)
    FILES.write_at(descriptor, b"ab", 0)
    FILES.truncate(descriptor, 11)
    FILES.close(descriptor)
    assert FILES.read(tmp_path / "a") == b"ab012345678"


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    FILES.create(tmp_path / "a", b"")
    first, second = FILES.open(tmp_path / "a"), FILES.open(tmp_path / "a")
    FILES.lock(first)
    with pytest.raises(BudgetError, match="the ledger is open in another process"), disk_errors("the ledger"):
        FILES.lock(second)
    FILES.close(first)
    FILES.lock(second)
    FILES.close(second)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EDQUOT, "free disk space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "account"),
        (errno.ELOOP, "symbolic links"),
        (errno.EIO, "check the disk"),
    ],
)
def test_errors_of_the_disk_become_ours_with_a_hint(code: int, hint: str) -> None:
    with pytest.raises(OutputError, match="cannot read or write the outbox") as caught, disk_errors("the outbox"):
        raise OSError(code, os.strerror(code))
    assert hint in caught.value.hint


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="mine"), disk_errors("x"):
        raise BudgetError("mine", hint="")
