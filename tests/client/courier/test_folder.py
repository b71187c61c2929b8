from __future__ import annotations

import os
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.courier import folder as folder_module
from fedward_client.courier.faults import State
from fedward_client.courier.folder import Address, CourierFile, CourierFolder
from fedward_client.courier.status import Board, Status
from fedward_common.enrolment import Enrolment, node_fingerprint
from fedward_common.errors import ConfigError, FedwardError, OutputError
from fedward_common.machine.holding import hold
from support.fleet_api import Authority

SSH_KEYGEN = shutil.which("ssh-keygen") or "/usr/bin/ssh-keygen"
FILE = CourierFile.model_validate(
    {"schema": 1, "name": "north", "server": "fed.example.org:9443", "door": "/d/door.sock"}
)


@pytest.fixture
def made(tmp_path: Path, authority: Authority) -> CourierFolder:
    return CourierFolder.create(tmp_path / "courier", FILE, ca_pem=authority.pem)


def broken(path: Path) -> FedwardError:
    with pytest.raises(ConfigError) as caught:
        CourierFolder.open(path)
    assert caught.value.hint
    return caught.value


def test_what_was_made_opens_again(made: CourierFolder, authority: Authority) -> None:
    again = CourierFolder.open(made.path)
    assert again.file == FILE
    assert again.ca_pem == authority.pem
    assert again.node_public_key == made.node_public_key


def test_every_file_is_private(made: CourierFolder) -> None:
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in made.path.iterdir()} == {
        "ca.pem": 0o600,
        "courier.toml": 0o600,
        "node.key": 0o600,
        "state": 0o700,
    }


def test_the_key_is_openssh_s_and_goes_into_an_enrolment(made: CourierFolder) -> None:
    shown = [SSH_KEYGEN, "-lf", str(made.path / "node.key")]
    printed = subprocess.run(shown, capture_output=True, text=True, check=True)
    assert node_fingerprint(made.node_public_key) in printed.stdout
    assert "384" in printed.stdout
    text = Enrolment.sign("north", node=made.node_public_key, signing=Ed25519PrivateKey.generate()).to_text()
    assert Enrolment.from_text(text).node_key == made.node_public_key


def test_a_folder_that_exists_is_never_overwritten(made: CourierFolder, authority: Authority) -> None:
    before = (made.path / "node.key").read_bytes()
    with pytest.raises(OutputError, match="never overwritten"):
        CourierFolder.create(made.path, FILE, ca_pem=authority.pem)
    assert (made.path / "node.key").read_bytes() == before


def test_a_key_that_a_crash_left_is_kept(made: CourierFolder, authority: Authority) -> None:
    (made.path / "courier.toml").unlink()
    assert CourierFolder.create(made.path, FILE, ca_pem=authority.pem).node_public_key == made.node_public_key


@pytest.mark.parametrize("name", ["courier.toml", "ca.pem", "node.key"])
def test_a_missing_file_is_named(made: CourierFolder, name: str) -> None:
    (made.path / name).unlink()
    assert name in str(broken(made.path))


def test_no_folder(tmp_path: Path) -> None:
    assert "No such file" in str(broken(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", [".", "node.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o750])
def test_what_is_open_to_others_is_refused(made: CourierFolder, name: str, mode: int) -> None:
    (made.path / name).chmod(mode | 0o100)
    assert "chmod go=" in broken(made.path).hint


@pytest.mark.parametrize("kind", ["nothing", "text", "p256", "ed25519"])
def test_another_key_is_refused(made: CourierFolder, kind: str) -> None:
    keys: dict[str, ec.EllipticCurvePrivateKey | Ed25519PrivateKey] = {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "ed25519": Ed25519PrivateKey.generate(),
    }
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    text = keys[kind].private_bytes(*form) if kind in keys else {"nothing": b"", "text": b"no key"}[kind]
    (made.path / "node.key").write_bytes(text)
    assert "P-384" in str(broken(made.path))


def test_a_key_with_a_passphrase_is_refused(made: CourierFolder) -> None:
    (made.path / "node.key").unlink()
    make = [SSH_KEYGEN, "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", str(made.path / "node.key")]
    subprocess.run(make, check=True)
    assert "without passphrase" in str(broken(made.path))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a:1", ("a", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:443", ("::1", 443)),
        ("a-b.c:80", ("a-b.c", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert Address.parse(text) == address
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:0",
        "a:65536",
        "a:x",
        "https://a:1",
        "a:1/",
        "a b:1",
        "::1:443",
        "[1.2.3.4]:1",
        "a@b:1",
        "a:²",
        "-a:1",
        "a\n:1",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="not HOST:PORT") as caught:
        Address.parse(text)
    assert "for example" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server", "https://fed.example.org"),
        ("proxy", "https://proxy:3128"),
        ("proxy", "proxy:3128"),
        ("proxy", "socks5://proxy:3128"),
        ("proxy", "http://proxy"),
        ("door", "door.sock"),
        ("door", "/" + "d" * 107),
        ("name", ""),
        ("name", "a/b"),
        ("name", "a\n"),
        ("largest_mb", 0),
        ("largest_mb", True),
        ("schema", 2),
        ("extra", 1),
    ],
)
def test_a_wrong_key_of_the_file_is_named(key: str, value: object) -> None:
    keys = FILE.model_dump(by_alias=True) | {key: value}
    lines = [f"{name} = {str(each).lower() if isinstance(each, bool) else repr(each)}" for name, each in keys.items()]
    with pytest.raises(ConfigError, match=key):
        CourierFile.from_toml("\n".join(lines).replace("'", '"'))


@pytest.mark.parametrize("proxy", ["", "http://proxy:3128", "http://me:pass@proxy:3128", "http://[::1]:3128"])
def test_a_file_survives_itself(proxy: str) -> None:
    file = FILE.model_copy(update={"proxy": proxy})
    assert CourierFile.from_toml(file.to_toml()) == file


def test_the_next_hop_is_the_proxy_if_there_is_one() -> None:
    assert FILE.next_hop == ("fed.example.org", 9443)
    assert FILE.model_copy(update={"proxy": "http://me:pass@proxy:3128"}).next_hop == ("proxy", 3128)


class TestCa:
    """What is no CA's certificate."""

    def refused(self, pem: bytes, path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            CourierFolder.create(path / "courier", FILE, ca_pem=pem)
        assert "ask the operator" in caught.value.hint
        assert not (path / "courier").exists()
        return str(caught.value)

    @pytest.mark.parametrize("pem", [b"", b"no", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_no_certificate(self, pem: bytes, tmp_path: Path) -> None:
        assert "no certificate" in self.refused(pem, tmp_path)

    def test_a_server_s(self, authority: Authority, tmp_path: Path) -> None:
        pem = authority.serve(tmp_path).read_bytes()
        assert "private key" in self.refused(pem, tmp_path)
        assert "no CA" in self.refused(pem[: pem.index(b"-----BEGIN PRIV")], tmp_path)

    def test_expired(self, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_module, "_now", lambda: datetime(2100, 1, 1, tzinfo=UTC))
        assert "expired" in self.refused(authority.pem, tmp_path)

    def test_what_stands_round_the_certificates_is_dropped(self, authority: Authority, tmp_path: Path) -> None:
        made = CourierFolder.create(tmp_path / "courier", FILE, ca_pem=b"subject: me\n" + authority.pem)
        assert made.ca_pem == authority.pem


class TestSession:
    """The node number across a crash."""

    def test_remembered(self, made: CourierFolder) -> None:
        assert made.session.recall() is None
        made.session.remember(2**64 - 1)
        assert CourierFolder.open(made.path).session.recall() == 2**64 - 1
        made.session.forget()
        made.session.forget()
        assert made.session.recall() is None

    def test_a_copy_of_the_folder_has_to_activate(self, made: CourierFolder, tmp_path: Path) -> None:
        made.session.remember(7)
        copy = tmp_path / "copy"
        shutil.copytree(made.path, copy)
        assert CourierFolder.open(copy).session.recall() is None

    def test_another_boot_has_to_activate(
        self, made: CourierFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made.session.remember(7)
        (tmp_path / "boot").write_text("another\n")
        monkeypatch.setattr(folder_module, "BOOT", tmp_path / "boot")
        assert made.session.recall() is None

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"node_id": "x", "here": 1}', "[" * 60_000])
    def test_garbage_is_forgotten(self, made: CourierFolder, text: str) -> None:
        (made.state / "session.json").write_text(text)
        assert made.session.recall() is None


class TestStatus:
    """Asked by another process."""

    def status(self, made: CourierFolder, pid: int) -> None:
        now = time.monotonic()
        status = Status(server="s:1", version="1", pid=pid, since=0, alive_at=now - 500, contact_at=now)
        Board(made.status_path, status, lambda: now - 500)

    def test_none_runs(self, made: CourierFolder) -> None:
        assert CourierFolder.status(made.path) is None
        self.status(made, os.getpid())
        assert CourierFolder.status(made.path) is None
        assert CourierFolder.status(made.path / "nowhere") is None

    def test_one_runs(self, made: CourierFolder) -> None:
        self.status(made, os.getpid())
        with hold(made.lock_path):
            status = CourierFolder.status(made.path)
            assert status is not None
            assert status.state is State.CONNECTING
            assert "stood still" in str(CourierFolder.deafness(made.path))

    def test_the_marks_of_a_former_one_are_not_held_against_the_next(self, made: CourierFolder) -> None:
        self.status(made, 1)
        with hold(made.lock_path):
            assert CourierFolder.deafness(made.path) is None
