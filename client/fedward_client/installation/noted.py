"""What the audit log says of a policy at each opening: which site file, which column of unit ids, which waivers.

Such a line is written when it differs from the last one, so the lines tell what was in force at any time. The name of
the column is under the site's key, as unit ids are: one site's log tells nobody the names in its data.

Example:
    >>> note = PolicyNote(digest="ab" * 32, column="", waivers=("allow_network",))
    >>> note.reason.partition("; ")[2]
    'unit ids stand in no column; waivers: allow_network'
    >>> PolicyNote.of(note.reason) == note
    True
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fedward_client.books.audit import Kind, Written
from fedward_client.installation.keys import SiteKeys
from fedward_client.installation.site_file import SiteFile
from fedward_common.errors import BudgetError

__all__ = ["PolicyNote", "check_column", "check_named", "waivers_between"]

COLUMN = b"fedward column"  # BLAKE2b's personalisation: a name is never taken for a unit's id
COLUMN_BYTES = 16
NONE = "none"
TEXT = re.compile(
    r"site\.toml has the digest (?P<digest>[0-9a-f]{64}); "
    r"unit ids stand in (?:no column|the column (?P<column>[0-9a-f]{32})); waivers: (?P<waivers>[a-z_]+(?:, [a-z_]+)*)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyNote:
    """What one line says.

    Args:
      digest: of the site file.
      column: keyed digest of the name of the column of unit ids; "" without one.
      waivers: in force from here on, sorted.
    """

    digest: str
    column: str
    waivers: tuple[str, ...]

    @classmethod
    def now(cls, site: SiteFile, keys: SiteKeys) -> Self:
        """What holds now."""
        name = site.data.unit or site.data.record_id
        return cls(
            digest=site.digest,
            column=_column(name, keys) if name else "",
            waivers=tuple(sorted(set(site.policy_table.waivers))),
        )

    @classmethod
    def of(cls, reason: str) -> Self | None:
        """The note of an audit line's reason; None for a line of an older version, which says the digest alone."""
        found = TEXT.fullmatch(reason)
        if found is None:
            return None
        waivers = () if found["waivers"] == NONE else tuple(found["waivers"].split(", "))
        return cls(digest=found["digest"], column=found["column"] or "", waivers=waivers)

    @property
    def reason(self) -> str:
        """As an audit line's reason."""
        column = f"the column {self.column}" if self.column else "no column"
        waivers = ", ".join(self.waivers) or NONE
        return f"site.toml has the digest {self.digest}; unit ids stand in {column}; waivers: {waivers}"


def check_column(site: SiteFile, keys: SiteKeys, lines: Sequence[Written], *, used: bool) -> None:
    """Compare the column of unit ids with the one whose ids the register of units holds.

    Args:
      site: names the column of today.
      keys: of the site.
      lines: of the audit log.
      used: whether any unit was ever charged; before that a name may still be mended.

    Raises:
      BudgetError: it is another column, or none, although units were charged: all of them would look new.
    """
    notes = (PolicyNote.of(each.line.reason) for each in lines if each.line.kind is Kind.POLICY)
    bound = next((note.column for note in reversed(list(notes)) if note), "")
    if used and bound and bound != PolicyNote.now(site, keys).column:
        key = "data.record_id" if site.data.unit is None else "data.unit"
        raise BudgetError(
            f"{key} is not the column whose ids were charged: every unit would look new",
            hint="set the name back, also in the data where it changed there; other ids need a new site and ledger",
        )


def check_named(site: SiteFile, *, used: bool) -> None:
    """Refuse to train by row numbers where units were charged by ids: a row would be taken for somebody else.

    Raises:
      BudgetError: units were charged, and the site file names no column of ids.
    """
    if used and not (site.data.unit or site.data.record_id):
        raise BudgetError(
            "units were charged by their ids, and site.toml names no column of ids",
            hint="set data.record_id back to the column's name",
        )


def waivers_between(lines: Sequence[Written], begin: float, end: float) -> tuple[frozenset[str], bool]:
    """The waivers that were in force at any time between two moments.

    Returns:
      Their names; and whether the lines tell it for all of that time. Those of an older version do not.
    """
    policies = [each for each in lines if each.line.kind is Kind.POLICY]
    ends = itertools.chain((each.entry.at for each in policies[1:]), [float("inf")])
    spans = zip(policies, ends, strict=False)  # the last one holds until now
    notes = [PolicyNote.of(one.line.reason) for one, until in spans if one.entry.at <= end and begin <= until]
    names = itertools.chain.from_iterable(note.waivers for note in notes if note)
    told = bool(notes) and all(notes) and policies[0].entry.at <= begin
    return frozenset(names), told


def _column(name: str, keys: SiteKeys) -> str:
    return hashlib.blake2b(name.encode(), digest_size=COLUMN_BYTES, key=keys.units, person=COLUMN).hexdigest()
