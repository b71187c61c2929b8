from __future__ import annotations

import pathlib

import pytest

import fedward_server.gateway.versions as module
from fedward_server.gateway.versions import Versions, read_versions, version_in


def test_versions_outlive_the_gateway_and_are_written_when_one_changes(tmp_path: pathlib.Path) -> None:
    versions = Versions(tmp_path)
    versions.note("st-elsewhere", "0.1.0")
    versions.write()
    before = (tmp_path / "versions.json").stat().st_mtime_ns
    versions.note("st-elsewhere", "0.1.0")
    versions.note("other", "")
    versions.write()
    assert (tmp_path / "versions.json").stat().st_mtime_ns == before
    again = Versions(tmp_path)
    again.note("other", "0.2.0")
    again.write()
    assert read_versions(tmp_path) == {"st-elsewhere": "0.1.0", "other": "0.2.0"}


def test_noting_one_takes_no_time_of_a_disk_however_often_a_site_changes_what_it_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, written = Versions(tmp_path), []
    monkeypatch.setattr(module, "rewrite_json", lambda path, rows: written.append(rows))
    for number in range(100):
        versions.note("st-elsewhere", f"0.1.{number}")
    assert not written
    versions.write()
    versions.write()
    assert written == [{"st-elsewhere": "0.1.99"}]


def test_a_disk_that_refuses_disturbs_nobody_and_is_tried_again(tmp_path: pathlib.Path) -> None:
    versions = Versions(tmp_path / "missing")
    versions.note("st-elsewhere", "0.1.0")
    versions.write()
    assert read_versions(tmp_path / "missing") == {}
    (tmp_path / "missing").mkdir()
    versions.write()
    assert read_versions(tmp_path / "missing") == {"st-elsewhere": "0.1.0"}


@pytest.mark.parametrize(
    "said", [b"", b"fedward-courier/", b"fedward-courier/1\x1b[2J", b"fedward-courier/1" + b"0" * 40]
)
def test_what_is_no_version_is_none(said: bytes) -> None:
    assert version_in({b"user-agent": said}) == ""
