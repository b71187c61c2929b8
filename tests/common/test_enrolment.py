"""Enrolments: both sides read the same keys, and nothing else passes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.enrolment import Enrolment
from fedward_common.errors import BadSignature, FedwardError, InputError

NODE, SIGNING = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()


def enrolment() -> Enrolment:
    return Enrolment.sign("st-elsewhere", node=NODE.public_key(), signing=SIGNING)


def test_both_sides_read_the_same_keys() -> None:
    sent, read = enrolment(), Enrolment.from_text(enrolment().to_text())
    assert (read.node_fingerprint, read.signing_fingerprint) == (sent.node_fingerprint, sent.signing_fingerprint)
    assert read.name == "st-elsewhere"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")
def test_the_node_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    path = tmp_path / "node.pub"
    path.write_bytes(NODE.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    shown = subprocess.run(["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=True).stdout  # noqa: S607
    assert enrolment().node_fingerprint in shown


@pytest.mark.parametrize("key", ["name", "node_key"])
def test_another_name_or_node_is_not_what_was_signed(key: str) -> None:
    other = Enrolment.sign("other", node=ec.generate_private_key(ec.SECP384R1()).public_key(), signing=SIGNING)
    row = json.loads(enrolment().to_text())
    row[key] = json.loads(other.to_text())[key]
    with pytest.raises(BadSignature):
        Enrolment.from_text(json.dumps(row))


@pytest.mark.parametrize("text", ["", "{}", "[]", "ssh-ed25519 AAAA", '{"schema": 1, "name": "../x"}', "\x00"])
def test_anything_else_is_an_input_error_with_a_hint(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Enrolment.from_text(text)
    assert caught.value.hint


def test_every_cut_of_the_text_is_refused() -> None:
    text = enrolment().to_text().rstrip()
    for length in range(0, len(text), 7):
        with pytest.raises(FedwardError):
            Enrolment.from_text(text[:length])
