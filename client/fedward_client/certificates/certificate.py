"""A certificate: what one run, and all runs together, cost the units of a site's data, signed for others to check.

    {"certificate": {data, run, life, ledger, accounting, noise, waivers, code, reading, ...}, "signature": hex}

Whatever follows from the ledger's entries is computed by one function, when a certificate is made and again when it is
verified. An entry that tells how a round ended is never shown: that may depend on data. The text under ``reading`` says
what a stranger can verify and what not. docs/verify_certificate.py checks a file without fedward.

Example:
    >>> from fedward_client.certificates.commitment import new_nonce
    >>> from fedward_common.codec import new_key
    >>> from fedward_common.privacy.grants import Budget
    >>> from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms
    >>> from fedward_common.privacy.ledger import Ledger
    >>> metrics = MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0)
    >>> stage = StageTerms(name="head", sampling_rate=1.0, rounds=1, local_steps=1, noise_ratio=1.0)
    >>> terms = PrivacyTerms(epsilon=2.0, delta=1e-5, unit=Unit.RECORD, clip_norm=1.0, max_records_per_unit=1,
    ...                      stages=(stage,), metrics=metrics)
    >>> ledger = Ledger.in_memory(Budget(epsilon=8.0, delta=1e-4))
    >>> grant = ledger.reserve(ledger.quote(terms), run_id="run-1")
    >>> data = make(ledger.export(), Subject(run_id="run-1"), key=new_key(), units=None, nonce=new_nonce(), at=0.0)
    >>> verify(data).run_id, verify(data).epsilon <= 2.0
    ('run-1', True)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import fedward_client
import fedward_common
from fedward_client.certificates.claims import KIND, READING, SCHEMA, content_of, is_shown
from fedward_client.certificates.commitment import commit, keep_nonce
from fedward_client.installation.keys import public_key_text, read_public_key
from fedward_common.canonical import canonical
from fedward_common.codec import key_fingerprint
from fedward_common.errors import BadSignature, BudgetError, FedwardError, MalformedMessage, PrivacyError
from fedward_common.files import write_new
from fedward_common.privacy import checks
from fedward_common.privacy.facts import fact_of
from fedward_common.privacy.guarantee import Unit
from fedward_common.privacy.journal import Entry, linked

__all__ = ["Subject", "Trust", "Verified", "make", "verify", "write"]

PURPOSE = b"fedward/certificate/%d\x00" % SCHEMA
LARGEST_FILE = 32 * 2**20
FOUR_DIGITS = 1e-4

COMPUTED = re.compile(r"certificate\.(run|life|life\.grants\[\d+\])\.epsilon")


class Trust(StrEnum):
    """Whose word it is that the public key is the site's."""

    GIVEN = "given"  # the verifier brought the key
    EMBEDDED = "embedded"  # the file's own: it shows that the file is whole, not who wrote it


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a certificate is about, on the site's own word.

    Args:
      run_id: of a run that the ledger granted.
      adapter_digest: of the last adapter that the site saw or made in this run; "" for none.
      waivers: of promises, in force at this site while the run went on.
    """

    run_id: str
    adapter_digest: str = ""
    waivers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a certificate says, after every check that a stranger can make held.

    Attributes:
      run_id, unit, epsilon, delta: the run, and what it cost each unit of its data.
      life_epsilon, life_delta: what all grants of the ledger cost a unit at most.
      site: fingerprint of the public key that signed.
      trust: whether that key was given or is only the file's own.
      sequence, head: of the ledger.
      commitment: to the units; "" where spending belongs to the source as a whole.
      adapter_digest, waivers, issued: as the site states them.
      shown, not_shown: what can be verified and what not, in words.
    """

    run_id: str
    unit: Unit
    epsilon: float
    delta: float
    life_epsilon: float
    life_delta: float
    site: str
    trust: Trust
    sequence: int
    head: str
    commitment: str
    adapter_digest: str
    waivers: tuple[str, ...]
    issued: str
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]

    @classmethod
    def _of(cls, content: Mapping[str, Any], trust: Trust) -> Self:
        run, life, ledger = content["run"], content["life"], content["ledger"]
        shown, not_shown = READING.values()
        return cls(
            run_id=run["id"],
            unit=Unit(run["unit"]),
            epsilon=run["epsilon"],
            delta=run["delta"],
            life_epsilon=life["epsilon"],
            life_delta=life["delta"],
            site=key_fingerprint(read_public_key(content["public_key"])),
            trust=trust,
            sequence=ledger["sequence"],
            head=ledger["head"],
            commitment=content["data"]["commitment"],
            adapter_digest=run["adapter_digest"],
            waivers=tuple(content["waivers"]),
            issued=content["issued"],
            shown=tuple(shown),
            not_shown=tuple(not_shown),
        )


# ---- make and verify ---------------------------------------------------------------
def make(
    rows: Iterable[Mapping[str, Any]],
    subject: Subject,
    *,
    key: Ed25519PrivateKey,
    units: Iterable[bytes] | None,
    nonce: bytes,
    at: float,
) -> bytes:
    """The certificate of a run.

    Args:
      rows: all entries of the ledger, as ``Ledger.export`` or ``DurableJournal.read`` gives them.
      subject: the run, and what the site states about it.
      key: the site's signing key.
      units: keyed digests of the units that bear the run, perhaps of none; None where the data source as a whole does.
      nonce: of ``new_nonce``, for this certificate alone.
      at: seconds since the epoch.

    Returns:
      A JSON object, in the one spelling that ``verify`` accepts.

    Guarantees:
      - ``verify`` accepts it, and no file that differs from it in a byte.
      - It shows nothing of the data, nor of how rounds ended, but how many entries the ledger has: the commitment hides
        the units and their number, and no epsilon depends on which units bore which grants.

    Raises:
      BudgetError: the rows are no ledger, or the run was never granted.
      PrivacyError: the units are missing, or the nonce is not one.
    """
    entries = linked({name: row[name] for name in row if name != "signature"} for row in rows)
    if not entries:
        raise BudgetError("the ledger is empty", hint="open it with its budget first")
    commitment = "" if units is None else commit(units, nonce=nonce)
    stated: dict[str, Any] = {
        "accounting": {"version": metadata.version("dp-accounting")},
        "code": {"fedward": metadata.version("fedward"), "sources": _sources()},
        "data": {"commitment": commitment},
        "issued": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        "ledger": {"head": entries[-1].digest, "sequence": entries[-1].sequence},
        "public_key": public_key_text(key.public_key()),
        "run": {"adapter_digest": subject.adapter_digest, "id": subject.run_id},
        "waivers": sorted(subject.waivers),
    }
    content = content_of(stated, [entry for entry in entries if is_shown(fact_of(entry.body))])
    return _spelled({"certificate": content, "signature": key.sign(PURPOSE + canonical(content)).hex()})


def verify(data: bytes, *, key: Ed25519PublicKey | None = None) -> Verified:
    """Check everything about a certificate that a stranger can check.

    Args:
      data: the whole file.
      key: the site's public key, from a source that is trusted; None: the key in the file.

    Guarantees:
      - A file that differs in any byte from one that was signed is refused.
      - Every epsilon is computed anew from the events, and agrees to four digits.

    Raises:
      MalformedMessage: no certificate of a known schema, or not in its one spelling.
      BadSignature: not signed by this key.
      PrivacyError: an entry, a link or a number does not follow from the ledger's entries.
    """
    content, signature = _parsed(data)
    embedded = _embedded_key(content)
    signer = embedded if key is None else key
    try:
        signer.verify(signature, PURPOSE + canonical(content))
    except InvalidSignature:
        raise BadSignature("the certificate is not signed by this key", hint="compare its public_key") from None
    if public_key_text(signer) != content["public_key"]:
        raise BadSignature("the certificate names another key", hint="ask the site for one that its key signed")
    _check_follows(content, _recomputed(content))
    return Verified._of(content, Trust.EMBEDDED if key is None else Trust.GIVEN)


def write(path: Path, certificate: bytes, *, nonce: bytes, vault: Path) -> None:
    """Write a certificate to a new file, after its nonce, which stays at the site.

    Args:
      path: must not exist.
      certificate: of ``make``.
      nonce: the one that it was made with.
      vault: a folder of the site, mode 0700; the nonce gets a file of its own in it, mode 0600, by the commitment.

    Raises:
      OutputError: a file exists or cannot be written.
    """
    commitment = _parsed(certificate)[0]["data"]["commitment"]
    if commitment:
        keep_nonce(vault, commitment, nonce)
    write_new(path, certificate)


def _sources() -> str:
    """SHA-256 (hex) of every source file of a site's packages, by name."""
    whole = hashlib.sha256()
    for package in (fedward_client, fedward_common):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            name = f"{package.__name__}/{path.relative_to(root).as_posix()}"
            whole.update(canonical([name, hashlib.sha256(path.read_bytes()).hexdigest()]))
    return whole.hexdigest()


# ---- reading a file ------------------------------------------------------------------
def _spelled(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode("ascii") + b"\n"


def _parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        if len(data) > LARGEST_FILE:
            raise ValueError
        whole = json.loads(data)
        if _spelled(whole) != data or not re.fullmatch("[0-9a-f]{128}", whole["signature"]):
            raise ValueError
        content = whole["certificate"]
        if set(whole) != {"certificate", "signature"} or (content["kind"], content["schema"]) != (KIND, SCHEMA):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError, MalformedMessage):
        raise MalformedMessage(
            "this is no certificate in its one spelling", hint=f"this version reads schema {SCHEMA}; copy files whole"
        ) from None
    return content, bytes.fromhex(whole["signature"])


def _embedded_key(content: Mapping[str, Any]) -> Ed25519PublicKey:
    try:
        return read_public_key(content["public_key"])
    except (FedwardError, AttributeError, KeyError):
        raise MalformedMessage("the certificate's public_key is none", hint="ask the site for a whole copy") from None


def _recomputed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate as ``make`` would write it from the same entries and statements."""
    try:
        entries = _shown(checks.rows(content["ledger"]["entries"], where="the ledger's entries"), content["ledger"])
        stated: dict[str, Any] = {
            "accounting": {"version": checks.text(content["accounting"]["version"], where="the accountant's version")},
            "code": {name: checks.text(content["code"][name], where="code") for name in ("fedward", "sources")},
            "data": {"commitment": _digest_or_nothing(content["data"]["commitment"])},
            "issued": datetime.fromisoformat(content["issued"]).isoformat(timespec="seconds"),
            "ledger": {name: content["ledger"][name] for name in ("head", "sequence")},
            "public_key": content["public_key"],
            "run": {name: content["run"][name] for name in ("adapter_digest", "id")},
            "waivers": sorted(checks.text(name, where="a waiver") for name in content["waivers"]),
        }
        return content_of(stated, entries)
    except (TypeError, KeyError, ValueError, AttributeError, MalformedMessage):
        raise PrivacyError("the certificate is signed, but malformed", hint="ask the site for another") from None


def _shown(rows: Sequence[Any], ledger: Mapping[str, Any]) -> list[Entry]:
    """The entries, each with the digest of its content, linked where one follows the other, up to the head."""
    entries = [Entry(**checks.table(row, Entry.__slots__, where="a ledger entry")) for row in rows]
    beyond = {"sequence": ledger["sequence"] + 1, "previous": ledger["head"], "at": math.inf}
    ends = [*entries, Entry(body={}, nonce="", digest="", **beyond)]
    holds = bool(entries) and entries[0].sequence == 1 and not entries[0].previous
    for entry, after in zip(entries, ends[1:], strict=True):
        holds &= entry.content_digest == entry.digest and is_shown(fact_of(entry.body))
        follows = after.previous == entry.digest
        holds &= entry.at <= after.at and (after.sequence > entry.sequence + 1 or follows)
        holds &= after.sequence > entry.sequence
    if not holds:
        raise PrivacyError("the ledger's entries do not hold together", hint="ask the site for a true certificate")
    return entries


def _digest_or_nothing(value: str) -> str:
    if value and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError
    return value


def _check_follows(stated: Any, computed: Any, where: str = "certificate") -> None:
    """Refuse a difference anywhere; epsilons may differ beyond the fourth digit, as accountants' versions may."""
    if isinstance(stated, dict) and isinstance(computed, dict) and stated.keys() == computed.keys():
        for name in stated:
            _check_follows(stated[name], computed[name], f"{where}.{name}")
    elif isinstance(stated, list) and isinstance(computed, list) and len(stated) == len(computed):
        for index, (one, other) in enumerate(zip(stated, computed, strict=True)):
            _check_follows(one, other, f"{where}[{index}]")
    elif COMPUTED.fullmatch(where) and isinstance(stated, float) and isinstance(computed, float):
        if not abs(stated - computed) <= FOUR_DIGITS * computed:
            raise PrivacyError(
                f"{where} is {stated:g}, but its events give {computed:.6g}", hint="the site's arithmetic is wrong"
            )
    elif canonical(stated) != canonical(computed):
        raise PrivacyError(f"{where} does not follow from the ledger's entries", hint="do not rely on this certificate")
