"""What this machine does not protect: named weaknesses that no key of the site file can mend.

Looks at the operating system alone, never into the data. What cuts the trainer off from the network, and the courier
from all else, is not believed but tried, each in a process of its own: it cannot be undone.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fedward_client.courier.status import Wall
from fedward_common.machine.landlock import landlock_abi

__all__ = ["Weakness", "weaknesses"]

PR_GET_DUMPABLE = 3
NETWORK_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre")
MEMORY_SYSTEMS = ("tmpfs", "ramfs")
PROBE = "from fedward_client.trainer.isolation import isolate; found = isolate(); print(found.namespace, found.filter)"
PROBE_WALLS = "from fedward_client.courier.walls import probe; print(*(wall.value for wall in probe()))"
PROBE_S = 30.0
ABI_PORTS, ABI_SIGNALS = 4, 6  # of Landlock
USER_NAMESPACES = "allow it user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns)"
TWO_ACCOUNTS = "run courier and trainer as two accounts (fedward-client service)"


@dataclass(frozen=True, kw_only=True)
class Weakness:
    """Something that is not protected here: a lasting name, and a sentence."""

    name: str
    text: str


def weaknesses(folder: Path, data: Path) -> tuple[Weakness, ...]:
    """All that fedward cannot protect on this machine, for a process that has forbidden its own core dumps.

    Args:
      folder: of the site.
      data: the data file.
    """
    walls = _walls()
    found = [
        ("swap", _swap()),
        ("core_dumps", _core_dumps()),
        ("other_accounts", _other_accounts(data)),
        ("root", "root, and whoever can become root, can read data, keys and memory"),
        ("own_account", "any other program of this account can read data and keys" + _as_root()),
        ("at_rest", "fedward encrypts nothing on disk: use an encrypted disk"),
        ("file_system", _file_system(folder)),
        ("network", _network(*_cut_off())),
        ("courier", _courier(walls, landlock_abi())),
        ("courier_sockets", _courier_sockets(walls)),
        ("courier_modes", _courier_modes(walls)),
    ]
    return tuple(Weakness(name=name, text=text) for name, text in found if text)


def _cut_off() -> tuple[bool, bool]:
    """Whether a process of this account gets an empty network namespace, and a filter against sockets, here."""
    said = _said_by(PROBE)
    return "True" in said[:1], "True" in said[1:2]


def _walls() -> frozenset[Wall]:
    """What a courier of this account that is taken over meets here."""
    said = _said_by(PROBE_WALLS)
    return frozenset(wall for wall in Wall if wall.value in said)


def _said_by(program: str) -> list[str]:
    """The words that a Python of its own prints; none where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own code, in our own Python
            (sys.executable, "-P", "-c", program),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def _network(namespace: bool, filter: bool) -> str:
    if namespace and filter:
        return ""
    if namespace or filter:
        there, missing = ("an empty network namespace", "a seccomp filter against sockets")[:: 1 if namespace else -1]
        return f"the process that reads the data is cut off from the network by {there} alone: {missing} is not there"
    return (
        "nothing here cuts a process of this account off from the network: the trainer does not start, unless it is "
        "started without one (PrivateNetwork=yes, --network none) or policy.waivers names allow_network"
    )


def _courier(walls: frozenset[Wall], abi: int) -> str:
    if Wall.LANDLOCK not in walls:
        can = "connect to any server, and end the trainer"
        if Wall.VIEW not in walls:
            can = f"read data and keys, {can}"
        return (
            f"this kernel has no Landlock: a courier of the same account that was taken over can {can}; {TWO_ACCOUNTS}"
        )
    if abi < ABI_PORTS:
        return "this kernel's Landlock knows no ports: a courier that was taken over can connect to any server"
    if Wall.SECCOMP not in walls:
        return (
            "without a seccomp filter a courier that was taken over can connect to any server, past Landlock, by MPTCP"
        )
    if abi < ABI_SIGNALS:
        return (
            "this kernel's Landlock knows no signals: a courier of the same account that was taken over can end the "
            "trainer, and connect to abstract sockets of other programs; " + TWO_ACCOUNTS
        )
    return ""


def _courier_sockets(walls: frozenset[Wall]) -> str:
    if Wall.VIEW in walls:
        return ""
    return (
        "this account gets no file tree of its own (mount namespace): a courier of the same account that was taken "
        "over can connect to sockets of its other programs (tmux, systemd --user, D-Bus, docker, gpg-agent) and have "
        f"these read data and keys; {USER_NAMESPACES}, or {TWO_ACCOUNTS}"
    )


def _courier_modes(walls: frozenset[Wall]) -> str:
    if {Wall.VIEW, Wall.SECCOMP} & walls:
        return ""
    return (
        "neither a file tree of its own nor a seccomp filter: a courier of the same account that was taken over can "
        f"change mode and owner of the site's files (chmod), and so open them to other accounts; {TWO_ACCOUNTS}"
    )


def _prctl(option: int) -> int:
    try:
        return int(ctypes.CDLL(None, use_errno=True).prctl(option, 0, 0, 0, 0))
    except (OSError, AttributeError):  # not Linux
        return -1


def _swap() -> str:
    try:
        on = len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1
    except (OSError, UnicodeDecodeError):
        return "it cannot be told whether swap is on: records in memory may be written to disk"
    return "swap is on: records in memory may be written to disk (swapoff -a, or encrypt it)" if on else ""


def _core_dumps() -> str:
    if _prctl(PR_GET_DUMPABLE) == 0:
        return ""
    return "a crash may leave a core dump with records in it: this system cannot forbid it for one process"


def _other_accounts(data: Path) -> str:
    try:
        path = data.resolve(strict=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        parents = _above(path)
    except OSError:
        return ""
    everyone = mode & stat.S_IROTH and all(parent & stat.S_IXOTH for parent in parents)
    group = mode & stat.S_IRGRP and all(parent & stat.S_IXGRP for parent in parents)
    if everyone or group:
        return f"{'every account' if everyone else 'its group'} on this machine can read the data file (chmod 600)"
    return ""


def _above(path: Path) -> list[int]:
    """The modes of all folders on the way to a file."""
    return [stat.S_IMODE(parent.stat().st_mode) for parent in path.parents]


def _as_root() -> str:
    return "; and this is root: use an account of its own" if os.geteuid() == 0 else ""


def _file_system(folder: Path) -> str:
    kind = _kind_of(folder)
    if kind.startswith(MEMORY_SYSTEMS):
        return f"the site's folder lies in memory ({kind}): its ledger is gone after a restart"
    if kind.startswith(NETWORK_SYSTEMS):
        return f"the site's folder lies on a {kind} file system: locks and fsync may not hold there"
    return ""


def _kind_of(folder: Path) -> str:
    """The file system's type, from the longest mount point that holds the folder; empty where it cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        path = folder.resolve(strict=True)
    except (OSError, UnicodeDecodeError):
        return ""
    mounts = [(Path(parts[1]), parts[2]) for parts in map(str.split, lines) if len(parts) > 2]
    holding = [(len(at.parts), order, kind) for order, (at, kind) in enumerate(mounts) if path.is_relative_to(at)]
    return max(holding, default=(0, 0, ""))[2]
