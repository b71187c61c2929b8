"""A hostile operator in the flesh: a stock SuperLink of its own, with a real courier and a real trainer enrolled in it.

It holds every key an operator holds, and sends what it likes. A tap before the SuperLink writes down, in clear, all
that the site ever says to it.

Example:
    with Hostile.make(folder) as hostile:
        replies = hostile.send({"good": pack(hostile.hospital.plan_bytes())})
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message, RecordDict

from fedward_client.courier.folder import CourierFile, CourierFolder
from fedward_client.courier.status import Status
from fedward_server.deployment.flower import Control, Tasks
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.superlink import Upstream, flower_environment, healthy, superlink_arguments
from fedward_server.deployment.task import TaskGrid
from support.deployed import QUIET, free_port, wait_until
from support.hospital import PLAIN, Hospital
from support.tap import Tap
from support.trainer import TrainerProcess, short_folder, with_slots

CANARY = "zqhostile"
LARGEST_MB = 2
CODE = """\
import os, pathlib
pathlib.Path({marker!r}).joinpath(f"{name}-{{os.getpid()}}").write_text("ran")
data = pathlib.Path({data!r}).read_text()
raise RuntimeError(data)
app = None
"""
POINTER = """\
[project]
name = "fedward"
version = "1.0.0"
description = "code"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedward"

[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "evil.client:app"
"""


@dataclass(kw_only=True)
class Hostile:
    """The operator, the site, and what passed between them."""

    hospital: Hospital
    operator: OperatorFolder
    courier: CourierFolder
    trainer: TrainerProcess
    carrier: subprocess.Popen[bytes]
    tap: Tap
    grid: TaskGrid
    node: int
    flower_run: int
    markers: Path
    flower_home: Path
    replies: dict[str, Message] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    """What had been trained when everything hostile was answered."""

    @classmethod
    @contextmanager
    def make(cls) -> Iterator[Hostile]:
        """Start everything; end it at the end of the block."""
        with short_folder() as folder, ExitStack() as stack:
            hospital = with_slots(Hospital.make(folder, stages=PLAIN), more='release_at = "ready"')
            plant(hospital.root / "notes.csv")
            (markers := folder / "markers").mkdir(mode=0o777)
            operator = OperatorFolder.create(folder / "evil", name="evil", names=("localhost", "127.0.0.1"))
            port, tap_port = free_port(), free_port()
            stack.enter_context(ended(superlink(operator, port)))
            tap = stack.enter_context(Tap(tap_port, port, operator.keys))
            courier = _courier_folder(folder / "courier", hospital, operator, tap_port)
            trainer = stack.enter_context(TrainerProcess(hospital))
            upstream = Upstream.of(operator, port=port)
            wait_until("the SuperLink answers", lambda: healthy(upstream), seconds=90)
            control = Control(upstream)
            stack.callback(control.close)
            node = control.register_node(courier.node_public_key, name="victim")
            carrier = stack.enter_context(ended(_courier(courier, trainer, home := folder / "flower")))
            flower_run = control.start_run(code_bundle(markers, hospital.root / "notes.csv"))
            grid = stack.enter_context(_grid(upstream))
            trainer.ready()
            wait_until("the site is online", lambda: node in grid.get_node_ids(), seconds=90)
            yield cls(
                hospital=hospital,
                operator=operator,
                courier=courier,
                trainer=trainer,
                carrier=carrier,
                tap=tap,
                grid=grid,
                node=node,
                flower_run=flower_run,
                markers=markers,
                flower_home=home,
            )

    def send(self, contents: Mapping[str, tuple[str, RecordDict]], *, seconds: float = 120.0) -> dict[str, Message]:
        """Send each content under its message type; the replies, by name, when all are there."""
        asked: dict[str, str] = {}
        for name, (kind, content) in contents.items():
            (number,) = self.grid.push_messages([Message(content, self.node, kind)])
            assert number, f"the SuperLink itself refuses {name}"
            asked[number] = name
        end = time.monotonic() + seconds
        found: dict[str, Message] = {}
        while len(found) < len(asked):
            assert time.monotonic() < end, f"no reply to {set(asked.values()) - set(found)}"
            waiting = [number for number, name in asked.items() if name not in found]
            for reply in self.grid.pull_messages(waiting):
                found[asked[reply.metadata.reply_to_message_id]] = reply
            time.sleep(0.1)
        self.replies |= found
        return found

    def link(self) -> Status | None:
        """What the courier says of itself."""
        return CourierFolder.status(self.courier.path)

    def heard(self) -> bytes:
        """All that the site ever said, as it was said."""
        return self.tap.heard()

    def kept(self) -> dict[str, bytes]:
        """Every file of the SuperLink: its database and its home."""
        files = [path for path in self.operator.state.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.operator.state)): path.read_bytes() for path in files}

    def started(self) -> list[str]:
        """The plans that the ledger says were trained."""
        lines = (self.hospital.root / "books" / "ledger.jsonl").read_text().splitlines()
        bodies = [json.loads(line)["body"] for line in lines]
        return [body["plan_id"] for body in bodies if body.get("entry") == "start"]


def plant(table: Path) -> None:
    """A canary into every text and every id, lasting and of a patient."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        for number, row in enumerate(rows):
            more = f"{CANARY}{number:04d}"
            changed = {
                "note": f"{row['note']} {more}",
                "patient": f"{row['patient']}{more}",
                "id": f"{row['id']}{more}",
            }
            out.writerow(row | changed)


def code_bundle(markers: Path, data: Path) -> bytes:
    """A Flower bundle whose server and client would read the site's data and leave a marker where they ran."""
    files = {"pyproject.toml": POINTER, "evil/__init__.py": ""}
    for name in ("server", "client"):
        files[f"evil/{name}.py"] = CODE.format(marker=str(markers), name=name, data=str(data))
    digests = [f"{name},{hashlib.sha256(text.encode()).hexdigest()},{len(text) * 8}" for name, text in files.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in {**files, ".info/CONTENT": "\n".join(digests)}.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


def superlink(operator: OperatorFolder, port: int) -> subprocess.Popen[bytes]:
    """A stock SuperLink on loopback."""
    operator.superlink.mkdir(parents=True, exist_ok=True)
    with (operator.root / "superlink.log").open("wb") as log:
        return subprocess.Popen(
            superlink_arguments(operator, port=port),
            env=os.environ | QUIET | flower_environment(operator),
            stdout=log,
            stderr=log,
            cwd=operator.root,
        )


def _courier_folder(path: Path, hospital: Hospital, operator: OperatorFolder, port: int) -> CourierFolder:
    file = CourierFile.model_validate(
        {
            "schema": 1,
            "name": "st-elsewhere",
            "server": f"localhost:{port}",
            "door": str(hospital.root / "door" / "door.sock"),
            "largest_mb": LARGEST_MB,
        }
    )
    return CourierFolder.create(path, file, ca_pem=(operator.keys / "ca.pem").read_bytes())


def _courier(folder: CourierFolder, trainer: TrainerProcess, home: Path) -> subprocess.Popen[bytes]:
    half = trainer.pair.courier.to_fd()
    program = [sys.executable, "-P", "-m", "fedward_client.courier.main", str(folder.path)]
    try:
        return subprocess.Popen(
            [*program, "--credentials-fd", str(half)],
            pass_fds=[half],
            env=os.environ | QUIET | {"FLWR_HOME": str(home)},
        )
    finally:
        os.close(half)


@contextmanager
def _grid(upstream: Upstream) -> Iterator[TaskGrid]:
    tasks = Tasks(upstream)
    task = wait_until("the run's task", tasks.acquire, seconds=30)
    tasks.close()
    grid = TaskGrid(upstream, task.token, stopping=lambda: False, seen=lambda keys: None)
    grid.begin()
    try:
        yield grid
    finally:
        grid._ended.set()
        grid.close()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End it, by its id, at the end of the block."""
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
