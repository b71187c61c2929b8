"""No network for the process that sees data: left behind, forbidden, and proven from inside.

Two mechanisms, each enough alone: an empty network namespace, and a filter that forbids every socket but Unix sockets.
Which of them hold is not believed but tried. This module knows no site and no data.

Example:
    >>> Isolation(namespace=True, filter=False, inherited=False).holds
    True
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fedward_client.installation.hardening import without_core_dumps
from fedward_common.errors import PrivacyError
from fedward_common.machine.namespaces import has_network, leave_network
from fedward_common.machine.seccomp import forbid_sockets, internet_sockets, may_open_internet_socket

__all__ = ["Isolation", "isolate", "verify"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What was found from inside: no interface but loopback; no internet socket can be made; one was there before."""

    namespace: bool
    filter: bool
    inherited: bool

    @property
    def holds(self) -> bool:
        """Whether nothing of this process can reach a network."""
        return (self.namespace or self.filter) and not self.inherited


def isolate() -> Isolation:
    """Cut this process off, as far as the system lets it, and say what holds. Call it first: with one thread.

    A namespace that is empty already, by systemd or a container, is as good as one of its own. Core dumps are forbidden
    right after the network is left, since an undumpable process may no longer leave it; nothing was read before.

    Guarantees:
      - What is returned was tried after everything else was done, and holds for every later thread and child.
    """
    try:
        if has_network():
            leave_network()
    except PrivacyError as error:
        LOG.error("%s", error)
    without_core_dumps()
    try:
        forbid_sockets()
    except PrivacyError as error:
        LOG.error("%s", error)
    return verify()


def verify() -> Isolation:
    """Try it from inside."""
    return Isolation(
        namespace=not _cannot_tell_or(has_network),
        filter=not may_open_internet_socket(),
        inherited=_cannot_tell_or(lambda: bool(internet_sockets())),
    )


def _cannot_tell_or(question: Callable[[], bool]) -> bool:
    """The answer, or True: what cannot be told does not count as safe."""
    try:
        return question()
    except PrivacyError:
        return True
