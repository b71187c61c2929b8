"""A filter in the kernel: this process and its children open no socket but a Unix socket, and find no way out.

The filter stays for good, through exec, for every thread. It refuses ``socket`` and ``socketpair`` of other families
with "address family not supported", which libraries take for a machine without network, and closes the ways around:
io_uring and clone3 (ENOSYS), 32-bit calls (the process dies), x32 calls, new namespaces and mounts, and taking part in
another process's network or memory by setns, pidfd_getfd, ptrace and process_vm_writev (EPERM).

A second filter, ``forbid_chmod``, forbids what Landlock leaves open: to change mode, owner, attributes or times of a
file that cannot be opened. The trainer's service needs chmod; the courier does not.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import PrivacyError
from fedward_common.machine.kernel import no_new_privileges, syscall

__all__ = [
    "Machine",
    "forbid_chmod",
    "forbid_sockets",
    "internet_sockets",
    "may_open_internet_socket",
    "ownership_program",
    "program",
]

LOAD, EQUAL, AT_LEAST, HAS_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # LD|W|ABS, JMP|JEQ, JMP|JGE, JMP|JSET, RET
ALLOW, REFUSE, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = (
    0,
    4,
    16,
    24,
)  # offsets in struct seccomp_data; both machines are little-endian
X32 = 0x40000000
FIRST_ARGUMENT, SECOND_ARGUMENT, THIRD_ARGUMENT, FOURTH_ARGUMENT = 16, 24, 32, 40
# Landlock limits the ports of connect and of TCP alone: MPTCP, SCTP, SMC and the data of a fast open go past it
PROTOCOLS = (0, 1, socket.IPPROTO_TCP, socket.IPPROTO_UDP)  # 1 is what some call Unix sockets by
FAST_OPEN = 0x20000000  # MSG_FASTOPEN
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
TYPING = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: what a process types into a terminal, a shell outside executes
SET_MODE_FILTER = 1
ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC

INTERNET = (socket.AF_INET, socket.AF_INET6)
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
FORBIDDEN = frozenset((errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES))
OPEN_FILES = Path("/proc/self/fd")

Instruction = tuple[int, int, int, int]


# io_uring: a ring may be older than the filter. clone3 keeps its flags in memory, where a filter cannot look: the C
# library takes ENOSYS for an old kernel, and uses clone.
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Calls that a process here does not have."""

ESCAPES = (
    *("setns", "unshare", "chroot", "pivot_root", "mount", "umount2", "mount_setattr", "open_tree", "open_tree_attr"),
    *("move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "open_by_handle_at"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise", "kcmp"),
    *("add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd"),
)
"""Into another process, another namespace or another tree, or a part of the kernel that this one has no use for."""

OWNERSHIP = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat", "file_setattr"),
    *("utime", "utimes", "futimesat", "utimensat"),
)
"""What Landlock does not ask about: who may do what with a file, and its times."""

# from arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; from 424 on all machines agree
X86_64 = {
    **{
        "ioctl": 16,
        "socket": 41,
        "sendto": 44,
        "sendmsg": 46,
        "socketpair": 53,
        "clone": 56,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
    },
    **{"lchown": 94, "ptrace": 101, "utime": 132, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166},
    **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198},
    **{"fremovexattr": 199, "utimes": 235, "add_key": 248, "request_key": 249, "keyctl": 250, "fchownat": 260},
    **{"futimesat": 261, "fchmodat": 268, "unshare": 272, "utimensat": 280, "perf_event_open": 298},
    **{
        "open_by_handle_at": 304,
        "sendmmsg": 307,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
    },
    **{"seccomp": 317, "bpf": 321, "userfaultfd": 323},
}
AARCH64 = {
    **{"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16},
    **{"ioctl": 29, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "fchmod": 52, "fchmodat": 53},
    **{
        "fchownat": 54,
        "fchown": 55,
        "utimensat": 88,
        "unshare": 97,
        "ptrace": 117,
        "socket": 198,
        "socketpair": 199,
        "sendto": 206,
        "sendmsg": 211,
        "sendmmsg": 269,
    },
    **{"add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "perf_event_open": 241},
    **{"open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272},
    **{"seccomp": 277, "bpf": 280, "userfaultfd": 282},
}
EVERYWHERE = {
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429},
    **{"fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438},
    **{"process_madvise": 440, "mount_setattr": 442, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466},
    **{"open_tree_attr": 467, "file_setattr": 469},
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A processor family: its mark, and where it keeps its system calls."""

    architecture: int
    calls: Mapping[str, int]

    def numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        """Of those that it has: newer families lack the oldest calls."""
        return tuple(self.calls[name] for name in names if name in self.calls)


MACHINES = {
    "x86_64": Machine(architecture=0xC000003E, calls=X86_64 | EVERYWHERE),
    "aarch64": Machine(architecture=0xC00000B7, calls=AARCH64 | EVERYWHERE),
}


def forbid_sockets(*, allowed: Sequence[int] = (socket.AF_UNIX,)) -> None:
    """Forbid this process, all its threads and all its children every socket of another family, for good.

    Args:
      allowed: address families that stay.

    Guarantees:
      - A socket of a family that is not allowed cannot be made, also by threads that run already and by children.
      - Unix sockets work as before; of internet sockets that are allowed TCP and UDP remain, without fast open, so that
        Landlock's ports hold.
      - io_uring, 32-bit and x32 calls, and another process's sockets are no way around.
      - No namespace can be made or joined, nothing mounted, no other process traced, no key ring, bpf, perf or
        userfaultfd used, and nothing typed into a terminal.
      - If it cannot be done, the process hears so and never runs on in the belief that it was.

    Raises:
      PrivacyError: this kernel or processor cannot.
    """
    _forbid(program(platform.machine(), allowed=allowed))
    if not set(INTERNET) & set(allowed) and may_open_internet_socket():
        raise _cannot("the seccomp filter has no effect")


def forbid_chmod() -> None:
    """Forbid this process, its threads and children to change mode, owner, attributes or times of any file, for good.

    Guarantees:
      - No chmod, chown, setxattr, removexattr or utime goes through, on no file, also not on an open one.
      - If it cannot be done, the process hears so and never runs on in the belief that it was.

    Raises:
      PrivacyError: this kernel or processor cannot.
    """
    _forbid(ownership_program(platform.machine()))
    try:
        os.fchmod(-1, 0)
    except PermissionError:
        return
    except OSError:
        raise _cannot("the seccomp filter has no effect") from None


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
    """The filter against sockets and escapes in BPF.

    Args:
      machine: as ``platform.machine()`` says.
      allowed: address families that stay.

    Raises:
      PrivacyError: no filter is known for this processor.
    """
    table = _machine(machine)
    return _code((*_head(table, machine), *_escapes(table), *_sockets(table, allowed)))


def ownership_program(machine: str) -> bytes:
    """The filter against chmod and its like in BPF.

    Raises:
      PrivacyError: no filter is known for this processor.
    """
    table = _machine(machine)
    refused = _each(table.numbers(OWNERSHIP), REFUSE | errno.EPERM)
    return _code((*_head(table, machine), *refused, (RETURN, 0, 0, ALLOW)))


def _code(instructions: Sequence[Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *one) for one in instructions)


def _head(machine: Machine, name: str) -> Iterator[Instruction]:
    yield (LOAD, 0, 0, ARCHITECTURE)
    yield (EQUAL, 1, 0, machine.architecture)
    yield (RETURN, 0, 0, KILL_PROCESS)  # a 32-bit call, whose numbers mean something else
    yield (LOAD, 0, 0, NUMBER)
    if name == "x86_64":
        yield from _unless(AT_LEAST, X32, REFUSE | errno.EPERM)


def _escapes(machine: Machine) -> Iterator[Instruction]:
    yield from _each(machine.numbers(ABSENT), REFUSE | errno.ENOSYS)
    yield from _each(machine.numbers(ESCAPES), REFUSE | errno.EPERM)
    yield from _on(machine.calls["clone"], FIRST_ARGUMENT, _unless(HAS_ANY, NEW_NAMESPACES, REFUSE | errno.EPERM))
    yield from _on(machine.calls["ioctl"], SECOND_ARGUMENT, _each(TYPING, REFUSE | errno.EPERM))
    for name, flags in (("sendto", FOURTH_ARGUMENT), ("sendmsg", THIRD_ARGUMENT), ("sendmmsg", FOURTH_ARGUMENT)):
        yield from _on(machine.calls[name], flags, _unless(HAS_ANY, FAST_OPEN, REFUSE | errno.EOPNOTSUPP))


def _on(call: int, argument: int, tests: Iterable[Instruction]) -> Iterator[Instruction]:
    """For one call: look at an argument's lower 32 bits, and allow it unless a test says otherwise."""
    told = tuple(tests)
    yield (EQUAL, 0, len(told) + 2, call)
    yield (LOAD, 0, 0, argument)
    yield from told
    yield (RETURN, 0, 0, ALLOW)


def _sockets(machine: Machine, allowed: Sequence[int]) -> Iterator[Instruction]:
    yield (EQUAL, 2, 0, machine.calls["socket"])
    yield (EQUAL, 1, 0, machine.calls["socketpair"])
    yield (RETURN, 0, 0, ALLOW)
    yield (LOAD, 0, 0, THIRD_ARGUMENT)
    for ahead, protocol in enumerate(reversed(PROTOCOLS)):
        yield (EQUAL, len(PROTOCOLS) - ahead, 0, protocol)
    yield (RETURN, 0, 0, REFUSE | errno.EPROTONOSUPPORT)
    yield (LOAD, 0, 0, FIRST_ARGUMENT)  # the kernel too reads the family as 32 bits
    yield from _each(allowed, ALLOW)
    yield (RETURN, 0, 0, REFUSE | errno.EAFNOSUPPORT)


def _each(values: Sequence[int], verdict: int) -> Iterator[Instruction]:
    for value in values:
        yield from _unless(EQUAL, value, verdict)


def _unless(test: int, value: int, verdict: int) -> tuple[Instruction, Instruction]:
    """Go on unless the test holds; then the verdict."""
    return (test, 0, 1, value), (RETURN, 0, 0, verdict)


def _forbid(code: bytes) -> None:
    try:
        no_new_privileges()
        left_out = _install(_machine(platform.machine()).calls["seccomp"], code)
    except OSError as error:
        raise _cannot(f"the kernel takes no seccomp filter: {error.strerror}") from None
    if left_out:
        raise _cannot("a thread has a seccomp filter of its own, and keeps its rights")


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
