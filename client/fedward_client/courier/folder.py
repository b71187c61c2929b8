"""The courier's folder: where the operator is, whom to believe, and the node key. All that this process may read.

    courier.toml   schema, name, server "HOST:PORT", proxy, door, largest_mb
    ca.pem         the operator's CA: the only one that is believed
    node.key       ECDSA P-384, OpenSSH format, 0600, made here, never sent, never overwritten
    state/         all that the courier itself may write:
      status.json    how the courier is        session.json   the node number, to come back at once after a crash
      log.jsonl      what happened             lock           held by the courier that runs

It may lie anywhere, away from the site's folder too: the courier reads neither site.toml nor anything else of the site.

Example:
    >>> Address.parse("fed.example.org:9443")
    Address(host='fed.example.org', port=9443)
    >>> str(Address.parse("[::1]:443"))
    '[::1]:443'
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field, StrictInt

from fedward_client.courier.status import Status, deaf
from fedward_common.errors import ConfigError, InputError, OutputError
from fedward_common.files import read_foreign, rewrite, rewrite_json, write_new
from fedward_common.machine.holding import holder
from fedward_common.strict import Section, parse

__all__ = ["Address", "CourierFile", "CourierFolder", "Session"]

SCHEMA = 1
DOCS = "docs/site.md explains every key of courier.toml"
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
LONGEST_SOCKET = 107  # bytes: what a Unix socket's address holds
LONGEST_FILE = 1 << 20
STATE = "state"
BOOT = Path("/proc/sys/kernel/random/boot_id")
NEED_CA = "ask the operator for ca.pem, the certificate of the federation's own CA"


class Address(NamedTuple):
    """A TCP port of a host."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``HOST:PORT``.

        Raises:
          ConfigError: it is something else.
        """
        host, _, port = text.rpartition(":")
        if "/" in text or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise _no_address(text)
        if not (_is_ipv6(host) or HOST.fullmatch(host)):
            raise _no_address(text)
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        """As it is written in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _no_address(text: str) -> ConfigError:
    return ConfigError(f"not HOST:PORT: {text!r}", hint="for example fed.example.org:9443, without https:// and path")


def _is_ipv6(host: str) -> bool:
    try:
        return host.startswith("[") and host.endswith("]") and ipaddress.ip_address(host[1:-1]).version == 6
    except ValueError:
        return False


def _is_server(text: str) -> str:
    try:
        Address.parse(text)
    except ConfigError as error:
        raise ValueError(f"is {error}; {error.hint}") from None
    return text


def _is_proxy(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if text and (scheme != "http" or not separator):
        raise ValueError("should be http://HOST:PORT, of an HTTP proxy that knows CONNECT, or empty")
    if text:
        _is_server(rest.rpartition("@")[2].rstrip("/"))
    return text


def _is_door(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("should be an absolute path")
    if len(os.fsencode(text)) > LONGEST_SOCKET:
        raise ValueError(f"is longer than {LONGEST_SOCKET} bytes, which no Unix socket can be; choose a shorter folder")
    return text


class CourierFile(Section):
    """``courier.toml``."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    server: Annotated[str, AfterValidator(_is_server)]
    proxy: Annotated[str, AfterValidator(_is_proxy)] = ""
    door: Annotated[str, AfterValidator(_is_door)]
    largest_mb: Annotated[StrictInt, Field(ge=1, le=2000)] = 256

    @property
    def address(self) -> Address:
        """Of the operator's gateway."""
        return Address.parse(self.server)

    @property
    def next_hop(self) -> Address:
        """Where connections go: the proxy if there is one, else the gateway."""
        return (
            Address.parse(self.proxy.rpartition("@")[2].rpartition("/")[2] or self.server)
            if self.proxy
            else self.address
        )

    def to_toml(self) -> str:
        """The file's content."""
        keys = self.model_dump(by_alias=True)
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in keys.items())

    @classmethod
    def from_toml(cls, text: str, *, source: str = "courier.toml") -> Self:
        """Read and check.

        Raises:
          ConfigError: a key or a value is wrong.
        """
        return parse(cls, text, source=source, docs=DOCS, example=DOCS)


@dataclass(frozen=True, kw_only=True, eq=False)
class CourierFolder:
    """An opened courier folder: everything in it has been checked."""

    path: Path
    file: CourierFile
    ca_pem: bytes
    node_key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, path: Path, file: CourierFile, *, ca_pem: bytes) -> Self:
        """Make the folder, or finish one that a crash left half made, and open it.

        Guarantees:
          - A node key that exists is kept; ``courier.toml`` is written last and never overwritten.
          - Every file is 0600 in a folder of 0700.

        Raises:
          ConfigError: the CA is no CA certificate, or the folder is open to other accounts.
          OutputError: the folder is complete already, or the disk refuses.
        """
        ca_pem = _checked_ca(ca_pem)
        toml = path / "courier.toml"
        if toml.exists():
            raise OutputError(f"{toml} exists and is never overwritten", hint="edit it, or choose another folder")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / STATE).mkdir(mode=0o700, exist_ok=True)
            rewrite(path / "ca.pem", ca_pem)
            cls.make_key(path)
            write_new(toml, file.to_toml().encode())
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}", hint="check the folder's owner and the free disk space"
            ) from None
        return cls.open(path)

    @staticmethod
    def make_key(path: Path) -> None:
        """Make a node key where there is none. The site has to be enrolled again with it.

        Raises:
          OutputError: the disk refuses.
        """
        if not (path / "node.key").exists():
            write_new(path / "node.key", _new_key())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check everything.

        Raises:
          ConfigError: a file is missing, cannot be read, says something wrong, or is open to other accounts.
        """
        _private(path)
        _private(path / "node.key")
        _private(path / STATE)
        file = CourierFile.from_toml(_read(path / "courier.toml").decode(errors="replace"))
        ca_pem = _checked_ca(_read(path / "ca.pem"))
        return cls(path=path, file=file, ca_pem=ca_pem, node_key=_load_key(path / "node.key"))

    @property
    def node_public_key(self) -> ec.EllipticCurvePublicKey:
        """What the site's enrolment carries."""
        return self.node_key.public_key()

    @property
    def state(self) -> Path:
        """The one folder that the courier may write to."""
        return self.path / STATE

    @property
    def log_path(self) -> Path:
        """Where the courier logs."""
        return self.state / "log.jsonl"

    @property
    def lock_path(self) -> Path:
        """Held by the courier that runs, with its process number."""
        return self.state / "lock"

    @property
    def status_path(self) -> Path:
        """What the courier says of itself."""
        return self.state / "status.json"

    @property
    def session(self) -> Session:
        """The node number that the courier had."""
        return Session(path=self.state / "session.json", key_path=self.path / "node.key")

    @staticmethod
    def status(path: Path) -> Status | None:
        """What the courier that runs from this folder says of itself; None where none runs.

        It takes the folder's path, so that a folder that cannot be opened can still be asked.

        Raises:
          OutputError: the lock belongs to another account.
        """
        # whoever took a courier over may have put anything in place of these files
        number = holder(path / STATE / "lock")
        content = read_foreign(path / STATE / "status.json")
        status = Status.from_json(content.decode(errors="replace")) if content else None
        return status if status and status.pid == number else None

    @staticmethod
    def deafness(path: Path, ticks: Callable[[], float] = time.monotonic) -> str | None:
        """Why the courier of this folder must be restarted: for the supervisor's ``watch``."""
        status = CourierFolder.status(path)
        return deaf(status, ticks()) if status else None


@dataclass(frozen=True, kw_only=True)
class Session:
    """The node number of a courier that has not ended in an orderly way, so that the next one is back at once.

    Flower counts a crashed node as online for a minute and lets no one activate it; a heartbeat under its number is
    welcome. The number is bound to this boot of this machine and to this very key file: a copy of the folder elsewhere
    has to activate, and is refused while the first is online.
    """

    path: Path
    key_path: Path

    def remember(self, node_id: int) -> None:
        """Write the number; a disk that refuses costs a minute after the next crash, nothing else."""
        with contextlib.suppress(OSError, OutputError):
            rewrite_json(self.path, {"node_id": node_id, "here": self._here()})

    def recall(self) -> int | None:
        """The number, if this is the same machine, boot and key."""
        try:
            row = json.loads(read_foreign(self.path) or b"")
            return int(row["node_id"]) if row["here"] == self._here() else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def forget(self) -> None:
        """The courier has deactivated its node, or the number is no longer good."""
        self.path.unlink(missing_ok=True)

    def _here(self) -> str:
        key = self.key_path.stat()
        return f"{BOOT.read_text().strip()} {key.st_dev} {key.st_ino}"


def _new_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    return key.private_bytes(*form)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            f"{path} holds no ECDSA P-384 key without passphrase",
            hint="restore it from a backup; or move it aside, let a new one be made, and enrol the site again",
        )
    return key


def _checked_ca(pem: bytes) -> bytes:
    """The certificates alone, in one spelling."""
    if b"PRIVATE KEY" in pem:
        raise ConfigError("the CA file holds a private key, which must never travel", hint=NEED_CA)
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError("the CA file holds no certificate in PEM format", hint=NEED_CA) from None
    for each in found:
        if not _is_ca(each):
            raise ConfigError("the CA file holds a certificate that is no CA's", hint=NEED_CA)
    last = max(each.not_valid_after_utc for each in found)
    if last < _now():  # one that has expired beside its successor does no harm
        raise ConfigError(f"the CA's certificate expired on {last:%Y-%m-%d}", hint=NEED_CA)
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in found)


def _now() -> datetime:
    return datetime.now(UTC)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _private(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _missing(path, error) from None
    if mode & 0o077:
        raise ConfigError(f"{path} is open to other accounts", hint=f"chmod go= {path}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_FILE)
    except OSError as error:
        raise _missing(path, error) from None


def _missing(path: Path, error: OSError) -> InputError:
    hint = "make the folder with `fedward-client init --server`, and run as the account that owns it"
    return ConfigError(f"cannot read {path}: {error.strerror}", hint=hint)
