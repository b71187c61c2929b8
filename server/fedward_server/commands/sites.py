"""``enrol``, ``revoke``, ``sites``: who may take part. The folder says so; the running server follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedward_common.enrolment import Enrolment
from fedward_common.errors import InputError
from fedward_common.report import Report, counted, rows, table
from fedward_server.commands.words import ago, moment, quoted, when
from fedward_server.deployment.folder import Consent, OperatorFolder

__all__ = ["count_line", "enrol", "read_enrolment", "revoke", "sites"]

LARGEST = 1 << 16
FOLLOWS = 15.0  # seconds after which what the desk wrote is old
NONE = "-"


def read_enrolment(file: Path) -> str:
    """The text of a file that a site sent.

    Raises:
      InputError: it cannot be read, or is no text.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.read(LARGEST)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"cannot read {file}: {reason}", hint="give the NAME.pub that the site sent") from None


def enrol(
    folder: OperatorFolder,
    text: str,
    *,
    name: str | None,
    consents: Collection[Consent],
    confirm: Callable[[Sequence[str]], bool],
) -> Report:
    """Let a site take part, once a person has compared its fingerprints.

    Args:
      folder: of the operator.
      text: the enrolment that the site sent.
      name: the operator's name of the site; None: the one that the site gave itself.
      consents: what the operator said in so many words.
      confirm: shows the lines and asks whether both fingerprints are those that the site reads out.

    Raises:
      InputError: no enrolment, a name that is none or taken, a key that is enrolled or was revoked; or no consent.
      BadSignature: the enrolment is not signed by its own signing key.
    """
    enrolment = Enrolment.from_text(text)
    chosen = name or enrolment.name
    present = folder.sites().get(chosen)
    if present is not None and _facts(present) == _facts(enrolment):
        facts = {"command": "enrol", "name": chosen, "new": False, **_facts(enrolment)}
        return Report(facts=facts, lines=(f"site {chosen} is enrolled with these keys already; nothing was changed",))
    folder.check_enrolment(enrolment, name=chosen, consents=consents)
    if not confirm(_fingerprints(chosen, enrolment)):
        raise InputError("nobody was enrolled", hint="compare both fingerprints with the site on another channel")
    folder.enrol(text, name=chosen, consents=consents)
    facts = {"command": "enrol", "name": chosen, "new": True, **_facts(enrolment)}
    return Report(facts=facts, lines=(f"enrolled {chosen}", when(folder, "the site is let in")))


def revoke(folder: OperatorFolder, name: str) -> Report:
    """Let a site take part no longer.

    Raises:
      InputError: no site of this name is enrolled.
    """
    folder.revoke(name)
    lines = (
        f"revoked {name}; its enrolment is kept in {folder.revoked}",
        when(folder, "the site is shut out"),
        "updates that it sent before stay in the adapter",
    )
    return Report(facts={"command": "revoke", "name": name}, lines=lines)


def sites(folder: OperatorFolder) -> Report:
    """Every enrolled site, and how the desk last saw it; with fingerprints under ``-v``."""
    enrolled, seen, running = folder.sites(), folder.site_states(), folder.holder() is not None
    fresh = running and _is_fresh(folder)
    states = {name: seen.get(name, {}) for name in sorted(enrolled)}
    facts = {
        "command": "sites",
        "damaged": list(folder.damaged_sites()),
        "server_running": running,
        "sites": [
            {"name": name, **_facts(enrolled[name]), **_seen(row), "connected": fresh and bool(row.get("connected"))}
            for name, row in states.items()
        ],
    }
    body = table(
        ("name", "connected", "last seen", "version", "node id"),
        [_cells(name, row, fresh=fresh) for name, row in states.items()],
    )
    lines = body if enrolled else ("no site is enrolled: fedward-server enrol SITE.pub" + quoted(folder),)
    details = tuple(line for name in states for line in ("", *_fingerprints(name, enrolled[name])))
    return Report(facts=facts, lines=(*lines, *_notes(folder, fresh=fresh, running=running)), details=details)


def _notes(folder: OperatorFolder, *, fresh: bool, running: bool) -> tuple[str, ...]:
    broken = tuple(
        f"{folder.sites_folder}/{name}.pub cannot be read and enrols nobody" for name in folder.damaged_sites()
    )
    known, states = folder.sites(), folder.site_states()
    troubled = {name: str(row["problem"]) for name, row in states.items() if name in known and row.get("problem")}
    broken = (*broken, *(f"{name}: {problem}" for name, problem in troubled.items()))
    if not known:
        return broken
    if not running:
        return (*broken, f"the server is down: fedward-server start{quoted(folder)}")
    return broken if fresh else (*broken, "the server has not yet said who is connected")


def _is_fresh(folder: OperatorFolder) -> bool:
    try:
        return time.time() - folder.sites_file.stat().st_mtime < FOLLOWS
    except OSError:
        return False


def _cells(name: str, row: Mapping[str, Any], *, fresh: bool) -> tuple[str, ...]:
    connected = ("yes" if row.get("connected") else "no") if fresh else "?"
    last = ago(moment(row.get("last_seen")))
    seen = last if last == "never" else f"{last} ago"
    return name, connected, seen, str(row.get("version") or NONE), str(row.get("node_id") or NONE)


def _seen(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "last_seen": moment(row.get("last_seen")) or None,
        "node_id": row.get("node_id"),
        "registered": bool(row.get("registered")),
        "version": row.get("version"),
    }


def _facts(enrolment: Enrolment) -> dict[str, Any]:
    return {"node_fingerprint": enrolment.node_fingerprint, "signing_fingerprint": enrolment.signing_fingerprint}


def _fingerprints(name: str, enrolment: Enrolment) -> tuple[str, ...]:
    return rows(
        [
            ("site", name if name == enrolment.name else f"{name}  (it calls itself {enrolment.name})"),
            ("node key", enrolment.node_fingerprint),
            ("signing key", enrolment.signing_fingerprint),
        ]
    )


def count_line(folder: OperatorFolder) -> str:
    """How many sites are enrolled, and how many of them are connected."""
    known = folder.sites()
    fresh = folder.holder() is not None and _is_fresh(folder)
    here = sum(bool(row.get("connected")) for name, row in folder.site_states().items() if name in known)
    connected = f", {here} connected" if fresh else ""
    return counted(len(known), "site enrolled", "sites enrolled") + connected
