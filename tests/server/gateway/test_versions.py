from __future__ import annotations

import pathlib

import pytest

from fedward_server.gateway.versions import Versions, read_versions, version_in


def test_versions_outlive_the_gateway_and_are_written_when_one_changes(tmp_path: pathlib.Path) -> None:
    versions = Versions(tmp_path)
    versions.note("st-elsewhere", "0.1.0")
    before = (tmp_path / "versions.json").stat().st_mtime_ns
    versions.note("st-elsewhere", "0.1.0")
    versions.note("other", "")
    assert (tmp_path / "versions.json").stat().st_mtime_ns == before
    Versions(tmp_path).note("other", "0.2.0")
    assert read_versions(tmp_path) == {"st-elsewhere": "0.1.0", "other": "0.2.0"}


def test_a_disk_that_refuses_disturbs_no_request(tmp_path: pathlib.Path) -> None:
    Versions(tmp_path / "missing").note("st-elsewhere", "0.1.0")
    assert read_versions(tmp_path / "missing") == {}


@pytest.mark.parametrize(
    "said", [b"", b"fedward-courier/", b"fedward-courier/1\x1b[2J", b"fedward-courier/1" + b"0" * 40]
)
def test_what_is_no_version_is_none(said: bytes) -> None:
    assert version_in({b"user-agent": said}) == ""
