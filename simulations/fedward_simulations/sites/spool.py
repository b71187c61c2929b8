"""The outboxes of all virtual sites: the replies to one plan, in one file that has no name.

A site keeps its newest reply, to send it again byte for byte. With a thousand sites in one process those replies would
be most of its memory; here they lie on disk, and go with the process. When the first reply to a new plan comes, those
to the plan before are forgotten.

Example:
    >>> spool = Spool()
    >>> one, other = spool.outbox("one"), spool.outbox("other")
    >>> one.store("run", "plan-1", b"reply")
    >>> one.find("plan-1"), other.find("plan-1"), one.find("plan-2")
    (b'reply', None, None)
    >>> other.store("run", "plan-2", b"later")
    >>> one.find("plan-1") is None
    True
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass

__all__ = ["Spool"]


class Spool:
    """Replies to one plan at a time, by site."""

    def __init__(self) -> None:
        """Make the file and take its name away."""
        self._file, path = tempfile.mkstemp(prefix="fedward-")
        os.unlink(path)
        weakref.finalize(self, os.close, self._file)
        self._plan, self._end = "", 0
        self._places: dict[str, tuple[int, int]] = {}

    def outbox(self, site: str) -> _SpooledOutbox:
        """One site's."""
        return _SpooledOutbox(spool=self, site=site)

    def store(self, site: str, plan_id: str, reply: bytes) -> None:
        """Keep a reply; the first one to a new plan ends the plan before."""
        if plan_id != self._plan:
            self._plan, self._end = plan_id, 0
            self._places.clear()
            os.ftruncate(self._file, 0)
        os.pwrite(self._file, reply, self._end)
        self._places[site] = (self._end, len(reply))
        self._end += len(reply)

    def find(self, site: str, plan_id: str) -> bytes | None:
        """A site's reply to this plan, or None."""
        if plan_id != self._plan or site not in self._places:
            return None
        start, size = self._places[site]
        return os.pread(self._file, size, start)


@dataclass(frozen=True, kw_only=True, eq=False)
class _SpooledOutbox:
    spool: Spool
    site: str

    def store(self, run_id: str, plan_id: str, reply: bytes) -> None:
        """Keep a reply in place of the one before."""
        self.spool.store(self.site, plan_id, reply)

    def find(self, plan_id: str) -> bytes | None:
        """The reply of this plan, or None."""
        return self.spool.find(self.site, plan_id)
