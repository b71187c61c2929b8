"""The courier's process: give up every file but its own, then carry messages until SIGTERM.

    python -m fedward_client.courier.main COURIER_FOLDER [--credentials-fd N]

Without a descriptor the keys of the Door are read from the Door's folder, where the trainer's service leaves them.
Exit codes: 0 stopped on request; 2 the folder, or what was named, has to be mended first; another: start it again, it
crashed, or the Door's folder was replaced by another.

Whoever takes this process over has what it has: the link, the node key, finished updates. So it closes the door behind
itself before a byte arrives, and before a library is imported that starts threads: those would stay free.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.status import Board, Status, Wall, our_version
from fedward_client.courier.walls import confine_courier
from fedward_common.errors import FedwardError
from fedward_common.machine.holding import hold
from fedward_common.machine.logs import json_logging

if TYPE_CHECKING:
    from fedward_client.courier.fleet import Fleet
    from fedward_client.courier.heart import Heart
    from fedward_client.courier.loop import Courier
    from fedward_client.door.stub import RemoteDoor

__all__ = ["main"]

log = logging.getLogger(__name__)

PROCESS = "courier"
CRASHED, MEND_FIRST = 1, 2
STOP_WITHIN_S, FAREWELL_S = 1.0, 0.7
WAIT_S = 0.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3), in glibc
OVERHEAD = 1 << 16  # bytes that Flower puts round a message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the courier; returns its exit code."""
    given = _parser().parse_args(arguments)
    json_logging(sys.stderr, PROCESS)
    try:
        folder = CourierFolder.open(given.folder.absolute())
        with hold(folder.lock_path):
            json_logging(folder.log_path, PROCESS)
            return _run(folder, given.credentials_fd)
    except FedwardError as error:
        json_logging(sys.stderr, PROCESS)
        log.critical("%s; hint: %s", error, error.hint)
        return MEND_FIRST


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What works together in this process."""

    fleet: Fleet
    heart: Heart
    door: RemoteDoor
    courier: Courier
    board: Board
    folder: CourierFolder


def _run(folder: CourierFolder, credentials_fd: int | None) -> int:
    asked = threading.Event()
    _on_signals(asked.set)
    _wait_for_door(folder, credentials_fd, asked)
    allowed = _door_identity(folder)
    confined = confine_courier(folder)
    board = Board(folder.status_path, _first_status(folder, confined))
    parts = _assemble(folder, board, credentials_fd)
    json_logging(folder.log_path, PROCESS)  # again: Flower brings handlers of its own
    log.info(
        "courier of %s to %s, confined by: %s", folder.file.name, folder.file.server, ", ".join(confined) or "nothing"
    )
    worker = threading.Thread(target=parts.courier.run, name="loop", daemon=True)
    parts.heart.start()
    worker.start()
    while worker.is_alive() and not asked.wait(1.0):
        if credentials_fd is None and _door_identity(folder) != allowed:
            log.error("the Door's folder is another one now, which this process may not read")
            break
    _end(parts, worker)
    return 0 if asked.is_set() else CRASHED


def _wait_for_door(folder: CourierFolder, credentials_fd: int | None, asked: threading.Event) -> None:
    """Only a folder that exists can be allowed; the trainer's service may be the later one to start."""
    while credentials_fd is None and _door_identity(folder) is None and not asked.is_set():
        now = _first_status(folder, ())
        Board(folder.status_path, replace(now, reason="there is no Door yet", hint="start the trainer"))
        asked.wait(WAIT_S)


def _door_identity(folder: CourierFolder) -> tuple[int, int] | None:
    try:
        found = Path(folder.file.door).parent.stat()
    except OSError:
        return None
    # in a view of its own the folder that was allowed is seen for ever, also once it is removed
    return (found.st_dev, found.st_ino) if found.st_nlink else None


def _assemble(folder: CourierFolder, board: Board, credentials_fd: int | None) -> _Parts:
    from fedward_client.app import client_app
    from fedward_client.courier.fleet import Fleet
    from fedward_client.courier.heart import Heart
    from fedward_client.courier.link import Watch
    from fedward_client.courier.loop import Courier
    from fedward_client.door.credentials import Half, Published
    from fedward_client.door.place import Place
    from fedward_client.door.stub import RemoteDoor

    largest = (folder.file.largest_mb << 20) + OVERHEAD
    fleet = Fleet(folder, Watch(largest=largest, progress=board.alive))
    heart = Heart(Fleet(folder, Watch(largest=OVERHEAD)), board)
    socket = Path(folder.file.door)
    keys = Published(Place(socket.parent)) if credentials_fd is None else Half.from_fd(credentials_fd)
    door = RemoteDoor(socket, keys, max_bytes=largest)
    courier = Courier(
        fleet,
        client_app(lambda _: door),
        name=folder.file.name,
        board=board,
        heart=heart,
        session=folder.session,
    )
    return _Parts(fleet=fleet, heart=heart, door=door, courier=courier, board=board, folder=folder)


def _end(parts: _Parts, worker: threading.Thread) -> None:
    """Stop within two seconds, whatever hangs: the outbox keeps a reply, and Flower forgets a node by itself."""
    parts.courier.stop()
    parts.heart.stop()
    parts.door.close()
    worker.join(STOP_WITHIN_S)
    if not worker.is_alive():
        _say_farewell(parts)
    parts.board.stopped()
    log.info("stopped")
    if worker.is_alive():
        logging.shutdown()
        os._exit(0)  # a call that hangs in the network would hold the interpreter's end up


def _say_farewell(parts: _Parts) -> None:
    """Go offline, so that the next start is welcome at once; but not for long."""
    if parts.fleet.node_id is None:
        return

    def farewell() -> None:
        try:
            parts.fleet.deactivate()
        except FedwardError:
            return
        parts.folder.session.forget()

    thread = threading.Thread(target=farewell, name="farewell", daemon=True)
    thread.start()
    thread.join(FAREWELL_S)


def _first_status(folder: CourierFolder, confined: tuple[Wall, ...]) -> Status:
    now, tick = time.time(), time.monotonic()
    return Status(
        since=now,
        server=folder.file.server,
        version=our_version(),
        pid=os.getpid(),
        confined=confined,
        alive_at=tick,
        contact_at=tick,
    )


def _on_signals(stop: Callable[[], None]) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _give_memory_back() -> None:
    """Else the C library keeps what a large message took: it learns to take even 32 MB from a heap that only grows."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_THRESHOLD, 1 << 20), (M_TRIM_THRESHOLD, 1 << 20), (M_ARENA_MAX, 2)):
            libc.mallopt(parameter, value)


def _import_nothing_from_here() -> None:
    """Without -P Python imports from the current folder, which would then be allowed too, whatever lies in it."""
    if not sys.flags.safe_path and sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
        del sys.path[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fedward_client.courier.main", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="COURIER_FOLDER")
    parser.add_argument("--credentials-fd", type=int, metavar="N", help="an open descriptor with the Door's keys")
    return parser


if __name__ == "__main__":
    _import_nothing_from_here()
    _give_memory_back()
    sys.exit(main())
