"""The operator's keys: a certificate authority for one certificate, the key that signs plans, and a local secret.

    keys/  ca.key  ca.pem            P-384, ten years: what sites pin. ca.key may be kept elsewhere between renewals
           server.key  server.pem    P-384, 397 days: the gateway's; `renew` makes both anew
           plan.key  plan.pub        Ed25519: signs plans; sites know the operator by it
           executor.secret           32 random bytes between SuperLink and desk; means nothing elsewhere

P-384 because every TLS stack takes it. All keys appear together or not at all, each with mode 0600, and no command
overwrites one but ``renew`` the server's. Whoever changes a key holds a lock on the folder, and whoever reads the pair
shares it: nobody sees, or mends, a renewal that is still at work. This module opens no socket.

Example:
    >>> import tempfile
    >>> keys = create_authority(Path(tempfile.mkdtemp()) / "keys", name="lung", names=("fed.example.org",))
    >>> keys.certificate().names, keys.certificate().days_left() > 390
    (('fed.example.org',), True)
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedward_common.errors import InputError, OutputError, PrivacyError
from fedward_common.files import check_private, read_secret, rewrite, sync_folder, write_new

__all__ = ["WARN_BELOW_DAYS", "Authority", "ServerCertificate", "create_authority"]

CA_KEY, CA_PEM = "ca.key", "ca.pem"
SERVER_KEY, SERVER_PEM, NEXT_KEY = "server.key", "server.pem", "server.key.next"
PLAN_KEY, PLAN_PUB, SECRET = "plan.key", "plan.pub", "executor.secret"
CA_DAYS, SERVER_DAYS = 3653, 397
WARN_BELOW_DAYS = 30
SECRET_BYTES = 32
BACKDATED = datetime.timedelta(days=1)  # a site's clock may be behind
RESTORE = "restore keys/ from a backup"
LONGEST_COMMON_NAME = 64
LOCK_S, PAUSE_S = 10.0, 0.02  # a renewal takes an instant


@dataclass(frozen=True, kw_only=True)
class ServerCertificate:
    """What the gateway shows: for whom, and until when."""

    names: tuple[str, ...]
    not_after: datetime.datetime
    fingerprint: str

    def days_left(self, *, now: datetime.datetime | None = None) -> int:
        """Whole days until it expires; below zero when it has."""
        return (self.not_after - (now or _now())).days


@dataclass(frozen=True)
class Authority:
    """The folder of the operator's keys."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The keys that ``create_authority`` made; an interrupted renewal is settled, one at work is waited for.

        Guarantees:
          - A renewal that is at work is never disturbed.

        Raises:
          PrivacyError: the folder or a secret is open to other accounts, or a file is missing or damaged.
          InputError: another process has been renewing for long.
        """
        keys = cls(folder)
        check_private(folder)
        if keys._next_key.exists():
            with keys._locked(fcntl.LOCK_EX):
                keys._settle()
        for path in (keys.plan_key_file, keys.secret_file):
            read_secret(path, lost=RESTORE)
        with keys._locked(fcntl.LOCK_SH):
            _check_pair(keys.certificate_file, keys.server_key)
        keys.plan_key()
        _load_certificate(keys.ca_file)
        return keys

    @property
    def ca_file(self) -> Path:
        """The certificate that sites pin; public."""
        return self.folder / CA_PEM

    @property
    def ca_key(self) -> Path:
        """The authority's secret; needed by ``renew`` alone."""
        return self.folder / CA_KEY

    @property
    def certificate_file(self) -> Path:
        """The gateway's certificate; public."""
        return self.folder / SERVER_PEM

    @property
    def server_key(self) -> Path:
        """The gateway's secret."""
        return self.folder / SERVER_KEY

    @property
    def plan_key_file(self) -> Path:
        """The secret that signs plans."""
        return self.folder / PLAN_KEY

    @property
    def plan_public_file(self) -> Path:
        """The public half of it, 64 hex digits: what sites write into their site file."""
        return self.folder / PLAN_PUB

    @property
    def secret_file(self) -> Path:
        """What SuperLink and desk share."""
        return self.folder / SECRET

    def certificate(self) -> ServerCertificate:
        """What the gateway shows.

        Raises:
          PrivacyError: it is missing or damaged.
        """
        loaded = _load_certificate(self.certificate_file)
        return ServerCertificate(
            names=_names_of(loaded),
            not_after=loaded.not_valid_after_utc,
            fingerprint=loaded.fingerprint(hashes.SHA256()).hex(),
        )

    def plan_key(self) -> Ed25519PrivateKey:
        """The key that signs plans.

        Raises:
          PrivacyError: it is missing, damaged, open to other accounts, or not the one of plan.pub.
        """
        key = _load_key(self.plan_key_file)
        if not isinstance(key, Ed25519PrivateKey):
            raise PrivacyError(f"{self.plan_key_file} is no Ed25519 private key", hint=RESTORE)
        try:
            public = self.plan_public_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise PrivacyError(f"cannot read {self.plan_public_file}", hint=RESTORE) from None
        if public != _raw_hex(key):
            raise PrivacyError(f"{self.plan_key_file} and {self.plan_public_file} do not agree", hint=RESTORE)
        return key

    @property
    def plan_public(self) -> str:
        """The operator's public key, 64 hex digits."""
        return _raw_hex(self.plan_key())

    @property
    def plan_fingerprint(self) -> str:
        """SHA-256 (hex) of the operator's public key: what a site's ``check`` prints."""
        from fedward_common.codec import key_fingerprint  # brings numpy, and with it threads: see folder.py

        return key_fingerprint(self.plan_key().public_key())

    def executor_secret(self) -> bytes:
        """What SuperLink and desk share.

        Raises:
          PrivacyError: it is missing or open to other accounts.
        """
        return read_secret(self.secret_file, lost=RESTORE)

    def renew(self, names: Sequence[str], *, days: int = SERVER_DAYS) -> ServerCertificate:
        """A new server key and certificate from the same authority, so that no site has to do anything.

        The former pair is not asked for, so ``Authority(folder).renew`` mends one that is lost or damaged.

        Guarantees:
          - After a crash at any instant key and certificate agree once the folder was opened again.
          - Of two renewals at once the second waits for the first.

        Raises:
          PrivacyError: ca.key is missing, damaged, or of another authority; or the authority has expired.
          OutputError: the folder cannot be written.
          InputError: another process has been renewing for long.
        """
        check_private(self.folder)
        issuer, issuer_key = self._issuer()
        if issuer.not_valid_after_utc <= _now():
            raise PrivacyError(
                f"the authority {self.ca_file} has expired", hint="make a new operator's folder; every site must get it"
            )
        fresh = ec.generate_private_key(ec.SECP384R1())
        with self._locked(fcntl.LOCK_EX):
            with contextlib.suppress(PrivacyError):  # of a former renewal, as far as it can be mended
                self._settle()
            self._next_key.unlink(missing_ok=True)
            write_new(self._next_key, _pem(fresh))
            rewrite(self.certificate_file, _server_certificate(fresh, names, issuer, issuer_key, days=days))
            self._settle()
            return self.certificate()

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PrivacyError(f"cannot read {self.folder}: {error.strerror}", hint=RESTORE) from None
        try:
            self._lock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, kind: int) -> None:
        end = time.monotonic() + LOCK_S
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if time.monotonic() >= end:
                raise InputError(f"another process has {self.folder} locked", hint="let `fedward-server renew` end")
            time.sleep(PAUSE_S)

    @property
    def _next_key(self) -> Path:
        return self.folder / NEXT_KEY

    def _issuer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        read_secret(self.ca_key, lost="put it back into keys/ for as long as `renew` takes, or restore a backup")
        _check_pair(self.ca_file, self.ca_key)
        key = _load_key(self.ca_key)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PrivacyError(f"{self.ca_key} is no key of this authority", hint=RESTORE)
        return _load_certificate(self.ca_file), key

    def _settle(self) -> None:
        """Finish a renewal that was interrupted: the certificate says which of both keys is the right one."""
        if not self._next_key.exists():
            return
        fresh = _load_key(self._next_key)
        if _public(fresh.public_key()) == _public(_load_certificate(self.certificate_file).public_key()):
            os.replace(self._next_key, self.server_key)
        else:
            self._next_key.unlink()
        sync_folder(self.folder)


def create_authority(folder: Path, *, name: str, names: Sequence[str], days: int = SERVER_DAYS) -> Authority:
    """Make all keys of an operator, in a folder that must not exist.

    Args:
      folder: of the keys.
      name: of the federation; stands in the authority's certificate.
      names: DNS names and IP addresses of the gateway.
      days: how long the server certificate holds.

    Guarantees:
      - All keys are there, or none, also after a crash.
      - No key that exists is overwritten.

    Raises:
      OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists and is never overwritten", hint="move it aside yourself")
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    try:
        draft.mkdir(mode=0o700)
        _make_keys(draft, name, names, days)
        os.rename(draft, folder)  # refuses a folder that holds anything
        sync_folder(folder.parent)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}", hint="check the disk") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Authority(folder)


def _make_keys(folder: Path, name: str, names: Sequence[str], days: int) -> None:
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    certificate, plan = _ca_certificate(authority, name), Ed25519PrivateKey.generate()
    for file, content in {
        CA_KEY: _pem(authority),
        CA_PEM: certificate.public_bytes(serialization.Encoding.PEM),
        SERVER_KEY: _pem(server),
        SERVER_PEM: _server_certificate(server, names, certificate, authority, days=days),
        PLAN_KEY: _pem(plan),
        PLAN_PUB: _raw_hex(plan).encode() + b"\n",
        SECRET: secrets.token_bytes(SECRET_BYTES),
    }.items():
        write_new(folder / file, content)


# ---- certificates ------------------------------------------------------------------
def _ca_certificate(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    subject = _subject(f"fedward authority {name}")
    return (
        _builder(key.public_key(), subject, subject, until=_now() + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
) -> bytes:
    until = min(_now() + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    certificate = (
        _builder(key.public_key(), _subject(names[0]), issuer.subject, until=until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(authority, critical=False)
        .sign(issuer_key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, *, until: datetime.datetime
) -> x509.CertificateBuilder:
    start = min(_now(), until) - BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:LONGEST_COMMON_NAME])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(str(name.value) for name in found if isinstance(name, x509.DNSName | x509.IPAddress))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# ---- files -------------------------------------------------------------------------
def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _raw_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey | Ed25519PrivateKey:
    content = read_secret(path, lost=RESTORE)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise PrivacyError(f"{path} is no private key of fedward", hint=RESTORE)
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise PrivacyError(f"cannot read {path}: {error.strerror}", hint=RESTORE) from None
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        raise PrivacyError(f"{path} is no certificate", hint=RESTORE) from None


def _check_pair(certificate: Path, key: Path) -> None:
    if _public(_load_certificate(certificate).public_key()) != _public(_load_key(key).public_key()):
        raise PrivacyError(f"{certificate} and {key} do not belong together", hint=RESTORE)
