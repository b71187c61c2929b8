"""Who holds a connection: enrolled sites have theirs, and strangers can take neither these nor each other's last.

Pure: knows connections as something that can be dropped, and nothing of sockets or HTTP. A stranger is whoever has not
yet shown an enrolled key, sites before their first request included.

Example:
    >>> visits = Visits(total=8, per_address=2, per_node=2)
    >>> first, second, third = (visits.enter("192.0.2.1") for _ in range(3))
    >>> first.dropped, second.dropped, third.dropped
    (True, False, False)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Visit", "Visits"]

Line: TypeAlias = dict["Visit", None]  # the oldest first


@dataclass(kw_only=True, eq=False)
class Visit:
    """A connection."""

    address: str
    node: str = ""
    drop: Callable[[], object] = lambda: None
    dropped: bool = False


@dataclass(kw_only=True, eq=False)
class Visits:
    """All connections of a gateway.

    Guarantees:
      - There are never more than ``total``, nor more than ``per_address`` of one address, nor ``per_node`` of one site.
      - Strangers hold at most half of all.
      - A newcomer is refused only where enrolled sites hold all that there is; else the oldest stranger goes.
    """

    total: int
    per_address: int
    per_node: int
    _all: Line = field(default_factory=dict, init=False)
    _nodes: defaultdict[str, Line] = field(default_factory=lambda: defaultdict(dict), init=False)
    _addresses: defaultdict[str, Line] = field(default_factory=lambda: defaultdict(dict), init=False)

    def enter(self, address: str) -> Visit | None:
        """A newcomer; then `leave` must follow."""
        self._make_room(self._addresses.get(address, {}), most=self.per_address, strangers=self.per_address)
        self._make_room(self._all, most=self.total, strangers=self.total // 2)
        if len(self._all) >= self.total or len(self._addresses.get(address, {})) >= self.per_address:
            return None
        visit = Visit(address=address)
        self._all[visit] = self._addresses[address][visit] = None
        return visit

    def greet(self, visit: Visit, node: str) -> None:
        """An enrolled key was shown on it: it is this site's now, and its youngest."""
        if visit.dropped:
            return
        _take_out(self._nodes, visit.node, visit)
        if len(self._nodes[node]) >= self.per_node:
            self._drop(next(iter(self._nodes[node])))
        visit.node = node
        self._nodes[node][visit] = None

    def leave(self, visit: Visit) -> None:
        """It has ended."""
        if not visit.dropped:
            visit.dropped = True
            self._all.pop(visit)
            _take_out(self._addresses, visit.address, visit)
            _take_out(self._nodes, visit.node, visit)

    def _make_room(self, line: Line, *, most: int, strangers: int) -> None:
        found = [visit for visit in line if not visit.node]
        if found and (len(found) >= strangers or len(line) >= most):
            self._drop(found[0])

    def _drop(self, visit: Visit) -> None:
        self.leave(visit)
        visit.drop()


def _take_out(lines: defaultdict[str, Line], key: str, visit: Visit) -> None:
    if key in lines:
        lines[key].pop(visit, None)
        if not lines[key]:
            del lines[key]
