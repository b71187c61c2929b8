"""Seals: the site's signatures under the entries of a journal and under its head, and the two slots that keep the head.

A head says how long the journal is, in entries and in bytes, and what those bytes hash to. Its file holds two slots of
512 bytes, written in turn, so that a crash while one is written leaves the other. Each signature is made behind a
prefix with the journal's name and purpose: no entry of the audit log passes as one of the ledger.

Example:
    >>> seal = Seal.of("ledger", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    >>> data = first_slots(seal)
    >>> (len(data), newest(data, seal).head.sequence)
    (1024, 0)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_common.canonical import canonical
from fedward_common.errors import BudgetError, FedwardError
from fedward_common.privacy import checks

__all__ = ["SLOT_BYTES", "Head", "Newest", "Seal", "first_slots", "newest"]

SCHEMA = 2
SLOT_BYTES = 512  # one sector: the smallest piece that a disk writes
KEYS = ("content", "digest", "length", "schema", "sequence", "signature")
ENTRY, HEAD = b"entry", b"head"


@dataclass(frozen=True, kw_only=True, eq=False)
class Seal:
    """Signs and checks for one journal of one site.

    Args:
      name: of the journal, in the signed bytes.
      public_keys: every key that the site signed with, the present one first.
      key: the present one's secret; None where nothing is to be signed.
    """

    name: str
    public_keys: tuple[Ed25519PublicKey, ...]
    key: Ed25519PrivateKey | None = None

    @classmethod
    def of(cls, name: str, key: Ed25519PrivateKey, earlier: tuple[Ed25519PublicKey, ...] = ()) -> Self:
        """The seal of a site that holds this key and once held the earlier ones."""
        return cls(name=name, key=key, public_keys=(key.public_key(), *earlier))

    def sign_entry(self, digest: str) -> str:
        """The signature (hex) under an entry's digest, which covers all entries before it."""
        return self._sign(ENTRY, bytes.fromhex(digest))

    def entry_holds(self, digest: str, signature: object) -> bool:
        """Say whether a key of this site signed an entry of this journal with this digest."""
        return self._holds(ENTRY, bytes.fromhex(digest), signature)

    def _sign(self, purpose: bytes, message: bytes) -> str:
        if self.key is None:
            raise BudgetError("a journal that was opened for reading cannot be written", hint="open it with its key")
        return self.key.sign(self._prefixed(purpose, message)).hex()

    def _holds(self, purpose: bytes, message: bytes, signature: object) -> bool:
        try:
            raw = bytes.fromhex(signature) if isinstance(signature, str) else b""
        except ValueError:
            return False
        return any(_verified(key, raw, self._prefixed(purpose, message)) for key in self.public_keys)

    def _prefixed(self, purpose: bytes, message: bytes) -> bytes:
        return b"fedward/%s/%d/%s\x00" % (self.name.encode(), SCHEMA, purpose) + message


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a journal must hold: its first ``length`` bytes, with SHA-256 ``content``, are ``sequence`` entries.

    ``digest`` is that of the last of them; "" when there is none.
    """

    sequence: int
    length: int
    content: str
    digest: str

    def to_slot(self, seal: Seal) -> bytes:
        """512 bytes: signed JSON, spaces, a line end."""
        row = self._row()
        text = canonical({**row, "signature": seal._sign(HEAD, canonical(row))})
        return text.ljust(SLOT_BYTES - 1) + b"\n"

    @classmethod
    def from_slot(cls, data: bytes, seal: Seal) -> Self | None:
        """The head of a slot; None where the slot is torn, damaged, or not signed by this site."""
        try:
            row = checks.table(json.loads(data), KEYS, where="a head")
            head = cls(
                sequence=checks.integer(row["sequence"], where="sequence"),
                length=checks.integer(row["length"], where="length"),
                content=checks.text(row["content"], where="content"),
                digest=str(row["digest"]),
            )
        except (ValueError, FedwardError):
            return None
        holds = seal._holds(HEAD, canonical(head._row()), row["signature"]) and row["schema"] == SCHEMA
        return head if holds and data == canonical(row).ljust(SLOT_BYTES - 1) + b"\n" else None

    def _row(self) -> dict[str, Any]:
        return {
            "content": self.content,
            "digest": self.digest,
            "length": self.length,
            "schema": SCHEMA,
            "sequence": self.sequence,
        }

    @property
    def slot_offset(self) -> int:
        """Where in the file this head belongs: even and odd ones take turns."""
        return (self.sequence % 2) * SLOT_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Newest:
    """The newest whole head, and whether the other slot is torn: then its entry was on disk before."""

    head: Head
    torn: bool


def first_slots(seal: Seal) -> bytes:
    """The head file of an empty journal."""
    return Head(sequence=0, length=0, content=hashlib.sha256().hexdigest(), digest="").to_slot(seal) * 2


def newest(data: bytes, seal: Seal) -> Newest:
    """The newest head of a head file.

    Raises:
      BudgetError: no slot is whole and of this site, or the two do not follow each other.
    """
    slots = [Head.from_slot(data[i * SLOT_BYTES : (i + 1) * SLOT_BYTES], seal) for i in range(2)]
    whole = [head for head in slots if head is not None]
    if not whole or len(data) != 2 * SLOT_BYTES:
        raise _damaged(f"no head of the {seal.name} is signed by this site")
    head = max(whole, key=lambda each: each.sequence)
    placed = all(each is None or each.sequence == 0 or each.sequence % 2 == i for i, each in enumerate(slots))
    if not placed or any(head.sequence - each.sequence > 1 for each in whole):
        raise _damaged(f"the two heads of the {seal.name} do not follow each other")
    return Newest(head=head, torn=len(whole) == 1)


def _verified(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _damaged(what: str) -> BudgetError:
    return BudgetError(
        f"{what}: it was damaged, edited, or copied from another site",
        hint="restore a true copy from a backup, then reconcile it with the coordinators' records",
    )
