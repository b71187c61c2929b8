from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import fedward_client.installation.keys as module
from fedward_client.installation.keys import (
    MARK,
    Rotation,
    create_keys,
    load_keys,
    missing_keys,
    public_key_text,
    read_public_key,
    rotate_signing_key,
)
from fedward_common.codec import key_fingerprint, new_key
from fedward_common.errors import ConfigError, OutputError, PrivacyError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- public keys -------------------------------------------------------------------
def test_a_public_key_is_read_from_hex_and_from_base64() -> None:
    key = new_key().public_key()
    raw = bytes.fromhex(public_key_text(key))
    assert read_public_key(public_key_text(key)) == key
    assert read_public_key(f"  {public_key_text(key).upper()}\n") == key
    assert read_public_key(base64.b64encode(raw).decode()) == key


@pytest.mark.parametrize("text", ["", "zz", "ab" * 31, "ab" * 33, base64.b64encode(bytes(31)).decode(), "é" * 64, "\0"])
def test_anything_else_is_no_public_key(text: str) -> None:
    with pytest.raises(ConfigError, match="no Ed25519 public key"):
        read_public_key(text)


# ---- making and reading ------------------------------------------------------------
def test_secret_files_are_private_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        create_keys(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {name: mode(folder / name) for name in os.listdir(folder)} == dict.fromkeys(
        ("signing.key", "signing.pub", "units.key"), 0o600
    )


def test_a_secret_file_that_exists_is_never_written_to(folder: Path) -> None:
    create_keys(folder)
    before = {name: (folder / name).read_bytes() for name in ("signing.key", "units.key")}
    create_keys(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_only_what_is_missing_is_made(folder: Path) -> None:
    create_keys(folder)
    signing = (folder / "signing.key").read_bytes()
    (folder / "units.key").unlink()
    assert missing_keys(folder) == ("units.key",)
    create_keys(folder)
    assert missing_keys(folder) == ()
    assert (folder / "signing.key").read_bytes() == signing


def test_keys_come_back_as_they_were(folder: Path) -> None:
    made, read = create_keys(folder), load_keys(folder)
    assert made.units == read.units
    assert len(read.units) == 32
    assert made.fingerprint == read.fingerprint == key_fingerprint(read.public_key)
    assert read_public_key((folder / "signing.pub").read_text()) == read.public_key
    assert read.origin == read.fingerprint


def test_two_sites_have_unlike_keys(tmp_path: Path) -> None:
    a, b = create_keys(tmp_path / "a"), create_keys(tmp_path / "b")
    assert a.units != b.units
    assert a.fingerprint != b.fingerprint


def test_repr_shows_no_secret(folder: Path) -> None:
    keys = create_keys(folder)
    assert repr(keys) == f"SiteKeys({keys.fingerprint[:16]})"
    assert keys.units.hex() not in repr(keys)


@pytest.mark.parametrize("name", ["signing.key", "units.key"])
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_touch_is_refused(folder: Path, name: str, bits: int) -> None:
    create_keys(folder)
    (folder / name).chmod(bits)
    with pytest.raises(PrivacyError, match="open to other accounts") as refused:
        load_keys(folder)
    assert refused.value.hint == f"chmod 600 {folder / name}"


@pytest.mark.parametrize("name", ["signing.key", "units.key"])
def test_a_missing_key_is_refused_and_not_made_anew(folder: Path, name: str) -> None:
    create_keys(folder)
    (folder / name).unlink()
    with pytest.raises(PrivacyError, match="is missing"):
        load_keys(folder)
    assert not (folder / name).exists()


@pytest.mark.parametrize("name", ["signing.key", "units.key"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"ab" * 31, b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_key_is_refused(folder: Path, name: str, content: bytes) -> None:
    create_keys(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(PrivacyError):
        load_keys(folder)


def test_a_key_of_another_kind_is_refused(folder: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    create_keys(folder)
    pem = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signing.key").write_bytes(pem)
    with pytest.raises(PrivacyError, match="no Ed25519 private key"):
        load_keys(folder)


# ---- rotation ----------------------------------------------------------------------
def test_the_old_key_vouches_for_the_new_one_and_units_stay(folder: Path) -> None:
    old = create_keys(folder)
    new, statement = rotate_signing_key(folder)
    assert new.fingerprint != old.fingerprint
    assert new.units == old.units
    assert public_key_text(statement.old) == public_key_text(old.public_key)
    assert public_key_text(statement.new) == public_key_text(new.public_key)
    Rotation.from_json(json.loads(json.dumps(statement.to_json())))
    assert [key_fingerprint(key) for key in new.public_keys] == [new.fingerprint, old.fingerprint]
    assert new.origin == old.fingerprint
    assert not (folder / "signing.key.next").exists()
    assert read_public_key((folder / "signing.pub").read_text()) == new.public_key
    assert {mode(folder / name) for name in os.listdir(folder)} == {0o600}


def test_a_rotation_tidies_what_a_crash_left(folder: Path) -> None:
    create_keys(folder)
    (folder / ".signing.key.next.0123456789abcdef").write_bytes(b"half")
    rotate_signing_key(folder)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_rotation_leaves_what_is_not_its_own(folder: Path) -> None:
    create_keys(folder)
    (folder / ".snapshot").mkdir()
    foreign = [".nfs000000000001", ".signing.key", ".notes.0123456789abcdef", ".signing.key.0123456789abcdef.bak"]
    for name in foreign:
        (folder / name).write_bytes(b"somebody else's")
    drafts = [f".{name}.{'0123456789abcdef'}" for name in ("signing.pub", "rotations.jsonl", "units.key", MARK)]
    for name in drafts:
        (folder / name).write_bytes(b"half")
    rotate_signing_key(folder)
    assert {name for name in os.listdir(folder) if name.startswith(".")} == {".snapshot", *foreign}


def test_a_draft_that_cannot_be_removed_is_an_error_of_the_disk(folder: Path) -> None:
    create_keys(folder)
    (folder / ".signing.key.0123456789abcdef").mkdir()
    with pytest.raises(OutputError, match="cannot change"):
        rotate_signing_key(folder)


def test_many_rotations_chain(folder: Path) -> None:
    first = create_keys(folder)
    for _ in range(3):
        rotate_signing_key(folder)
    keys = load_keys(folder)
    assert len(keys.rotations) == 3
    assert keys.origin == first.fingerprint


@pytest.mark.parametrize("step", ["_state", "replace_file", "_publish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rotation_that_was_cut_off_leaves_usable_keys_and_can_be_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    old = create_keys(folder)
    real: Callable[..., None] = getattr(module, step)

    def cut(*arguments: object) -> None:
        if when == "after":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, step, cut)
    with pytest.raises(KeyboardInterrupt):
        rotate_signing_key(folder)
    monkeypatch.undo()
    between = load_keys(folder)
    assert between.origin == old.fingerprint
    finished, _ = rotate_signing_key(folder)
    assert finished.origin == old.fingerprint
    assert finished.fingerprint != old.fingerprint
    assert load_keys(folder).fingerprint == finished.fingerprint


@pytest.mark.parametrize("field", ["old", "new", "signature", "proof", "at", "schema"])
def test_an_edited_statement_is_refused(folder: Path, field: str) -> None:
    create_keys(folder)
    _, statement = rotate_signing_key(folder)
    other = public_key_text(new_key().public_key())
    row = statement.to_json()
    row[field] = {"at": 1.0, "schema": 2}.get(field, other if field in ("old", "new") else "00" * 64)
    (folder / "rotations.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PrivacyError):
        load_keys(folder)


def test_rotations_that_do_not_lead_to_the_key_are_refused(folder: Path, tmp_path: Path) -> None:
    create_keys(folder)
    create_keys(tmp_path / "other")
    rotate_signing_key(tmp_path / "other")
    (folder / "rotations.jsonl").write_bytes((tmp_path / "other" / "rotations.jsonl").read_bytes())
    with pytest.raises(PrivacyError, match="not the one that its recorded changes lead to"):
        load_keys(folder)
