"""A commitment to the units of a run: a hash that hides them, and that an auditor can have opened.

A certificate carries the commitment; its nonce stays at the site, in a vault of one file a commitment. Whoever gets the
opening, an auditor, learns the keyed digests of the units and how many they are; nobody else does.

Example:
    >>> nonce = bytes(32)  # of new_nonce(), never like this
    >>> commitment = commit([b"a" * 16, b"b" * 16], nonce=nonce)
    >>> commit([b"b" * 16, b"a" * 16], nonce=nonce) == commitment, commit([b"a" * 16], nonce=nonce) == commitment
    (True, False)
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path

from fedward_common.canonical import canonical
from fedward_common.errors import MalformedMessage, OutputError, PrivacyError
from fedward_common.files import make_private_folder, write_new

__all__ = ["check_commitment", "commit", "keep_nonce", "new_nonce", "open_commitment"]

SCHEMA = 1
KIND = "fedward opening"
PURPOSE = b"fedward/commitment/1\x00"
NONCE_BYTES = 32


def new_nonce() -> bytes:
    """32 secret bytes. One for each certificate: two with the same would show that the data is the same."""
    return secrets.token_bytes(NONCE_BYTES)


def commit(units: Iterable[bytes], *, nonce: bytes) -> str:
    """SHA-256 (hex) of a nonce and the sorted digests of units.

    Guarantees:
      - The order of the digests and repetitions change nothing; any other digest does.
      - Without the nonce it says nothing about the units, nor how many they are, also where there are none: a run whose
        cost no unit could bear commits as any other.

    Raises:
      PrivacyError: the nonce has another length, or the digests are of unlike lengths.
    """
    if len(nonce) != NONCE_BYTES:
        raise PrivacyError(f"a nonce of {len(nonce)} bytes", hint="take one from new_nonce()")
    digests = sorted(set(units))
    if len(set(map(len, digests))) > 1:
        raise PrivacyError("unit digests of unlike lengths", hint="give those of the register of units")
    whole = hashlib.sha256(PURPOSE + nonce + len(digests).to_bytes(8, "little"))
    whole.update(b"".join(digests))
    return whole.hexdigest()


def keep_nonce(vault: Path, commitment: str, nonce: bytes) -> None:
    """Keep a nonce in a new file with mode 0600, in a folder with mode 0700.

    Raises:
      OutputError: the file exists, or cannot be written.
    """
    make_private_folder(vault)
    write_new(_place(vault, commitment), nonce.hex().encode() + b"\n")


def open_commitment(commitment: str, units: Iterable[bytes], *, vault: Path) -> bytes:
    """What an auditor needs: the nonce and every digest, as one JSON object. For nobody else.

    Args:
      commitment: of a certificate.
      units: the digests of the units that bear the run.
      vault: where the nonce is.

    Raises:
      OutputError: the nonce is not in the vault.
      PrivacyError: the commitment is to other units, or to nothing.
    """
    path = _place(vault, commitment)
    try:
        nonce = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        raise OutputError(f"there is no nonce in {path}", hint="restore it from a backup of the site") from None
    digests = sorted(set(units))
    _check_opens(commitment, digests, nonce)
    rows = [digest.hex() for digest in digests]
    return canonical({"kind": KIND, "nonce": nonce.hex(), "schema": SCHEMA, "units": rows}) + b"\n"


def check_commitment(commitment: str, opening: bytes) -> tuple[bytes, ...]:
    """The digests of the units that a commitment is to.

    Args:
      commitment: of a certificate that was verified.
      opening: of ``open_commitment``.

    Raises:
      MalformedMessage: this is no opening.
      PrivacyError: it opens another commitment.
    """
    try:
        row = json.loads(opening)
        if row.keys() != {"kind", "nonce", "schema", "units"} or (row["kind"], row["schema"]) != (KIND, SCHEMA):
            raise ValueError
        nonce, digests = bytes.fromhex(row["nonce"]), [bytes.fromhex(unit) for unit in row["units"]]
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise MalformedMessage("this is no opening of a commitment", hint="ask the site for one") from None
    _check_opens(commitment, digests, nonce)
    return tuple(digests)


def _check_opens(commitment: str, digests: list[bytes], nonce: bytes) -> None:
    if commit(digests, nonce=nonce) != commitment:
        raise PrivacyError("the commitment is to other units", hint="give those that bear the certificate's run")


def _place(vault: Path, commitment: str) -> Path:
    if not commitment:
        raise PrivacyError(
            "the certificate commits to no units", hint="without a column of lasting ids there is nothing to open"
        )
    return vault / f"{commitment}.nonce"
