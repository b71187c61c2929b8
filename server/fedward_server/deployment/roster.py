"""Makes Flower's list of nodes agree with the operator's enrolments, and tells people who is there.

Level-triggered: it compares what is with what should be, again and again. It must not know runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from fedward_common.enrolment import Enrolment
from fedward_common.errors import FedwardError
from fedward_common.files import rewrite_json
from fedward_server.deployment.flower import FlowerRefused, Node, node_key_pem
from fedward_server.deployment.folder import OperatorFolder

__all__ = ["NodeControl", "Roster"]

LOG = logging.getLogger("fedward.desk")
SCHEMA = 1
SPENT_KEY = "Flower takes no node key back that was revoked: the site needs a new one, and a new enrolment"


class NodeControl(Protocol):
    """Flower's nodes, as :class:`~fedward_server.deployment.flower.Control` has them."""

    def nodes(self) -> list[Node]:
        """All registered nodes."""
        ...

    def register_node(self, key: ec.EllipticCurvePublicKey, *, name: str) -> int:
        """Let a node in."""
        ...

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out."""
        ...


class Roster:
    """Enrolled sites as nodes.

    Guarantees:
      - An enrolled site's node is registered; a revoked one's is not.
      - A node whose enrolment is merely missing or damaged stays registered, since Flower never takes a key back: it is
        not asked, and the gateway does not pass it.
    """

    def __init__(self, folder: OperatorFolder, control: NodeControl, *, clock: Callable[[], float] = time.time) -> None:
        """Nothing is asked yet."""
        self._folder, self._control, self._clock = folder, control, clock
        self._spent: set[bytes] = set()
        self.enrolled = self.connected = 0

    def reconcile(self) -> None:
        """Register, unregister, and write state/sites.json.

        Raises:
          FlowerAway: the SuperLink does not answer; nothing is written.
        """
        sites = self._folder.sites()
        keys = {node_key_pem(enrolment.node_key): name for name, enrolment in sites.items()}
        nodes = {node.key: node for node in self._control.nodes()}
        self._register({key: sites[name] for key, name in keys.items() if key not in nodes}, keys)
        self._unregister({key: node for key, node in nodes.items() if key not in keys})
        rows = {name: self._row(nodes.get(key), key) for key, name in keys.items()}
        self.enrolled, self.connected = len(rows), sum(row["connected"] for row in rows.values())
        rewrite_json(self._folder.sites_file, {"schema": SCHEMA, "at": self._clock(), "sites": rows})

    def _register(self, missing: Mapping[bytes, Enrolment], names: Mapping[bytes, str]) -> None:
        for key, enrolment in missing.items():
            if key in self._spent:
                continue
            try:
                self._control.register_node(enrolment.node_key, name=names[key])
                LOG.info("site %s is registered", names[key])
            except FlowerRefused:
                self._spent.add(key)
                LOG.error("site %s cannot be registered: %s", names[key], SPENT_KEY)

    def _unregister(self, others: Mapping[bytes, Node]) -> None:
        revoked = self._revoked() if others else set()
        for key, node in others.items():
            if key in revoked:
                self._control.unregister_node(node.node_id)
                LOG.info("a revoked site's node is unregistered")

    def _revoked(self) -> set[bytes]:
        found = set()
        for path in self._folder.revoked.glob("*.pub"):
            try:
                found.add(node_key_pem(Enrolment.from_text(path.read_text(encoding="utf-8")).node_key))
            except (OSError, ValueError, FedwardError):
                continue
        return found

    def _row(self, node: Node | None, key: bytes) -> dict[str, Any]:
        return {
            "node_id": str(node.node_id) if node else None,
            "connected": bool(node and node.online),
            "last_seen": node.last_seen if node else None,
            "registered": node is not None,
            "problem": SPENT_KEY if key in self._spent else "",
        }
