from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedward_common.errors import OutputError, PrivacyError
from fedward_common.files import (
    check_private,
    make_private_folder,
    read_json,
    read_secret,
    replace_file,
    rewrite,
    rewrite_json,
    sync_file,
    sync_folder,
    write_new,
)


def test_a_new_file_is_private_and_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="never overwritten"):
        write_new(path, b"two")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="never overwritten"):
        write_new(tmp_path / "link", b"two")
    assert path.read_bytes() == b"one"
    assert sorted(os.listdir(tmp_path)) == ["key", "link"]


def test_a_rewritten_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    rewrite(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            rewrite(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["status.json"]
    rewrite(path, b"two")
    assert path.read_bytes() == b"two"


def test_json_round_trips_and_nothing_readable_is_none(tmp_path: Path) -> None:
    rewrite_json(tmp_path / "a", {"b": [1, None]})
    assert read_json(tmp_path / "a") == {"b": [1, None]}
    (tmp_path / "half").write_bytes(b'{"b": [1')
    (tmp_path / "binary").write_bytes(b"\xff")
    assert [read_json(tmp_path / name) for name in ("half", "binary", "missing", ".")] == [None] * 4


def test_a_secret_is_read_only_while_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(PrivacyError, match="is missing") as caught:
        read_secret(path, lost="look in the safe")
    assert caught.value.hint == "look in the safe"
    write_new(path, b"s")
    assert read_secret(path, lost="") == b"s"
    path.chmod(0o604)
    with pytest.raises(PrivacyError, match="open to other accounts"):
        read_secret(path, lost="")
    with pytest.raises(PrivacyError, match="cannot read"):
        read_secret(tmp_path, lost="")


def test_folders_are_made_private_and_open_ones_are_refused(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a")
    make_private_folder(tmp_path / "a")
    check_private(tmp_path / "a")
    check_private(tmp_path / "missing")
    (tmp_path / "a").chmod(0o710)
    with pytest.raises(PrivacyError, match="open to other accounts"):
        check_private(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make_private_folder(tmp_path / "file" / "b")
    with pytest.raises(OutputError, match="cannot write"):
        write_new(tmp_path / "file" / "b", b"")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_write_new_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError):
        write_new(tmp_path / "link", b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_new(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == []


def test_rewrite_replaces_and_stays_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for content in (b"first", b"second"):
            rewrite(tmp_path / "file", content)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"second"
    assert (mode(tmp_path / "file"), os.listdir(tmp_path)) == (0o600, ["file"])


def test_a_file_that_cannot_be_replaced_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        rewrite(tmp_path / "folder", b"x")
    with pytest.raises(OutputError, match="cannot write"):
        replace_file(tmp_path / "nothing", tmp_path / "file")


def test_files_and_folders_are_synced_by_their_own_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    (tmp_path / "file").touch()
    sync_file(tmp_path / "file")
    sync_folder(tmp_path)
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]
    with pytest.raises(OSError, match="directory"):
        sync_folder(tmp_path / "file")
