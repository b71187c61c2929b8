"""Children that serve plans from a real site folder until they are killed: what they sent, and what the books say.

Example:
    warm = Warm.up(hospital)
    child = warm.start(folder, plans)
    os.kill(child.pid, signal.SIGKILL)
    sent = child.reap()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedward_client.installation.folder import Folder
from fedward_client.installation.opening import site_for, trainers_for
from fedward_client.trainers import SiteTrainers
from support.hospital import Hospital

LENGTH = struct.Struct("<I")


@dataclass
class Child:
    """A forked process that answers plans and writes each reply, length first, into a pipe."""

    pid: int
    pipe: int

    def reap(self) -> list[bytes]:
        """Wait for its end and give the whole replies that left it."""
        with open(self.pipe, "rb") as file:
            data = file.read()
        os.waitpid(self.pid, 0)
        sent = []
        while len(data) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data)
            body = data[LENGTH.size : LENGTH.size + length]
            assert len(body) == length, "a partial reply left the site"
            sent.append(body)
            data = data[LENGTH.size + length :]
        assert not data, "a partial reply left the site"
        return sent


@dataclass(frozen=True, kw_only=True, eq=False)
class Warm:
    """A process that has loaded the model and read the data once, so that its forks need milliseconds."""

    hospital: Hospital
    trainers: SiteTrainers

    @classmethod
    def up(cls, hospital: Hospital, plans: Sequence[bytes], scratch: Path) -> Warm:
        """Serve all plans once, on a copy, with one thread: forks inherit no pool of threads."""
        import torch

        torch.set_num_threads(1)
        folder = Folder.open(hospital.root)
        trainers = trainers_for(folder, folder.load_site(), hospital.keys)
        warm = cls(hospital=hospital, trainers=trainers)
        warm.serve(warm.copy(scratch), plans, lambda reply: None)
        return warm

    def copy(self, target: Path) -> Path:
        """A fresh copy of the site's folder without its model and data, which are in memory."""
        shutil.copytree(self.hospital.root, target, ignore=shutil.ignore_patterns("models", "lock"))
        (target / "models").mkdir(mode=0o700)
        return target

    def serve(self, root: Path, plans: Sequence[bytes], send) -> None:  # type: ignore[no-untyped-def]
        """Open the books in a folder, answer the plans in order, and hand each reply over."""
        folder = Folder.open(root)
        file = folder.load_site()
        with folder.lock(), folder.open_books(file, self.hospital.keys) as books:
            site = site_for(file, self.hospital.keys, books, self.trainers)
            for plan in plans:
                send(site.answer(plan))

    def start(self, root: Path, plans: Sequence[bytes]) -> Child:
        """Fork a child that serves from a folder. The caller kills and reaps it."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return Child(pid=pid, pipe=reading)
        with contextlib.suppress(BaseException):
            os.close(reading)
            self.serve(root, plans, lambda reply: os.write(writing, LENGTH.pack(len(reply)) + reply))
        os._exit(0)
