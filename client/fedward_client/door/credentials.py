"""Keys by which a site's two processes know each other: made anew at each start, in memory.

Two certificates pin each other. There is no authority: each side trusts one certificate, the other's.

Each gets its half by file descriptor, from the process that starts both; or, as two services, the trainer makes both
halves and leaves the courier's in a file that only the courier's group reads.

Example:
    >>> pair = Pair.make()
    >>> descriptor = pair.courier.to_fd()
    >>> Half.from_fd(descriptor) == pair.courier
    True
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_client.door.place import Place
from fedward_common.errors import DoorClosed, DoorRefused, OutputError, PrivacyError

__all__ = ["COURIER", "TRAINER", "Half", "Pair", "Published", "Source", "publish"]

TRAINER, COURIER = "trainer.fedward", "courier.fedward"
MOST_BYTES = 16 * 1024
BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n")
KINDS = [b"PRIVATE KEY", b"CERTIFICATE", b"CERTIFICATE"]
# The keys are fresh because they are made at each start, not because a date says so: no clock can end a running site.
SINCE, UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)
SHARED_FILE = 0o640


class Source(Protocol):
    """Whoever has a half of the keys: a half itself, or the file in which the newest lies."""

    def load(self) -> Half:
        """The half that holds now."""
        ...


@dataclass(frozen=True, kw_only=True)
class Half:
    """What one process needs: its own key and certificate, and the other's certificate. All PEM."""

    key: bytes = field(repr=False)
    certificate: bytes
    peer: bytes

    def load(self) -> Half:
        """Itself."""
        return self

    def to_bytes(self) -> bytes:
        """Key, own certificate, the other's certificate."""
        return self.key + self.certificate + self.peer

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
          DoorRefused: it is something else.
        """
        if [found[1] for found in BLOCK.finditer(data)] != KINDS or BLOCK.sub(b"", data):
            raise DoorRefused("these are no credentials of the door", hint="start trainer and courier together again")
        key, certificate, peer = (found[0] for found in BLOCK.finditer(data))
        return cls(key=key, certificate=certificate, peer=peer)

    def to_fd(self) -> int:
        """A descriptor to hand to a child with ``pass_fds``; the same one serves each of its lives. Never on a disk."""
        descriptor = os.memfd_create("fedward-door", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, self.to_bytes())
        return descriptor

    @classmethod
    def from_fd(cls, descriptor: int) -> Self:
        """Read a half from a descriptor, from its beginning where it has one, and close it.

        Raises:
          DoorRefused: it holds no half, or is no open descriptor.
        """
        data = b""
        with contextlib.suppress(OSError):
            try:
                data = os.pread(descriptor, MOST_BYTES, 0)
            except OSError:  # a pipe
                with os.fdopen(os.dup(descriptor), "rb") as pipe:
                    data = pipe.read(MOST_BYTES)
            os.close(descriptor)
        return cls.from_bytes(data)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both halves. Whoever makes them hands each to its process and keeps none longer than that."""

    trainer: Half
    courier: Half

    @classmethod
    def make(cls) -> Self:
        """Two new keys, and two certificates that pin each other."""
        (trainer_key, trainer), (courier_key, courier) = _self_signed(TRAINER), _self_signed(COURIER)
        return cls(
            trainer=Half(key=trainer_key, certificate=trainer, peer=courier),
            courier=Half(key=courier_key, certificate=courier, peer=trainer),
        )


@dataclass(frozen=True)
class Published:
    """The courier's half, where the trainer last put it: read anew at each call, since each start makes new keys."""

    place: Place

    def load(self) -> Half:
        """The half that lies there now.

        Raises:
          DoorClosed: there is none: no trainer has started yet.
          DoorRefused: this account may not read it, or others than its group may.
        """
        try:
            descriptor = os.open(self.place.half, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DoorClosed(f"there is no {self.place.half}", hint="start the trainer first") from None
        except OSError as error:
            raise DoorRefused(
                f"cannot read {self.place.half}: {error.strerror}",
                hint="put the courier's account into the door's group",
            ) from None
        if os.fstat(descriptor).st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            os.close(descriptor)
            raise DoorRefused(f"{self.place.half} is open to other accounts", hint="start the trainer again")
        return Half.from_fd(descriptor)


def publish(half: Half, place: Place) -> None:
    """Put the courier's half into the door's folder, in place of that of an earlier start.

    Guarantees:
      - The file is whole old or whole new, mode 0640, and its group is the folder's.

    Raises:
      OutputError: it cannot be written.
      PrivacyError: the file would not get the folder's group.
    """
    draft = place.half.with_name(f".{place.half.name}.{secrets.token_hex(8)}")
    try:
        _write(draft, half.to_bytes(), place.folder)
        os.replace(draft, place.half)
    except OSError as error:
        raise OutputError(f"cannot write {place.half}: {error.strerror}", hint="check who owns the folder") from None
    finally:
        draft.unlink(missing_ok=True)


def _write(draft: Path, data: bytes, folder: Path) -> None:
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if os.fstat(descriptor).st_gid != folder.stat().st_gid:
            raise PrivacyError(
                f"{draft.name} would belong to another group than its folder", hint="chmod 2750 the folder"
            )
        os.fchmod(descriptor, SHARED_FILE)
        file.write(data)


def _self_signed(name: str) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(SINCE)
        .not_valid_after(UNTIL)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret, certificate.public_bytes(serialization.Encoding.PEM)
