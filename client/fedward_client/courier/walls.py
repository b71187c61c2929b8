"""What stands between a courier that was taken over and the site under the same account: three walls, each named.

A wall that this machine does not give is left out, and said; the others stand. This module knows no network, and is
done before a library is imported that starts threads.

    view      nothing but its own files exists: no file of the site, no socket of another program to ask
    landlock  no other file is opened, no other process's memory, no other port, no signal
    seccomp   no mode or owner of any file is changed, no namespace made, nothing mounted or traced

    python -P -m fedward_client.courier.walls     prints those that this machine gives
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.status import Wall
from fedward_common.errors import PrivacyError
from fedward_common.machine.landlock import confine
from fedward_common.machine.paths import python_names, python_paths
from fedward_common.machine.seccomp import forbid_chmod, forbid_sockets
from fedward_common.machine.view import see_only

__all__ = ["confine_courier", "probe"]

log = logging.getLogger(__name__)

FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)


def confine_courier(folder: CourierFolder) -> tuple[Wall, ...]:
    """Give up, for good, every file but this folder, Python, the system's, and the Door's folder.

    Its own rules are read-only to it as well: whoever takes this process over cannot change what the next one may do.

    Returns:
      The walls that stand. Without any, the account's rights are all that holds.

    Guarantees:
      - With ``landlock`` or ``view``: nothing is written but in the ``state`` folder of the courier's own (by ``view``
        alone: and in a /tmp of its own).
      - With ``landlock`` or ``view``: data, ledger and signing key of a site under the same account cannot be opened by
        this process, nor the memory of the site's processes (by ``view`` alone: where there is a user namespace).
      - With ``landlock`` and ``seccomp``: TCP goes to the port of the server or the proxy alone, where the kernel can
        do that; with ``landlock`` alone MPTCP and fast open go past it. UDP is not limited: names are found by it.
      - With ``view``: no socket of another program that has a path can be connected to, except in the folders above.
        Without it, such a program may do for this process whatever it does for its account. (Abstract sockets are
        closed by ``landlock``, from version 6 on.)
      - With ``view`` or ``seccomp``: mode, owner and attributes of files outside ``state`` cannot be changed.
    """
    return _build(
        read=[*python_names(), folder.path, *_door(folder)],
        write=[folder.state],
        port=folder.file.next_hop.port,
    )


def probe() -> tuple[Wall, ...]:
    """The walls that a process of this account gets here. It cannot be undone: for a process that ends then."""
    return _build(read=python_names(), write=[], port=1)


def _door(folder: CourierFolder) -> list[Path]:
    door = Path(folder.file.door).parent
    return [door] if door.is_dir() else []


def _build(*, read: Collection[Path], write: Collection[Path], port: int) -> tuple[Wall, ...]:
    # in this order: Landlock forbids to mount, and the filter forbids namespaces
    steps: dict[Wall, Callable[[], object]] = {
        Wall.VIEW: lambda: see_only(read=[*read], write=[*write]),
        Wall.LANDLOCK: lambda: confine(
            read=[*python_paths(), *read], write=[*write], connect_ports=[port], bind_ports=[]
        ),
        Wall.SECCOMP: _filter,
    }
    return tuple(wall for wall, step in steps.items() if _stands(wall, step))


def _filter() -> None:
    forbid_sockets(allowed=FAMILIES)
    forbid_chmod()


def _stands(wall: Wall, build: Callable[[], object]) -> bool:
    try:
        build()
    except PrivacyError as error:
        log.error("not confined by %s: %s; hint: %s", wall.value, error, error.hint)
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(" ".join(wall.value for wall in probe()) + "\n")
    sys.exit(0)
