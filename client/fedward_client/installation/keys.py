"""A site's two secrets: the key that signs what leaves, and the key that turns unit ids into digests.

    keys/signing.key     Ed25519, PKCS8 PEM       replaced by `rotate-keys`, which the old key signs
    keys/units.key       32 random bytes, hex     never replaced: with another key spending would be forgotten
    keys/signing.pub     64 hex digits, public    what an operator enrols
    keys/rotations.jsonl public                   every change of the signing key, signed by the key before

A secret file is made once, under a name that must be free, with mode 0600. This module knows no ledger and no data.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "keys"
    >>> keys = create_keys(folder)
    >>> read_public_key(public_key_text(keys.public_key)) == keys.public_key
    True
    >>> load_keys(folder).units == keys.units
    True
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_common.canonical import canonical
from fedward_common.codec import key_fingerprint, new_key
from fedward_common.errors import ConfigError, OutputError, PrivacyError
from fedward_common.files import make_private_folder, read_secret, replace_file, rewrite, write_new

__all__ = [
    "MARK",
    "Rotation",
    "SiteKeys",
    "create_keys",
    "load_keys",
    "missing_keys",
    "public_key_text",
    "read_public_key",
    "rotate_signing_key",
]

SIGNING, PUBLIC, UNITS, ROTATIONS = "signing.key", "signing.pub", "units.key", "rotations.jsonl"
MARK = "ledger.first"  # beside the keys: books that are gone, or another ledger in their place, are noticed
NEXT = "signing.key.next"  # the key of a rotation that is under way
# as fedward_common.files names what it has not finished
DRAFT = re.compile(
    rf"\.(?:{'|'.join(map(re.escape, (SIGNING, PUBLIC, UNITS, ROTATIONS, NEXT, MARK)))})\.[0-9a-f]{{16}}"
)
UNIT_KEY_BYTES = 32
RAW_KEY_BYTES = 32
SCHEMA = 1
PURPOSE = b"fedward/rotation/1\x00"
LARGEST_FILE = 1 << 20


# ---- public keys as text -----------------------------------------------------------
def public_key_text(key: Ed25519PublicKey) -> str:
    """The raw public key as 64 hex digits: what site files and enrolments hold."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def read_public_key(text: str) -> Ed25519PublicKey:
    """Read a public key: 64 hex digits, or the base64 of the 32 raw bytes.

    Raises:
      ConfigError: anything else.
    """
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != RAW_KEY_BYTES:
        raise ConfigError("this is no Ed25519 public key", hint="give 64 hex digits, or the base64 of its 32 bytes")
    return Ed25519PublicKey.from_public_bytes(raw)


# ---- a site's keys -----------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SiteKeys:
    """Both secrets of a site. ``repr`` shows the public fingerprint alone."""

    signing: Ed25519PrivateKey
    units: bytes
    rotations: tuple[Rotation, ...] = ()

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Of the signing key."""
        return self.signing.public_key()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the public key: the name under which plans address this site."""
        return key_fingerprint(self.public_key)

    @property
    def origin(self) -> str:
        """The fingerprint of the first key that this site ever had: whose its ledger is."""
        return key_fingerprint(self.public_keys[-1])

    @property
    def public_keys(self) -> tuple[Ed25519PublicKey, ...]:
        """Every public key that this site ever signed with, the present one first."""
        return (self.public_key, *(rotation.old for rotation in reversed(self.rotations)))

    def __repr__(self) -> str:
        """The fingerprint, never a secret."""
        return f"SiteKeys({self.fingerprint[:16]})"


def create_keys(folder: Path) -> SiteKeys:
    """Make whichever key is missing, each in a file of its own.

    Guarantees:
      - A secret file that exists is never written to.
      - A secret file is whole or absent, with mode 0600, also after a crash.

    Raises:
      OutputError: the folder cannot be written.
      PrivacyError: a key that exists cannot be used.
    """
    make_private_folder(folder)
    missing = missing_keys(folder)
    if UNITS in missing:
        write_new(folder / UNITS, secrets.token_hex(UNIT_KEY_BYTES).encode() + b"\n")
    if SIGNING in missing:
        write_new(folder / SIGNING, _pem(new_key()))
    keys = load_keys(folder)
    _publish(folder, keys.public_key)
    return keys


def missing_keys(folder: Path) -> tuple[str, ...]:
    """The names of the secret files that are not there."""
    return tuple(name for name in (SIGNING, UNITS) if not os.path.lexists(folder / name))


def load_keys(folder: Path) -> SiteKeys:
    """Read both secrets.

    Raises:
      PrivacyError: a key is missing, damaged, or open to other accounts; or the rotations do not lead to this key.
    """
    signing = _read_signing(folder / SIGNING)
    units = _read_units(folder / UNITS)
    rotations = _read_rotations(folder / ROTATIONS)
    _check_chain(rotations, signing.public_key())
    return SiteKeys(signing=signing, units=units, rotations=_done(rotations, signing.public_key()))


# ---- rotation ----------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """One change of the signing key: public, signed by the old key, and by the new one to show that it is held."""

    old: Ed25519PublicKey
    new: Ed25519PublicKey
    at: float
    signature: bytes
    proof: bytes

    @classmethod
    def sign(cls, old: Ed25519PrivateKey, new: Ed25519PrivateKey, *, at: float) -> Self:
        """A statement that ``new`` follows ``old``."""
        message = _message(old.public_key(), new.public_key(), at)
        return cls(
            old=old.public_key(), new=new.public_key(), at=at, signature=old.sign(message), proof=new.sign(message)
        )

    def verify(self) -> None:
        """Check both signatures.

        Raises:
          PrivacyError: one does not hold.
        """
        message = _message(self.old, self.new, self.at)
        try:
            self.old.verify(self.signature, message)
            self.new.verify(self.proof, message)
        except InvalidSignature:
            raise PrivacyError(
                "a change of the signing key is not signed by the key before it", hint="restore keys/ from a backup"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "at": self.at,
            "new": public_key_text(self.new),
            "old": public_key_text(self.old),
            "proof": self.proof.hex(),
            "schema": SCHEMA,
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_json(cls, row: Any) -> Self:
        """The rotation of a JSON object, both signatures checked.

        Raises:
          PrivacyError: it is malformed, or a signature does not hold.
        """
        try:
            if set(row) != {"at", "new", "old", "proof", "schema", "signature"} or row["schema"] != SCHEMA:
                raise ValueError("keys or schema")
            rotation = cls(
                old=read_public_key(row["old"]),
                new=read_public_key(row["new"]),
                at=float(row["at"]),
                signature=bytes.fromhex(row["signature"]),
                proof=bytes.fromhex(row["proof"]),
            )
        except (ValueError, TypeError, AttributeError, KeyError, ConfigError):
            raise PrivacyError(
                f"{ROTATIONS} is damaged", hint="restore keys/ from a backup; it is written by `rotate-keys` alone"
            ) from None
        rotation.verify()
        return rotation


def rotate_signing_key(folder: Path) -> tuple[SiteKeys, Rotation]:
    """Replace the signing key by a fresh one that the old one vouches for. An interrupted rotation is finished.

    The order is: the new key is stored beside the old one; the statement of both is appended and fsynced; only then
    does the new key take the old one's place. So at every instant the key in use follows from the statements.

    Returns:
      The keys as they are now, and the statement for whoever enrolled the old key.

    Raises:
      PrivacyError: the present keys cannot be used.
      OutputError: the folder cannot be written.
    """
    keys = load_keys(folder)
    _remove_drafts(folder)
    stated = _read_rotations(folder / ROTATIONS)
    pending = stated[-1] if stated and not _same(stated[-1].new, keys.public_key) else None
    if pending is None:
        _remove(folder / NEXT)  # of a rotation that ended before it was stated: never in use
        write_new(folder / NEXT, _pem(new_key()))
    fresh = _read_signing(folder / NEXT)
    if pending is None:
        pending = Rotation.sign(keys.signing, fresh, at=round(time.time(), 3))
        _state(folder / ROTATIONS, [*stated, pending])
    elif not _same(pending.new, fresh.public_key()):
        raise PrivacyError("an interrupted rotation cannot be finished", hint="restore keys/ from a backup")
    replace_file(folder / NEXT, folder / SIGNING)
    _publish(folder, fresh.public_key())
    return load_keys(folder), pending


def _remove_drafts(folder: Path) -> None:
    """What a crash left of our files that never got their names. Nobody else's: a snapshot's folder lies there too."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _cannot_change(folder, error) from None
    for name in names:
        if DRAFT.fullmatch(name):
            _remove(folder / name)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_change(path, error) from None


def _cannot_change(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot change {path}: {error.strerror}", hint="check the disk and who owns the folder")


def _publish(folder: Path, key: Ed25519PublicKey) -> None:
    rewrite(folder / PUBLIC, public_key_text(key).encode() + b"\n")


def _state(path: Path, rotations: Iterable[Rotation]) -> None:
    rewrite(path, b"".join(json.dumps(r.to_json(), sort_keys=True).encode() + b"\n" for r in rotations))


def _message(old: Ed25519PublicKey, new: Ed25519PublicKey, at: float) -> bytes:
    content = {"at": at, "new": public_key_text(new), "old": public_key_text(old), "schema": SCHEMA}
    return PURPOSE + canonical(content)


def _check_chain(rotations: tuple[Rotation, ...], current: Ed25519PublicKey) -> None:
    links = all(_same(a.new, b.old) for a, b in itertools.pairwise(rotations))
    ends = not rotations or _same(rotations[-1].new, current) or _same(rotations[-1].old, current)
    if not (links and ends):
        raise PrivacyError(
            "the signing key is not the one that its recorded changes lead to", hint="restore keys/ from a backup"
        )


def _done(rotations: tuple[Rotation, ...], current: Ed25519PublicKey) -> tuple[Rotation, ...]:
    return rotations if not rotations or _same(rotations[-1].new, current) else rotations[:-1]


def _same(a: Ed25519PublicKey, b: Ed25519PublicKey) -> bool:
    return public_key_text(a) == public_key_text(b)


# ---- reading files -----------------------------------------------------------------
def _read_signing(path: Path) -> Ed25519PrivateKey:
    content = read_secret(path, lost="restore keys/ from a backup made with --with-keys; docs/site-file.md says more")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PrivacyError(f"{path} is no Ed25519 private key", hint="restore keys/ from a backup")
    return key


def _read_units(path: Path) -> bytes:
    lost = "restore it from a backup made with --with-keys: with a new key everything spent would be forgotten"
    text = read_secret(path, lost=lost).strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise PrivacyError(f"{path} is damaged", hint=lost)
    return bytes.fromhex(text.decode())


def _read_rotations(path: Path) -> tuple[Rotation, ...]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise PrivacyError(f"cannot read {path}: {error.strerror}", hint="run as the account that owns it") from None
    return tuple(Rotation.from_json(_json(line)) for line in lines if line)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
