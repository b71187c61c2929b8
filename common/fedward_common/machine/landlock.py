"""Landlock: a process gives up, for good, every file but those it names. No rights are needed for it.

Holds for the calling process and its children. Landlock also forbids what would get round it: ptrace, /proc/PID/mem
and the like of every process outside, whoever owns it. (One gap: root, by CAP_PERFMON, still reads /proc/PID/environ
and maps.) Newer kernels add TCP ports (4), device ioctls (5), and signals
and abstract Unix sockets (6); ``Confined`` says which of them hold.

What it does not do: hide that a file exists (stat), stop chmod or chown of a file one owns, restrict UDP, restrict TCP
by host, close descriptors that are open already, or forbid a Unix socket that has a path.

Example:
    >>> landlock_abi() >= 0
    True
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine.kernel import no_new_privileges, only_one_thread, syscall

__all__ = ["Confined", "confine", "landlock_abi"]

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every processor
ASK_VERSION = 1
BENEATH, PORT = 1, 2
BIND, CONNECT = 1, 2
ABSTRACT_SOCKETS, SIGNALS = 1, 2
ALWAYS_WRITABLE = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/full"))


class Right(IntFlag):
    """LANDLOCK_ACCESS_FS_*, in the kernel's order."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


KNOWN = {1: Right(0x1FFF), 2: Right(0x3FFF), 3: Right(0x7FFF), 4: Right(0x7FFF), 5: Right(0xFFFF)}
READ = Right.READ_FILE | Right.READ_DIR | Right.EXECUTE
WRITE = Right(0xFFFF) & ~(Right.EXECUTE | Right.MAKE_CHAR | Right.MAKE_BLOCK)
OF_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV


@dataclass(frozen=True, kw_only=True)
class Confined:
    """What holds for this process from now on, besides its files."""

    abi: int
    connects: bool
    """TCP connections go only to the ports that were named."""
    binds: bool
    """TCP servers listen only on the ports that were named."""
    scoped: bool
    """No signal and no abstract Unix socket leads out of this process and its children."""


def landlock_abi() -> int:
    """The version that this kernel offers; 0 where there is none, or where it is switched off."""
    try:
        return syscall(CREATE_RULESET, 0, 0, ASK_VERSION)
    except OSError:
        return 0


def confine(
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    connect_ports: Sequence[int] | None = None,
    bind_ports: Sequence[int] | None = None,
) -> Confined:
    """Give up every file but these, for this process, with one thread, and its children, for good.

    Args:
      read: files, or folders with all below them, to read and to execute. See ``paths.python_paths``.
      write: the same, to read, write, create and remove; a device also for ioctl. /dev/null is always among them.
      connect_ports: TCP ports to connect to; None leaves all.
      bind_ports: TCP ports to listen on; None leaves all.

    Returns:
      What holds. Which kernel can do what differs; files hold always.

    Guarantees:
      - A file outside ``read`` and ``write`` cannot be opened, also by children and through symbolic links.
      - A file outside ``write`` cannot be written, made or removed.
      - The memory and open files of processes outside cannot be reached, not even by root; their environment not by
        their own account.
      - Where the result says so, TCP ports, signals and abstract sockets are closed as described there.
      - A process with more than one thread is refused: the other threads would stay free.

    Raises:
      PrivacyError: this kernel has no Landlock.
      InputError: a path does not exist.
    """
    only_one_thread("confining a process to its files")
    abi = landlock_abi()
    if not abi:
        raise PrivacyError(
            "this kernel offers no Landlock",
            hint="Linux 5.13 or newer, with landlock in its lsm= list; or run the two processes as two users",
        )
    held = _held(abi, connect_ports, bind_ports)
    try:
        _confine(held, read, (*write, *_always_writable()), (connect_ports or (), bind_ports or ()))
    except OSError as error:
        raise PrivacyError(
            f"the kernel refuses to confine this process: {error.strerror}",
            hint="look for a container profile that forbids landlock_restrict_self",
        ) from None
    return held


def _held(abi: int, connect_ports: Sequence[int] | None, bind_ports: Sequence[int] | None) -> Confined:
    return Confined(
        abi=abi,
        connects=abi >= 4 and connect_ports is not None,
        binds=abi >= 4 and bind_ports is not None,
        scoped=abi >= 6,
    )


def _confine(
    held: Confined, read: Sequence[Path], write: Sequence[Path], ports: tuple[Sequence[int], Sequence[int]]
) -> None:
    ruleset = _ruleset(held)
    try:
        for paths, rights in ((read, READ), (write, READ & ~Right.EXECUTE | WRITE)):
            for path in paths:
                _allow(ruleset, path, rights & _known(held.abi))
        for numbers, right, limited in zip(ports, (CONNECT, BIND), (held.connects, held.binds), strict=True):
            for port in numbers if limited else ():
                _add_rule(ruleset, PORT, struct.pack("=QQ", right, port))
        no_new_privileges()
        syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _ruleset(held: Confined) -> int:
    ports = CONNECT * held.connects | BIND * held.binds
    scopes = (ABSTRACT_SOCKETS | SIGNALS) * held.scoped
    # an older kernel takes a longer struct, as long as what it does not know is zero
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", _known(held.abi), ports, scopes), 24)
    return syscall(CREATE_RULESET, ctypes.addressof(attributes), 24, 0)


def _always_writable() -> list[Path]:
    return [device for device in ALWAYS_WRITABLE if device.exists()]


def _known(abi: int) -> Right:
    return KNOWN[min(abi, max(KNOWN))]


def _allow(ruleset: int, path: Path, rights: Right) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot allow {path}: {error.strerror}", hint="name files and folders that exist") from None
    try:
        allowed = rights if path.is_dir() else rights & OF_FILES
        _add_rule(ruleset, BENEATH, struct.pack("=Qi", allowed, descriptor))
    finally:
        os.close(descriptor)


def _add_rule(ruleset: int, kind: int, rule: bytes) -> None:
    attributes = ctypes.create_string_buffer(rule, len(rule))
    syscall(ADD_RULE, ruleset, kind, ctypes.addressof(attributes), 0)
