"""A filter in the kernel: this process and its children open no socket but a Unix socket.

The filter stays for good, through exec, for every thread. It refuses ``socket`` and ``socketpair`` of other families
with "address family not supported", which libraries take for a machine without network, and closes the ways around:
io_uring (ENOSYS), 32-bit calls (the process dies), x32 calls, and taking part in another process's network or memory
by setns, pidfd_getfd, ptrace and process_vm_writev (EPERM).

What it cannot see: a socket that is open already (``internet_sockets`` finds those), one that arrives over a Unix
socket, and what the process at the other end of a Unix socket does.

Example:
    >>> len(program("x86_64", allowed=(1,))) % 8  # BPF instructions have eight bytes
    0
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import PrivacyError
from fedward_common.machine.kernel import no_new_privileges, syscall

__all__ = ["Machine", "forbid_sockets", "internet_sockets", "may_open_internet_socket", "program"]

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
ALLOW, REFUSE, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; both machines are little-endian
X32 = 0x40000000
SET_MODE_FILTER = 1
ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC

INTERNET = (socket.AF_INET, socket.AF_INET6)
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
FORBIDDEN = frozenset((errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES))
OPEN_FILES = Path("/proc/self/fd")

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a processor family keeps its system calls."""

    architecture: int
    seccomp: int
    sockets: tuple[int, ...]
    joining: tuple[int, ...]
    """setns, ptrace, process_vm_writev, pidfd_getfd."""
    io_uring: tuple[int, ...] = (425, 426, 427)
    """All three: a ring may be older than the filter."""


MACHINES = {
    "x86_64": Machine(architecture=0xC000003E, seccomp=317, sockets=(41, 53), joining=(308, 101, 311, 438)),
    "aarch64": Machine(architecture=0xC00000B7, seccomp=277, sockets=(198, 199), joining=(268, 117, 271, 438)),
}


def forbid_sockets(*, allowed: Sequence[int] = (socket.AF_UNIX,)) -> None:
    """Forbid this process, all its threads and all its children every socket of another family, for good.

    Args:
      allowed: address families that stay.

    Guarantees:
      - A socket of a family that is not allowed cannot be made, also by threads that run already and by children.
      - Unix sockets work as before.
      - io_uring, 32-bit and x32 calls, and another process's sockets are no way around.
      - If it cannot be done, the process hears so and never runs on in the belief that it was.

    Raises:
      PrivacyError: this kernel or processor cannot.
    """
    machine = _machine(platform.machine())
    try:
        no_new_privileges()
        left_out = _install(machine.seccomp, program(platform.machine(), allowed=allowed))
    except OSError as error:
        raise _cannot(f"the kernel takes no seccomp filter: {error.strerror}") from None
    if left_out:
        raise _cannot("a thread has a seccomp filter of its own, and keeps its sockets")
    if not set(INTERNET) & set(allowed) and may_open_internet_socket():
        raise _cannot("the seccomp filter has no effect")


def may_open_internet_socket() -> bool:
    """Try it, from inside: whether this process can make an IPv4 or IPv6 socket.

    Other families do not matter here: AF_NETLINK speaks with the kernel alone, and AF_PACKET and AF_VSOCK need rights
    or hardware; ``forbid_sockets`` refuses them too. In an empty network namespace the answer is True, since a socket
    can be made there and reaches nobody: ask ``namespaces.has_network`` for that. Any doubt counts as True.
    """
    return any(_opens(family, kind) for family in INTERNET for kind in KINDS)


def internet_sockets() -> tuple[int, ...]:
    """Descriptors of sockets of this process that are no Unix sockets: older than a filter, or handed over.

    Raises:
      PrivacyError: /proc cannot be read, so nobody can tell.
    """
    try:
        descriptors = [int(entry) for entry in os.listdir(OPEN_FILES)]
    except OSError:
        raise PrivacyError("cannot read /proc/self/fd", hint="mount /proc, and let the process read it") from None
    return tuple(one for one in sorted(descriptors) if _family(one) not in (None, socket.AF_UNIX))


def program(machine: str, *, allowed: Sequence[int]) -> bytes:
    """The filter in BPF.

    Args:
      machine: as ``platform.machine()`` says.
      allowed: address families that stay.

    Raises:
      PrivacyError: no filter is known for this processor.
    """
    table = _machine(machine)
    return b"".join(struct.pack("HBBI", *one) for one in _instructions(table, machine, allowed))


def _instructions(machine: Machine, name: str, allowed: Sequence[int]) -> Iterator[Instruction]:
    yield (LOAD, 0, 0, ARCHITECTURE)
    yield (EQUAL, 1, 0, machine.architecture)
    yield (RETURN, 0, 0, KILL_PROCESS)  # a 32-bit call, whose numbers mean something else
    yield (LOAD, 0, 0, NUMBER)
    if name == "x86_64":
        yield from _unless(AT_LEAST, X32, REFUSE | errno.EPERM)
    for number in machine.io_uring:
        yield from _unless(EQUAL, number, REFUSE | errno.ENOSYS)
    for number in machine.joining:
        yield from _unless(EQUAL, number, REFUSE | errno.EPERM)
    socket_call, socketpair_call = machine.sockets
    yield (EQUAL, 2, 0, socket_call)
    yield (EQUAL, 1, 0, socketpair_call)
    yield (RETURN, 0, 0, ALLOW)
    yield (LOAD, 0, 0, FIRST_ARGUMENT)  # the kernel too reads the family as 32 bits
    for family in allowed:
        yield from _unless(EQUAL, family, ALLOW)
    yield (RETURN, 0, 0, REFUSE | errno.EAFNOSUPPORT)


def _unless(test: int, value: int, verdict: int) -> tuple[Instruction, Instruction]:
    """Go on unless the test holds; then the verdict."""
    return (test, 0, 1, value), (RETURN, 0, 0, verdict)


def _install(number: int, code: bytes) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions)))
    return syscall(number, SET_MODE_FILTER, ALL_THREADS, ctypes.addressof(header))


def _machine(name: str) -> Machine:
    if name not in MACHINES:
        raise _cannot(f"no seccomp filter is known for the processor {name}")
    return MACHINES[name]


def _cannot(what: str) -> PrivacyError:
    return PrivacyError(what, hint="take the network away otherwise: a network namespace, or a container without one")


def _opens(family: int, kind: int) -> bool:
    try:
        socket.socket(family, kind).close()
    except OSError as error:
        return error.errno not in FORBIDDEN  # for instance "too many open files" proves nothing
    return True


def _family(descriptor: int) -> int | None:
    with contextlib.suppress(OSError):  # no socket, or closed since
        copy = socket.socket(fileno=os.dup(descriptor))
        with copy:
            return int(copy.family)
    return None
