"""What this machine's kernel lets an account do, found out without fedward's own code: else a defect there would look
like a kernel that forbids it, and its tests be skipped.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from fedward_client.courier.status import Wall
from fedward_common.machine.landlock import landlock_abi

MOUNT = """
import ctypes, os, sys
libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
if libc.unshare(0x10020000):
    sys.exit(os.strerror(ctypes.get_errno()))
for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
    open(f"/proc/self/{name}", "w").write(text)
if libc.mount(b"tmpfs", b"/proc", b"tmpfs", ctypes.c_ulong(0), None):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


@functools.cache
def no_mounts() -> str:
    """Why a process of this account gets no user namespace in which it may mount; empty where it does."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", MOUNT], capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def filters() -> bool:
    """Whether the kernel has seccomp filters that answer with an error."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return actions.exists() and "errno" in actions.read_text()


def walls_here() -> tuple[Wall, ...]:
    """What a courier must get on this machine."""
    given = {Wall.VIEW: not no_mounts(), Wall.LANDLOCK: landlock_abi() > 0, Wall.SECCOMP: filters()}
    return tuple(wall for wall in Wall if given[wall])
