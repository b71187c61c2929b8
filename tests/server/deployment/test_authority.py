from __future__ import annotations

import datetime
import fcntl
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_common.errors import FedwardError, InputError, OutputError, PrivacyError
from fedward_common.files import rewrite, write_new
from fedward_server.deployment import authority
from fedward_server.deployment.authority import Authority, create_authority

NAMES = ("localhost", "127.0.0.1", "fed.example.org")
SECRETS = ("ca.key", "server.key", "plan.key", "executor.secret")


@pytest.fixture
def keys(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "keys", name="lung", names=NAMES)


# ---- a real handshake --------------------------------------------------------------
def handshake(keys: Authority, *, ca: Path | None = None, name: str = "localhost") -> str:
    """What the client says of a TLS 1.3 server with these keys: the protocol, or why not."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(keys.certificate_file, keys.server_key)
    client = ssl.create_default_context(cafile=str(ca or keys.ca_file))
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(server, theirs))
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            return str(wrapped.version())
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        thread.join()


def _serve(context: ssl.SSLContext, connection: socket.socket) -> None:
    try:
        context.wrap_socket(connection, server_side=True).close()
    except OSError:
        pass
    finally:
        connection.close()


@pytest.mark.parametrize("name", NAMES)
def test_python_takes_the_certificate_under_each_name_and_strictly(keys: Authority, name: str) -> None:
    assert handshake(keys, name=name) == "TLSv1.3"


def test_a_wrong_authority_is_refused(keys: Authority, tmp_path: Path) -> None:
    other = create_authority(tmp_path / "other", name="lung", names=NAMES)
    assert "self-signed" in (said := handshake(keys, ca=other.ca_file)) or "issuer" in said or "signature" in said


@pytest.mark.parametrize("name", ["example.org", "127.0.0.2"])
def test_a_wrong_name_is_refused(keys: Authority, name: str) -> None:
    assert "mismatch" in handshake(keys, name=name)


def test_an_expired_certificate_is_refused_and_says_so(keys: Authority) -> None:
    keys.renew(NAMES, days=-2)
    assert keys.certificate().days_left() < 0
    assert "expired" in handshake(keys)
    keys.renew(NAMES)
    assert handshake(keys) == "TLSv1.3"


def test_openssl_takes_the_chain_strictly(keys: Authority) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    done = subprocess.run(
        [*command, keys.ca_file, "-verify_hostname", "fed.example.org", keys.certificate_file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("OK\n"), done.stderr


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_takes_key_and_certificate(keys: Authority, tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:18443 ssl;\n"
        f"ssl_certificate {keys.certificate_file}; ssl_certificate_key {keys.server_key};\n"
        f"ssl_protocols TLSv1.3; }} }}\n"
    )
    done = subprocess.run(
        [str(shutil.which("nginx")), "-t", "-e", tmp_path / "errors", "-c", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---- what the certificates say -----------------------------------------------------
def test_the_authority_signs_one_level_and_nothing_else(keys: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(keys.ca_file.read_bytes())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    assert (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days >= 3650
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"


def test_the_server_certificate_serves_and_signs_nothing(keys: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(keys.certificate_file.read_bytes())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert not basic.ca
    assert [purpose._name for purpose in purposes] == ["serverAuth"]
    assert keys.certificate().names == NAMES
    assert keys.certificate().days_left() in (396, 397)
    assert certificate.not_valid_before_utc < datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=23)


# ---- the files ---------------------------------------------------------------------
def test_every_file_is_private(keys: Authority) -> None:
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    for path in keys.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_key_that_exists_is_overwritten(keys: Authority) -> None:
    before = {path: path.read_bytes() for path in keys.folder.iterdir()}
    with pytest.raises(OutputError, match="never overwritten"):
        create_authority(keys.folder, name="lung", names=NAMES)
    assert {path: path.read_bytes() for path in keys.folder.iterdir()} == before


@pytest.mark.parametrize("file", [authority.SERVER_PEM, authority.SECRET])
def test_all_keys_are_there_or_none_also_after_a_crash(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_new

    def failing(path: Path, content: bytes) -> None:
        if path.name == file:
            raise OutputError("no space", hint="none")
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(authority, "write_new", failing)
        with pytest.raises(OutputError):
            create_authority(tmp_path / "keys", name="lung", names=NAMES)
    assert list(tmp_path.iterdir()) == []
    create_authority(tmp_path / "keys", name="lung", names=NAMES)


@pytest.mark.parametrize("name", SECRETS[1:])
def test_a_secret_that_is_open_or_missing_or_damaged_is_refused(keys: Authority, name: str) -> None:
    path = keys.folder / name
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match=f"{name} is open to other accounts") as caught:
        Authority.open(keys.folder)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    content = path.read_bytes()
    if name != "executor.secret":
        path.write_bytes(b"damaged")
        with pytest.raises(PrivacyError):
            Authority.open(keys.folder)
        path.write_bytes(content)
    path.unlink()
    with pytest.raises(PrivacyError, match="is missing"):
        Authority.open(keys.folder)


def test_an_open_folder_is_refused(keys: Authority) -> None:
    keys.folder.chmod(0o750)
    with pytest.raises(PrivacyError, match="is open to other accounts"):
        Authority.open(keys.folder)


def test_keys_of_two_operators_do_not_mix(keys: Authority, tmp_path: Path) -> None:
    other = create_authority(tmp_path / "other", name="lung", names=NAMES)
    for name, expected in [
        ("server.key", "do not belong together"),
        ("plan.pub", "do not agree"),
        ("ca.key", "do not belong together"),
    ]:
        content = (keys.folder / name).read_bytes()
        (keys.folder / name).write_bytes((other.folder / name).read_bytes())
        with pytest.raises(PrivacyError, match=expected):
            Authority.open(keys.folder).renew(NAMES)
        (keys.folder / name).write_bytes(content)
    Authority.open(keys.folder)


def test_the_plan_key_is_known_by_64_hex_digits(keys: Authority) -> None:
    assert keys.plan_public_file.read_text() == keys.plan_public + "\n"
    assert keys.plan_public == keys.plan_key().public_key().public_bytes_raw().hex()
    assert len(keys.plan_fingerprint) == 64
    assert len(keys.executor_secret()) == 32


# ---- renewal -----------------------------------------------------------------------
def test_a_renewed_certificate_has_a_new_key_and_the_same_authority(keys: Authority) -> None:
    ca, before, key = keys.ca_file.read_bytes(), keys.certificate(), keys.server_key.read_bytes()
    after = keys.renew(("localhost", "new.example.org"))
    assert keys.ca_file.read_bytes() == ca
    assert after.fingerprint != before.fingerprint
    assert after.names == ("localhost", "new.example.org")
    assert keys.server_key.read_bytes() != key
    assert handshake(Authority.open(keys.folder), name="new.example.org") == "TLSv1.3"
    assert not (keys.folder / "server.key.next").exists()


def test_the_authority_may_lie_elsewhere_between_renewals(keys: Authority, tmp_path: Path) -> None:
    os.rename(keys.ca_key, tmp_path / "ca.key")
    assert handshake(Authority.open(keys.folder)) == "TLSv1.3"
    with pytest.raises(PrivacyError, match=r"ca\.key is missing") as caught:
        keys.renew(NAMES)
    assert "put it back" in caught.value.hint
    os.rename(tmp_path / "ca.key", keys.ca_key)
    keys.renew(NAMES)


class Crash(BaseException):
    pass


@pytest.mark.parametrize("at", ["write_new", "rewrite", "replace"])  # os.replace is what `rewrite` ends with
@pytest.mark.parametrize("when", ["before", "after"])
def test_after_a_crash_at_any_instant_key_and_certificate_agree(
    keys: Authority, at: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = authority.os if at == "replace" else authority  # type: ignore[attr-defined]
    real = getattr(owner, at)

    def crashing(*arguments: object, **more: object) -> None:
        if when == "after":
            real(*arguments, **more)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, at, crashing)
        with pytest.raises(Crash):
            keys.renew(NAMES)
    assert handshake(Authority.open(keys.folder)) == "TLSv1.3"
    assert not (keys.folder / "server.key.next").exists()
    assert Authority.open(keys.folder).renew(NAMES).days_left() > 390


def test_a_renewal_that_is_at_work_is_never_disturbed(keys: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metrics scrape, a status and a conductor look at the keys in the middle of it; they wait."""
    seen: list[str] = []
    real, readers = rewrite, list[threading.Thread]()

    def look() -> None:
        Authority.open(keys.folder)
        seen.append("opened")

    def slow(path: Path, content: bytes) -> None:
        readers.append(threading.Thread(target=look))
        readers[0].start()
        readers[0].join(0.2)
        seen.append("written")
        real(path, content)

    monkeypatch.setattr(authority, "rewrite", slow)
    keys.renew(NAMES)
    readers[0].join()
    assert seen == ["written", "opened"]
    assert handshake(Authority.open(keys.folder)) == "TLSv1.3"


def test_of_two_renewals_at_once_the_second_waits_for_the_first(keys: Authority) -> None:
    failed: list[BaseException] = []

    def again(work: Callable[[], object]) -> None:
        try:
            for _ in range(10):
                work()
        except BaseException as error:
            failed.append(error)

    work = [lambda: keys.renew(NAMES), lambda: keys.renew(NAMES), lambda: Authority.open(keys.folder)]
    threads = [threading.Thread(target=again, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert handshake(Authority.open(keys.folder)) == "TLSv1.3"


def test_who_waits_for_a_renewal_waits_not_for_ever(keys: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "LOCK_S", 0.1)
    with keys._locked(fcntl.LOCK_EX), pytest.raises(InputError, match="locked"):
        Authority.open(keys.folder)


@pytest.mark.parametrize("name", ["server.key", "server.pem", "server.key.next"])
def test_renew_mends_a_server_pair_that_is_lost_or_damaged(keys: Authority, name: str) -> None:
    path = keys.folder / name
    for harm in (path.unlink, lambda: path.write_bytes(b"damaged")):
        path.touch(mode=0o600)
        harm()
        Authority(keys.folder).renew(NAMES)
        assert handshake(Authority.open(keys.folder)) == "TLSv1.3"


def test_renew_itself_refuses_an_open_folder(keys: Authority) -> None:
    keys.folder.chmod(0o750)
    with pytest.raises(PrivacyError, match="is open to other accounts"):
        keys.renew(NAMES)


def test_a_server_certificate_never_outlives_its_authority(keys: Authority) -> None:
    after = keys.renew(NAMES, days=9999)
    ca = x509.load_pem_x509_certificate(keys.ca_file.read_bytes())
    assert after.not_after == ca.not_valid_after_utc


def test_an_expired_authority_renews_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "CA_DAYS", -1)
    keys = create_authority(tmp_path / "keys", name="lung", names=NAMES)
    with pytest.raises(PrivacyError, match="has expired"):
        keys.renew(NAMES)


def test_days_left_counts_whole_days(keys: Authority) -> None:
    held = keys.certificate()
    assert held.days_left(now=held.not_after - datetime.timedelta(days=30, hours=1)) == 30
    assert held.days_left(now=held.not_after - datetime.timedelta(hours=1)) == 0
    assert held.days_left(now=held.not_after + datetime.timedelta(hours=1)) == -1


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff"])
def test_a_damaged_certificate_is_an_error_with_a_hint(keys: Authority, content: bytes) -> None:
    for path in (keys.ca_file, keys.certificate_file):
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(FedwardError, match="is no certificate") as caught:
            Authority.open(keys.folder)
        assert caught.value.hint
        path.write_bytes(before)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".rnd"]
