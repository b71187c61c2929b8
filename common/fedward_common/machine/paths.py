"""What a Python process must be able to read, and whether that would show something that must stay hidden.

Example:
    >>> covers([Path("/srv/site")], [Path("/srv/site/data.csv"), Path("/srv/other")])
    (PosixPath('/srv/site/data.csv'),)
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["covers", "python_names", "python_paths"]

# Whole folders, since files such as /etc/resolv.conf are replaced by new ones while a process runs.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/proc")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
COUNTING = ("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/fs/cgroup")
RESOLVER = Path("/etc/resolv.conf")


def python_paths() -> tuple[Path, ...]:
    """The files and folders that this Python needs to run, to import and to find a host by name; all exist.

    The system's folders (with /etc and /proc), Python's own, every folder that this process imports from, editable
    installs included, and what counts processors. No home folder, no /tmp, no current folder, unless Python itself
    imports from there: ask ``covers`` before these are allowed.
    """
    return tuple(dict.fromkeys(path.resolve() for path in python_names()))


def python_names() -> tuple[Path, ...]:
    """The same, by the names under which Python and the C library look for them, symbolic links not followed."""
    named = (*map(Path, SYSTEM + DEVICES + COUNTING), RESOLVER, *_resolver(), *_interpreter(), *_imported())
    return tuple(dict.fromkeys(path.absolute() for path in named if os.path.exists(path)))


def covers(paths: Iterable[Path], protected: Iterable[Path]) -> tuple[Path, ...]:
    """The protected paths that are, or lie inside, one of the allowed paths. Symbolic links are followed on both sides.

    Guarantees:
      - A protected path that a process with these paths could open by any name is in the result, hard links aside.
      - Paths that do not exist yet are judged too.
    """
    allowed = [path.resolve() for path in paths]
    return tuple(one for one in protected if any(one.resolve().is_relative_to(path) for path in allowed))


def _interpreter() -> Iterator[Path]:
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable))
    yield from map(Path, sysconfig.get_paths().values())


def _imported() -> Iterator[Path]:
    yield from (Path(entry) for entry in sys.path if entry)  # an empty entry is the current folder
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):  # setuptools' editable installs are on no path
            yield from map(Path, getattr(module, "MAPPING", {}).values())


def _resolver() -> Iterator[Path]:
    """The folder in which systemd and others really keep the name servers: the file itself is often replaced."""
    folder = RESOLVER.resolve().parent
    if len(folder.parts) > 2:  # never all of /run
        yield folder
