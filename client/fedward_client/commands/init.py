"""``init``: the folder, a commented site file, the keys; and, once the site file is filled in, the books.

Two steps, because a ledger's budget is fixed when it is opened and nobody can raise it afterwards: first the file to
fill in, then, by the same command, the ledger with the budget that stands in it.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedward_client.commands.join import Invitation, join, operator_key_text
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import public_key_text
from fedward_common.privacy.grants import Budget
from fedward_common.report import Report, rows

__all__ = ["budget_line", "init"]

DEFAULT_NAME = "my-site"


def init(root: Path, invitation: Invitation | None = None) -> Report:
    """Make whatever a site lacks. Nothing that exists is overwritten.

    Args:
      root: the site's folder.
      invitation: what the operator of a federation handed out, to join it.

    Raises:
      OutputError: the folder holds something else, or cannot be written.
      ConfigError: the site file was begun and something in it is wrong.
      PrivacyError: keys or folders are open to others, or a key that the books need is gone.
    """
    new = not (root / "site.toml").exists()
    operator = operator_key_text(invitation.operator_key) if invitation else None
    door = invitation.door.absolute() if invitation and invitation.door else None
    folder = Folder.create(root, name=_name_for(root), operator=operator, door=door)
    keys = folder.load_keys()
    joined = join(folder, invitation) if invitation else Report(facts={})
    facts = {"folder": str(root), "public_key": public_key_text(keys.public_key), **joined.facts, "command": "init"}
    known = rows(
        [
            ("site", str(root)),
            ("public key", f"{public_key_text(keys.public_key)}  (for the operator)"),
            ("fingerprint", keys.fingerprint),
        ][: 1 if invitation else None]
    )
    known = (*known, *joined.lines)
    if new:
        return Report(facts={**facts, "ledger": False}, lines=(*known, *_first_steps(folder)))
    site = folder.load_site()
    opened = not folder.has_books
    with folder.lock():
        if opened:
            folder.create_books(site, keys)
        with folder.open_books(site, keys):
            pass  # checked, and the mark and the policy noted
    lines = _opened(site.budget()) if opened else ("the ledger was opened before; nothing was changed",)
    return Report(facts={**facts, "ledger": True, "budget": site.budget().to_json()}, lines=(*known, *lines))


def budget_line(budget: Budget) -> str:
    """A life budget in one line."""
    rule = "sum" if budget.renyi_order is None else f"RDP at order {budget.renyi_order}"
    unit = budget.unit.value if budget.unit else "unit"
    return f"epsilon {budget.epsilon:g} at delta {budget.delta:g} for each {unit}, for life (filter: {rule})"


def _first_steps(folder: Folder) -> tuple[str, ...]:
    return (
        f"next: 1. fill in {folder.site_file}: the lines that begin with '#> '",
        f"      2. fedward-client init {folder.root}      opens the ledger; its budget can never be raised afterwards",
        f"      3. fedward-client fetch-model SOURCE {folder.root}   brings a base model in",
        f"      4. fedward-client check {folder.root}",
        f"keep a copy of {folder.keys}/units.key in a safe place: without it this site can never train again",
    )


def _opened(budget: Budget) -> tuple[str, ...]:
    return (
        f"opened the ledger: {budget_line(budget)}",
        "this budget, its unit and its filter are fixed from now on: nobody can raise them",
    )


def _name_for(root: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("._-")[:64] or DEFAULT_NAME
