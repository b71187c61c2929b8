from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedward_server.deployment.folder import OperatorFolder
from fedward_server.gateway.roll import Node, Roll, Stranger, nodes_map
from support.fronting import Site, operator


@pytest.fixture
def folder(tmp_path: Path) -> OperatorFolder:
    return operator(tmp_path / "op")


def headers(site: Site, **others: str) -> dict[bytes, bytes]:
    named = site.headers() | {name.replace("_", "-"): value for name, value in others.items()}
    return {name.encode(): value.encode() for name, value in named.items()}


def settle(folder: OperatorFolder) -> None:
    """As if the last change lay ten seconds back."""
    past = datetime.now().timestamp() - 10
    os.utime(folder.sites_folder, (past, past))


def test_an_enrolled_key_is_known_by_its_files_name(folder: OperatorFolder) -> None:
    site = Site.enrolled(folder, "st-elsewhere")
    found = Roll(folder.sites_folder).find(headers(site))
    assert isinstance(found, Node)
    assert found.name == "st-elsewhere"


def test_a_key_whose_file_has_left_is_a_stranger_at_its_next_request(folder: OperatorFolder) -> None:
    site = Site.enrolled(folder, "a")
    roll = Roll(folder.sites_folder)
    for _ in range(20):  # faster than time stamps tick
        assert isinstance(roll.find(headers(site)), Node)
        (folder.sites_folder / "a.pub").rename(folder.revoked / "a.pub")
        assert roll.find(headers(site)) is Stranger.UNKNOWN
        (folder.revoked / "a.pub").rename(folder.sites_folder / "a.pub")


def test_files_are_read_once_while_nothing_changes(folder: OperatorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    site, roll = Site.enrolled(folder, "a"), Roll(folder.sites_folder)
    settle(folder)
    assert isinstance(roll.find(headers(site)), Node)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read again"))
    assert isinstance(roll.find(headers(site)), Node)


def test_a_file_that_cannot_be_read_admits_nobody(folder: OperatorFolder) -> None:
    broken, good = Site.enrolled(folder, "broken"), Site.enrolled(folder, "good")
    (folder.sites_folder / "broken.pub").write_text("{")
    roll = Roll(folder.sites_folder)
    assert roll.find(headers(broken)) is Stranger.UNKNOWN
    assert isinstance(roll.find(headers(good)), Node)


def test_without_the_folder_nobody_is_known(tmp_path: Path) -> None:
    assert Roll(tmp_path / "none").find(headers(Site.stranger())) is Stranger.UNKNOWN


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"flwr_signature": "AAAA"}, Stranger.UNSIGNED),
        ({"flwr_signature": "no base64"}, Stranger.UNSIGNED),
        ({"flwr_signature": "\xe4"}, Stranger.UNSIGNED),
        ({"flwr_timestamp": "2020-01-01T00:00:00+00:00"}, Stranger.UNSIGNED),
        ({"flwr_public_key": "AAAA"}, Stranger.UNKNOWN),
    ],
)
def test_what_was_not_signed_is_refused(folder: OperatorFolder, changed: dict[str, str], reason: Stranger) -> None:
    site = Site.enrolled(folder, "a")
    assert Roll(folder.sites_folder).find(headers(site, **changed)) is reason


@pytest.mark.parametrize("missing", [b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"])
def test_all_three_headers_are_needed(folder: OperatorFolder, missing: bytes) -> None:
    sent = headers(Site.enrolled(folder, "a"))
    del sent[missing]
    assert Roll(folder.sites_folder).find(sent) is Stranger.NO_KEY


@pytest.mark.parametrize(("late_s", "fresh"), [(300, True), (310, False), (-3, True), (-10, False)])
def test_a_signature_holds_for_five_minutes(folder: OperatorFolder, late_s: float, fresh: bool) -> None:
    site = Site.enrolled(folder, "a")
    now = datetime.now(UTC) + timedelta(seconds=late_s)
    found = Roll(folder.sites_folder, wall=lambda: now).find(headers(site))
    assert isinstance(found, Node) if fresh else found is Stranger.CLOCK


def test_a_signed_time_without_a_zone_is_refused(folder: OperatorFolder) -> None:
    site = Site.enrolled(folder, "a")
    assert Roll(folder.sites_folder).find(_signed(site, "2026-01-01T00:00:00")) is Stranger.CLOCK
    assert Roll(folder.sites_folder).find(_signed(site, "yesterday")) is Stranger.CLOCK


def _signed(site: Site, stamp: str) -> dict[bytes, bytes]:
    import base64

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    signature = site.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return headers(site, flwr_timestamp=stamp, flwr_signature=base64.b64encode(signature).decode())


def test_nginx_gets_the_same_keys(folder: OperatorFolder) -> None:
    site = Site.enrolled(folder, "a")
    assert nodes_map(folder.sites_folder) == f'"{site.headers()["flwr-public-key"]}" "a";\n'
