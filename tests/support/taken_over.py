"""What somebody tries who runs code as the courier. A program: ``python -P -c THIS JSON``; it prints what worked.

It has what the courier has: its account, its folder, the Door's credentials. ``confine`` says whether the courier had
closed the door behind itself before; without, and under the trainer's own account, most of it works, which shows that
the attempts are real. Nothing here does harm where it works.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# imported without an order, by whoever collects tests, it does nothing
told: dict[str, Any] = json.loads(sys.argv[1]) if __name__ == "__main__" else {}
site, courier, door = (Path(told.get(name, "/nowhere")) for name in ("site", "courier", "door"))
own = courier / "state"  # the only place where the courier may write
pid = int(told.get("pid", 0))
libc = ctypes.CDLL(None, use_errno=True)
SEIZE, READV, WRITEV, PIDFD_OPEN, PIDFD_GETFD = 0x4206, 310, 311, 434, 438  # on x86_64


def checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        if number != errno.EFAULT:  # the kernel asks first whether it may, and then for a good address
            raise OSError(number, os.strerror(number))
    return result


def system(number: int, *words: int) -> int:
    return checked(libc.syscall(*(ctypes.c_long(word) for word in (number, *words))))


def move_memory(number: int) -> int:
    place = (ctypes.c_ulong * 2)(0, 1)
    address = ctypes.addressof(place)
    return system(number, pid, address, 1, address, 1, 0)


def seize() -> None:
    libc.ptrace.restype = ctypes.c_long
    checked(libc.ptrace(ctypes.c_long(SEIZE), ctypes.c_long(pid), ctypes.c_long(0), ctypes.c_long(0)))


def read(path: Path) -> Callable[[], object]:
    return lambda: path.read_bytes() or sys.exit("empty")


def make(path: Path) -> None:
    path.write_text("x")
    path.unlink()


def append(path: Path) -> None:
    path.open("ab").close()


def through_a_link() -> None:
    link = own / "link"
    link.symlink_to(site / "notes.csv")
    try:
        link.read_bytes()
    finally:
        link.unlink()


def by_a_second_name() -> None:
    name = own / "stolen"
    os.link(site / "notes.csv", name)
    try:
        name.read_bytes()
    finally:
        name.unlink()


def in_the_door() -> None:
    path = door / "fake.sock"
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(path))
    path.unlink()


def of_a_child() -> None:
    subprocess.run(["/bin/cat", str(site / "notes.csv")], check=True, capture_output=True)


def from_a_child_of_another_account() -> None:
    """A set-user-id program would be a way out."""
    subprocess.run(["/bin/su", "root", "-c", f"cat {site}/notes.csv"], check=True, capture_output=True, input=b"")


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read data": read(site / "notes.csv"),
    "read site.toml": read(site / "site.toml"),
    "read ledger": read(site / "books" / "ledger.jsonl"),
    "read signing key": read(site / "keys" / "signing.key"),
    "read unit key": read(site / "keys" / "units.key"),
    "list the site": lambda: os.listdir(site),
    "list the outbox": lambda: os.listdir(site / "books"),
    "read by the current folder": read(Path("notes.csv")),
    "read by a child": of_a_child,
    "read by another account": from_a_child_of_another_account,
    "read through a link": through_a_link,
    "read by a second name": by_a_second_name,
    "read by the trainer's root": read(Path(f"/proc/{pid}/root/{site}/notes.csv")),
    "read by the trainer's folder": lambda: os.listdir(f"/proc/{pid}/cwd/"),
    "write the ledger": lambda: append(site / "books" / "ledger.jsonl"),
    "write the audit log": lambda: append(site / "books" / "audit.jsonl"),
    "write the data": lambda: append(site / "notes.csv"),
    "write site.toml": lambda: append(site / "site.toml"),
    "make a file in the books": lambda: make(site / "books" / "new"),
    "make a file in the keys": lambda: make(site / "keys" / "new"),
    "make a socket in the door": in_the_door,
    "open its memory": lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)),
    "copy its memory": lambda: move_memory(READV),
    "change its memory": lambda: move_memory(WRITEV),
    "trace it": seize,
    "list its open files": lambda: os.listdir(f"/proc/{pid}/fd") and os.readlink(f"/proc/{pid}/fd/0"),
    "take an open file": lambda: system(PIDFD_GETFD, system(PIDFD_OPEN, pid, 0), 0, 0),
    "end it": lambda: os.kill(pid, 0),
    "stop its siblings": lambda: os.kill(int(told["parent"]), 0),
}


def tried() -> dict[str, str]:
    found = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            found[name] = "worked"
        except (OSError, subprocess.SubprocessError, SystemExit) as error:
            found[name] = type(error).__name__
    return found


def asked() -> dict[str, str]:
    """Every plan in the courier's folder, through the Door, with the courier's own credentials."""
    from fedward_client.door.credentials import Half, Published
    from fedward_client.door.place import Place
    from fedward_client.door.stub import RemoteDoor

    keys = Published(Place(door)) if told["credentials_fd"] is None else Half.from_fd(told["credentials_fd"])
    found = {}
    with RemoteDoor(door / "door.sock", keys) as trainer:
        for plan in sorted((courier / "plans").iterdir()):
            found[plan.name] = trainer.answer(plan.read_bytes()).hex()
    return found


def main() -> None:
    signal.alarm(120)
    if told["confine"]:
        from fedward_client.courier.folder import CourierFolder
        from fedward_client.courier.walls import confine_courier

        assert confine_courier(CourierFolder.open(courier))
    print(json.dumps({"tried": tried(), "asked": asked() if told["ask"] else {}}))


if __name__ == "__main__":
    main()
