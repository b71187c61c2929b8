"""A view of one's own: a process moves to a file tree that holds what it needs, and nothing else exists for it.

Where a file is not there, nothing can be done to it: it has no name to open, to chmod, to stat, and a socket has none
to connect to. That is what Landlock leaves open, so the two go together: this first, ``landlock.confine`` after it.

Holds for the calling process and its children. It takes a user namespace along, in which it is who it was, and gives up
every capability in it: what is mounted stays as it is, and memory, files and root of processes outside are refused by
the kernel, since these belong to another user namespace. /proc is the machine's, read-only.

What it does not do: hide that other processes exist, forbid them signals, close abstract sockets, close descriptors of
files that are open already, or forbid a socket that lies in a folder that was named.

Example:
    >>> links, real = _walk(Path("/proc/self"))
    >>> links[0] == (Path("/proc/self"), str(os.getpid())) and real == Path("/proc") / str(os.getpid())
    True
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import InputError, PrivacyError
from fedward_common.machine.kernel import LIBC, no_new_privileges, only_one_thread, prctl, syscall, unshare
from fedward_common.machine.namespaces import take_user_namespace

__all__ = ["see_only"]

CLONE_NEWNS = 0x20000
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the same on every processor
PIVOT_ROOT, CAPSET = {"x86_64": (155, 126), "aarch64": (41, 91)}.get(platform.machine(), (0, 0))
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
CLONE_TREE, CLOSE_ON_EXEC, RECURSIVE, FROM_DESCRIPTOR = 1, 0o2000000, 0x8000, 0x1000
FROM_EMPTY_PATH, HERE = 4, -100
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXECUTION = 1, 2, 4, 8  # MOUNT_ATTR_*
DROP_FROM_BOUND, AMBIENT, AMBIENT_CLEAR = 24, 47, 4  # of prctl(2)
LAST_CAPABILITY = 63
CAPABILITIES_VERSION = 0x20080522
SELF = Path("/proc/self")
NAMESPACE_LIMIT = Path("/proc/sys/user/max_user_namespaces")
BASE = "/proc"  # the new tree is put together over this folder, which every process has and which is not needed then
PRIVATE_TMP = "tmp"
MOST_LINKS = 40
HINT = (
    "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces), or a container profile that allows mount"
)

Identity = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Something of the old tree at the same place of the new one."""

    path: Path
    descriptor: int
    """Of a copy of the mounts there."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the new tree consists of."""

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    links: dict[Path, str]
    seen: dict[Path, Identity]
    """What must be found under every name afterwards."""


def see_only(*, read: Sequence[Path], write: Sequence[Path]) -> None:
    """Move this process, with one thread, into a tree of these paths alone, for good. The current folder becomes /.

    Call it before ``landlock.confine``, which forbids to mount, and before ``without_core_dumps``.

    Args:
      read: files, or folders with all below them and all that is mounted there; devices among them stay devices.
      write: the same, and writable as far as the account may; nothing there can be executed.

    Guarantees:
      - A path outside ``read`` and ``write`` does not exist, by whatever name: no file, no folder, no socket. Folders
        on the way to a path are empty otherwise, and /tmp is new and private.
      - Symbolic links on the way to a path are there and lead to what they led to.
      - What is in ``read`` and not in ``write`` cannot be changed; neither can its mode, owner or attributes.
      - A file that is made anew in a folder that was named is seen.
      - Nothing can be mounted or unmounted afterwards, by children neither: no capability is left, to root neither.
      - Memory, open files, current folder and root of processes outside cannot be reached.
      - It is done or not begun: a kernel that forbids any step is found out in a child.
      - A process with more than one thread is refused, and one that holds a folder open: both would be ways back.

    Raises:
      PrivacyError: this kernel does not do it. Nothing was changed.
      InputError: a path does not exist, or is the whole tree.
      OSError: what went well in the child failed here; the process is half-way, and has to end.
    """
    only_one_thread("leaving the machine's file tree")
    plan = _planned(read, write)
    _refuse_open_folders()
    _try_in_a_child(plan)
    _enter(plan)


# ---- what to take along ----------------------------------------------------------------
def _planned(read: Sequence[Path], write: Sequence[Path]) -> _Plan:
    links: dict[Path, str] = {}
    real: dict[Path, Path] = {}
    for path in (*read, *write):
        found, real[path] = _walk(path.absolute())
        links.update(found)
    writable = {real[path] for path in write}
    kept = list(_without_repeats({real[path] for path in (*read, *write)}, writable))
    return _Plan(
        read=tuple(path for path in kept if path not in writable),
        write=tuple(path for path in kept if path in writable),
        links={name: target for name, target in links.items() if not _is_inside(name, kept)},
        seen={path: _identity(path) for path in (*read, *write)},
    )


def _walk(path: Path) -> tuple[list[tuple[Path, str]], Path]:
    """Every symbolic link on the way, also behind another link, and where the way ends."""
    links: list[tuple[Path, str]] = []
    at, ahead = Path("/"), list(path.parts[1:])
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            at = at.parent
        elif not (at / part).is_symlink():
            at = at / part
        elif len(links) < MOST_LINKS:
            target = Path(os.readlink(at / part))
            links.append((at / part, str(target)))
            ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
            at = Path("/") if target.is_absolute() else at
        else:
            raise InputError(f"{path} has links without end", hint="name files and folders that exist")
    if not at.exists() or at == Path("/"):
        raise InputError(f"cannot take {path} along", hint="name files and folders that exist, and not /")
    return links, at


def _without_repeats(paths: Iterable[Path], writable: set[Path]) -> Iterator[Path]:
    """From the top down, without those that come along with a folder above them of the same kind."""
    kept: list[Path] = []
    for path in sorted(paths, key=lambda each: len(each.parts)):
        above = [each for each in kept if path.is_relative_to(each)]
        if not above or (above[-1] in writable) != (path in writable):
            kept.append(path)
            yield path


def _is_inside(name: Path, folders: Sequence[Path]) -> bool:
    return any(name.is_relative_to(folder) for folder in folders)


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _refuse_open_folders() -> None:
    """From an open folder of the old tree the way leads up and back into it."""
    for entry in os.listdir(SELF / "fd"):
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            if stat.S_ISDIR(os.fstat(int(entry)).st_mode):
                raise PrivacyError(
                    "a folder is open, by which this process could go back", hint="start it without open descriptors"
                )


# ---- going there -------------------------------------------------------------------------
def _try_in_a_child(plan: _Plan) -> None:
    """Do it all in a child that ends then. What is half done cannot be undone."""
    ours, childs = os.pipe()
    child = os.fork()
    if not child:
        _report(plan, childs)
    os.close(childs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    if said != "done":
        raise PrivacyError(f"this process gets no file tree of its own: {said or 'the attempt crashed'}", hint=HINT)


def _report(plan: _Plan, pipe: int) -> None:
    try:
        _enter(plan)
        said = "done"
    except OSError as error:
        said = os.strerror(error.errno or 0)
    except PrivacyError as error:
        said = str(error)
    except BaseException as error:  # the child must end here, whatever comes, and not run on as a second courier
        said = type(error).__name__
    os.write(pipe, said.encode())
    os._exit(0)


def _enter(plan: _Plan) -> None:
    _leave()
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    parts = [*_copies(plan)]
    _mount("tmpfs", BASE, "tmpfs", 0, "size=4m,mode=0755")
    os.chdir(BASE)
    os.mkdir(PRIVATE_TMP)
    _mount("tmpfs", PRIVATE_TMP, "tmpfs", 0, "size=16m,mode=0700")
    _restrict(f"{BASE}/{PRIVATE_TMP}", NO_SUID | NO_DEVICES | NO_EXECUTION)
    for part in parts:
        _attach(part)
    for name, target in plan.links.items():
        inside = _in_base(name)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(target)
    syscall(PIVOT_ROOT, b".", b".")  # the old root now lies over the new one
    _checked(LIBC.umount2(b".", MNT_DETACH))
    os.chdir("/")
    _restrict("/", READ_ONLY | NO_SUID | NO_DEVICES | NO_EXECUTION)
    _give_up_capabilities()
    no_new_privileges()
    _verify(plan)


def _leave() -> None:
    try:
        take_user_namespace(CLONE_NEWNS)
    except OSError:
        if os.geteuid():
            raise
        return unshare(CLONE_NEWNS)  # root where nobody gets a user namespace
    with contextlib.suppress(OSError):  # a second lock: without a user namespace no capability ever comes back
        NAMESPACE_LIMIT.write_text("0")


def _copies(plan: _Plan) -> Iterator[_Part]:
    """Taken before anything is covered, and made safe before anything is attached; from the top down."""
    kinds = dict.fromkeys(plan.read, READ_ONLY) | dict.fromkeys(plan.write, NO_EXECUTION)
    for path in sorted(kinds, key=lambda each: len(each.parts)):
        flags = CLONE_TREE | CLOSE_ON_EXEC | RECURSIVE
        descriptor = syscall(OPEN_TREE, HERE, os.fsencode(path), flags)
        attributes = kinds[path] | NO_SUID | (0 if path.is_char_device() else NO_DEVICES)
        _set_attributes(descriptor, b"", RECURSIVE | FROM_DESCRIPTOR, attributes)
        yield _Part(path=path, descriptor=descriptor)


def _attach(part: _Part) -> None:
    place = _in_base(part.path)
    if stat.S_ISDIR(os.fstat(part.descriptor).st_mode):
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o600)
    syscall(MOVE_MOUNT, part.descriptor, b"", HERE, os.fsencode(place), FROM_EMPTY_PATH)
    os.close(part.descriptor)


def _in_base(path: Path) -> Path:
    return Path(BASE) / path.relative_to("/")


def _give_up_capabilities() -> None:
    """All, also those that a program could bring along; in this order, since giving up takes one of them."""
    for number in range(LAST_CAPABILITY + 1):
        with contextlib.suppress(OSError):  # EINVAL: this kernel has fewer
            prctl(DROP_FROM_BOUND, number, 0, 0, 0)
    prctl(AMBIENT, AMBIENT_CLEAR, 0, 0, 0)
    syscall(CAPSET, struct.pack("=Ii", CAPABILITIES_VERSION, 0), bytes(24))


def _verify(plan: _Plan) -> None:
    for path, identity in plan.seen.items():
        if not path.exists() or _identity(path) != identity:
            raise PrivacyError(f"in the new file tree {path} is not what it was", hint="report this")
    held = [line for line in (SELF / "status").read_text().splitlines() if line.startswith("Cap")]
    if any(int(line.split()[1], 16) for line in held):
        raise PrivacyError("capabilities are left", hint="report this with the output of capsh --print")


# ---- system calls -------------------------------------------------------------------------
def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = (os.fsencode(word) for word in (source, target, kind))
    _checked(LIBC.mount(*words, ctypes.c_ulong(flags), options.encode()))


def _restrict(path: str, attributes: int) -> None:
    _set_attributes(HERE, os.fsencode(path), 0, attributes)


def _set_attributes(descriptor: int, path: bytes, flags: int, attributes: int) -> None:
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    syscall(MOUNT_SETATTR, descriptor, path, flags, wanted, len(wanted))


def _checked(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number or errno.EIO, os.strerror(number))
