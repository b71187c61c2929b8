"""A network namespace of one's own: the process keeps its files and loses the machine's network.

Holds for the calling process and for what it starts. Two things stay outside: a socket that was open before, or that
comes over a Unix socket, keeps the network that it was made in; and root could go back with setns(2), which
``seccomp.forbid_sockets`` takes away.

Example:
    >>> isinstance(has_network(), bool)
    True
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from enum import StrEnum
from pathlib import Path

from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine.kernel import only_one_thread, unshare

__all__ = ["Network", "bring_up_loopback", "has_network", "interfaces", "leave_network", "take_user_namespace"]

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
REQUEST = "16sH22x"  # struct ifreq: a name, then flags in a union of 24 bytes
LOOPBACK = "lo"
SELF = Path("/proc/self")

# With their modules loaded, the kernel puts these into every new namespace. While they are down nothing leaves by them,
# and in an empty namespace there is nothing below them to tunnel through.
FALLBACK_TUNNELS = frozenset(
    ("tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0")
)


class Network(StrEnum):
    """What network a process gets when it starts."""

    SHARED = "shared"
    """The machine's."""

    NONE = "none"
    """None at all, not even 127.0.0.1."""

    LOOPBACK = "loopback"
    """127.0.0.1 of its own, which only its own children share."""


def leave_network() -> None:
    """Move this process, just started and with one thread, into a new and empty network namespace.

    Without the right to do that alone it takes a user namespace with it, in which it is who it was. Call it before
    ``without_core_dumps``: an undumpable process may not write its own maps.

    Guarantees:
      - Afterwards no interface but loopback exists, and loopback is down.
      - User, group and the owners of files look as before.
      - A process with more than one thread is refused: the other threads would keep the network.

    Raises:
      PrivacyError: the kernel forbids it. The process may be left without rights and should end.
    """
    only_one_thread("leaving the network")
    try:
        _leave()
    except OSError as error:
        raise PrivacyError(
            f"the kernel does not let this process leave the network: {error.strerror}",
            hint="start it without one: PrivateNetwork=yes in systemd, --network none for a container; or allow "
            "unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns)",
        ) from None
    if has_network():
        raise PrivacyError("the new network namespace is not empty", hint="report this with the output of 'ip link'")


def take_user_namespace(flags: int) -> None:
    """Move this process, with one thread, into a new user namespace, in which it is who it was, and into others.

    Args:
      flags: ``CLONE_NEW*`` of the others; the process has every capability in them.

    Raises:
      OSError: the kernel forbids it. The process may be left without rights and should end.
    """
    user, group = os.geteuid(), os.getegid()  # afterwards both would read as nobody
    unshare(CLONE_NEWUSER | flags)
    (SELF / "setgroups").write_text("deny")  # without it the kernel takes no group map from an ordinary user
    (SELF / "uid_map").write_text(f"{user} {user} 1")
    (SELF / "gid_map").write_text(f"{group} {group} 1")


def bring_up_loopback() -> None:
    """Make 127.0.0.1 work in a namespace of one's own. Call it before exec, which takes the rights for it away.

    Raises:
      InputError: the kernel forbids it.
    """
    try:
        _set_flags(LOOPBACK, _flags(LOOPBACK) | IFF_UP)
    except OSError as error:
        raise InputError(
            f"cannot bring up the loopback interface: {error.strerror}",
            hint="call it right after leave_network, in the same process",
        ) from None


def interfaces() -> tuple[str, ...]:
    """The names of this process's network interfaces.

    From /proc/self/net, which shows the reader's namespace; /sys/class/net shows that of whoever mounted /sys.

    Raises:
      PrivacyError: /proc cannot be read, so nobody can tell.
    """
    try:
        lines = (SELF / "net" / "dev").read_text().splitlines()
    except OSError:
        raise PrivacyError(
            "cannot read /proc/self/net/dev, so nobody can tell whether there is a network",
            hint="mount /proc, and let the process read it",
        ) from None
    return tuple(line.partition(":")[0].strip() for line in lines[2:])


def has_network() -> bool:
    """Whether this process sees an interface by which data could leave the machine.

    Every interface counts, also one that is down now, except loopback and the kernel's own tunnels while they are down.
    """
    return any(name != LOOPBACK and not _is_idle_tunnel(name) for name in interfaces())


def _leave() -> None:
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        take_user_namespace(CLONE_NEWNET)


def _is_idle_tunnel(name: str) -> bool:
    try:
        return name in FALLBACK_TUNNELS and not _flags(name) & IFF_UP
    except OSError:
        return False  # cannot tell: it counts


def _flags(name: str) -> int:
    answer = _ioctl(SIOCGIFFLAGS, struct.pack(REQUEST, name.encode(), 0))
    return int(struct.unpack(REQUEST, answer)[1])


def _set_flags(name: str, flags: int) -> None:
    _ioctl(SIOCSIFFLAGS, struct.pack(REQUEST, name.encode(), flags))


def _ioctl(request: int, data: bytes) -> bytes:
    # any socket serves, and a Unix socket may still be opened behind the seccomp filter
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handle:
        return fcntl.ioctl(handle, request, data)
