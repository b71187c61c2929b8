"""The trainer's end of the Door for tests: a server in this process with any answer, or a real process on a real site.

Example:
    with short_folder() as folder, serving(folder, answer=bytes.upper) as served:
        assert served.door.answer(b"plan") == b"PLAN"
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedward_client.door.credentials import Pair
from fedward_client.door.place import Place
from fedward_client.door.stub import RemoteDoor
from fedward_client.installation.site_file import ReleaseAt
from fedward_client.trainer.service import TrainerServer
from fedward_client.trainer.slots import Slots
from fedward_client.trainer.turns import Turns
from support.hospital import Hospital

AT_ONCE = Slots(release_at=ReleaseAt.READY, slot_s=1)
START_S = 90.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A private folder whose path leaves room for a socket's name, which pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="fd-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Served:
    """A server in this process."""

    place: Place
    pair: Pair
    turns: Turns
    server: TrainerServer
    door: RemoteDoor


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    answer: Callable[[bytes], bytes] = lambda data: data,
    slots: Slots = AT_ONCE,
    max_update_bytes: int = 2**27,
    beat_s: float = 0.1,
    silence_s: float = 20.0,
) -> Iterator[Served]:
    """Serve with any answer, without isolation, until the end of the block."""
    place, pair = Place(folder), Pair.make()
    place.prepare()
    turns = Turns(answer, slots)
    server = TrainerServer(place, pair.trainer, max_update_bytes=max_update_bytes, beat_s=beat_s)
    server.open(turns)
    door = RemoteDoor(place.socket, pair.courier, silence_s=silence_s)
    try:
        yield Served(place, pair, turns, server, door)
    finally:
        door.close()
        server.close()
        turns.close(grace_s=20)


SLOWLY = """
import sys, time
from fedward_client.trainer import main
from fedward_client.training import LocalTrainer
honest = LocalTrainer.train
LocalTrainer.train = lambda *given, **named: (time.sleep({}), honest(*given, **named))[1]
sys.exit(main.main(sys.argv[1:]))
"""


@dataclass
class TrainerProcess:
    """``python -m fedward_client.trainer.main`` on a site's folder; ended, if need be killed, at the end of a block."""

    hospital: Hospital
    arguments: Sequence[str] = ()
    before: Sequence[str] = ()
    training_s: float = 0.0  # that the training of a round takes longer: long enough to be interrupted in it
    pair: Pair = field(default_factory=Pair.make)
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        descriptor = self.pair.trainer.to_fd()
        handed = () if "--publish-credentials" in self.arguments else ("--credentials-fd", str(descriptor))
        module = ("-c", SLOWLY.format(self.training_s)) if self.training_s else ("-m", "fedward_client.trainer.main")
        program = [sys.executable, *module, str(self.hospital.root)]
        self.process = subprocess.Popen(
            [*self.before, *program, *handed, *self.arguments],
            pass_fds=[descriptor],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        os.close(descriptor)

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stderr
        self.process.stderr.close()

    @property
    def place(self) -> Place:
        return Place.at_site(self.hospital.root)

    @property
    def door(self) -> RemoteDoor:
        return RemoteDoor(self.place.socket, self.pair.courier)

    def ready(self) -> RemoteDoor:
        """Wait until it serves."""
        door, end = self.door, time.monotonic() + START_S
        while not door.ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, "the trainer does not start"
            time.sleep(0.1)
        return door

    def log(self) -> str:
        """All it logged; of a process that has ended."""
        assert self.process.stderr
        return self.process.stderr.read()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def with_slots(hospital: Hospital, seconds: int = 1, *, more: str = "") -> Hospital:
    """The same site with another ``[network]`` table."""
    path = hospital.root / "site.toml"
    table = f"[network]\nslot_s = {seconds}\n{more}\n[coordinator]"
    path.write_text(path.read_text(encoding="utf-8").replace("[coordinator]", table), encoding="utf-8")
    return hospital
