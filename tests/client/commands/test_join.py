"""``init --server``: what is printed and sent, and what is wrong with a site file that was begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedward_client.commands.init import init
from fedward_client.commands.join import Invitation
from fedward_common.enrolment import Enrolment
from fedward_common.errors import ConfigError
from support.operating import new_operator


@pytest.fixture(scope="module")
def invitation(tmp_path_factory: pytest.TempPathFactory) -> Invitation:
    keys = new_operator(tmp_path_factory.mktemp("join") / "op").keys
    return Invitation(server="localhost:1", ca=keys / "ca.pem", operator_key=str(keys / "plan.pub"))


def test_both_public_keys_and_both_fingerprints_are_printed(tmp_path: Path, invitation: Invitation) -> None:
    report = init(tmp_path / "north", invitation)
    sent = Enrolment.from_text((tmp_path / "north" / "north.pub").read_text())
    signing = sent.signing_key.public_bytes_raw().hex()
    shown = [line.split(maxsplit=2) for line in report.lines]
    assert ["node", "key", sent.node_public_key] in shown
    assert ["signing", "key", signing] in shown
    fingerprints = [words[1] for words in shown if words[0] == "fingerprint"]
    assert fingerprints == [sent.node_fingerprint, sent.signing_fingerprint]
    assert sent.node_public_key.startswith("ecdsa-sha2-nistp384 ")
    assert (report.facts["node_public_key"], report.facts["public_key"]) == (sent.node_public_key, signing)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("schema = = 1", "site.toml is not TOML"),
        ("schema = 1", "site.toml: name is missing"),
        ('name = ["north"]', "site.toml: name should be a valid string"),
        ('name = "north"\ncoordinator = "3dbb"', "site.toml: coordinator should be a table"),
        ('name = "north"\n[coordinator]\npublic_key = 7', "site.toml: coordinator.public_key should be a valid string"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_slip_in_a_site_file_that_was_begun_is_named(
    tmp_path: Path, invitation: Invitation, content: str | bytes, message: str
) -> None:
    root = tmp_path / "north"
    init(root)
    (root / "site.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        init(root, invitation)
    assert caught.value.hint
    assert not (root / "courier").exists()


def test_a_key_that_waits_to_be_filled_in_keeps_nobody_from_joining(tmp_path: Path, invitation: Invitation) -> None:
    init(tmp_path / "north", invitation)
    again = dataclasses.replace(invitation, server="localhost:2")
    with pytest.raises(ConfigError, match=r"courier\.toml has server = 'localhost:1', and not 'localhost:2'"):
        init(tmp_path / "north", again)
