"""``start``, ``status`` and ``stop``: a site's two processes under one supervisor, for an installation of one account.

    fedward-client start  ->  trainer (data, no network)  and  courier (network, no data), restarted when they fall

With two accounts there is no supervisor: ``service`` prints a systemd unit for each process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedward_client.commands.join import COURIER
from fedward_client.courier.folder import CourierFolder
from fedward_client.courier.status import Status
from fedward_client.door.credentials import Pair
from fedward_client.door.place import Place, listening
from fedward_client.installation.folder import Folder
from fedward_common.errors import FedwardError, InputError, OutputError
from fedward_common.files import make_private_folder, read_json
from fedward_common.machine.holding import Stop, hold, holder, stop
from fedward_common.machine.life import Child
from fedward_common.machine.processes import Ended, Supervisor
from fedward_common.report import Report, rows

__all__ = ["halt", "start", "start_in_background", "status"]

LOCK, PROCESSES, LOGS = "start.lock", "processes.json", "logs"
STOP_WITHIN_S = 90.0  # a round that is being trained may end first
UP_WITHIN_S = 120.0
TAIL = 64 * 1024
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}


def start(root: Path, courier: Path | None) -> Report:
    """Run both processes until SIGTERM or Ctrl-C.

    Raises:
      FedwardError: the site or the courier's folder is not ready, it runs already, or a process cannot be helped.
    """
    folder, carrier = Folder.open(root), _courier_of(root, courier)
    folder.load_site()
    folder.load_keys()
    if not folder.has_books:
        raise InputError("the ledger is not open yet", hint=f"fedward-client init {root}")
    CourierFolder.open(carrier)
    make_private_folder(folder.root / LOGS)
    with hold(folder.root / LOCK), _children(folder, carrier) as children:
        ended = Supervisor(children, status=folder.root / PROCESSES).run()
    if ended.child is not None:
        raise _why(ended, folder, carrier)
    return Report(facts={"command": "start", "stopped": True}, lines=("stopped",))


def start_in_background(root: Path, courier: Path | None) -> Report:
    """``start`` in a process that outlives the terminal, once both its processes run.

    Raises:
      FedwardError: as ``start``, or they did not come up.
    """
    folder = Folder.open(root)
    make_private_folder(folder.root / LOGS)
    argv = [sys.executable, "-m", "fedward_client", "start", str(root)]
    argv += ["--courier", str(courier)] if courier else []
    log = folder.root / LOGS / "start.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this very program
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    end = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise _said(log) or InputError("the site ended at once", hint=f"see {log}")
        children = _processes(folder)
        if children and all(child.get("state") == "running" for child in children):
            lines = (f"started as process {process.pid}; `fedward-client status {root}` tells how it is",)
            return Report(facts={"command": "start", "pid": process.pid}, lines=lines)
        time.sleep(0.2)
    raise InputError(f"the site is not up after {UP_WITHIN_S:.0f} s", hint=f"fedward-client status {root}; see {log}")


def status(root: Path, courier: Path | None) -> Report:
    """How both processes are, what the link is like, and which runs are held.

    Returns:
      A report; its ``problem`` says that the site does not run, or does not reach the operator.
    """
    folder, carrier = Folder.open(root), _courier_of(root, courier)
    pid, link = holder(folder.root / LOCK), CourierFolder.status(carrier)
    children = _processes(folder) if pid else []
    serving = listening(Place.at_site(folder.root).socket)
    held = _held(folder)
    facts = {
        "command": "status",
        "courier": None if link is None else json.loads(link.to_json()),
        "held_runs": list(held),
        "pid": pid,
        "processes": children,
        "trainer_listens": serving,
    }
    lines = rows(
        [
            ("site", f"running, process {pid}" if pid else "not started by `fedward-client start`"),
            *((str(child["name"]), _life(child)) for child in children),
            ("trainer", "takes plans" if serving else "does not answer"),
            ("link", _link(link)),
            ("held runs", ", ".join(held) or "none"),
        ]
    )
    return Report(facts=facts, lines=lines, problem=_problem(root, serving, link))


def halt(root: Path) -> Report:
    """Ask ``start`` to end and wait for it. A round that is being trained may end first.

    Raises:
      InputError: it belongs to another account.
      OutputError: it still runs after a minute and a half.
    """
    folder = Folder.open(root)
    outcome = stop(folder.root / LOCK, STOP_WITHIN_S)
    if outcome is Stop.STILL_RUNNING:
        raise OutputError("the site is still running", hint=f"see {folder.root / LOGS}, or wait a little")
    told = "stopped" if outcome is Stop.ENDED else "it was not running"
    return Report(facts={"command": "stop", "outcome": outcome.value}, lines=(told,))


# ---- the two processes ---------------------------------------------------------------
@contextmanager
def _children(folder: Folder, carrier: Path) -> Iterator[tuple[Child, ...]]:
    """Trainer first; each gets its half of keys that were made for this start alone."""
    pair, place = Pair.make(), Place.at_site(folder.root)
    halves = (pair.trainer.to_fd(), pair.courier.to_fd())
    environment = os.environ | QUIET
    try:
        yield (
            Child(
                name="trainer",
                argv=_python("fedward_client.trainer.main", folder.root.absolute(), halves[0]),
                env=environment,
                pass_fds=halves[:1],
                log=folder.root / LOGS / "trainer.jsonl",
                ready=partial(listening, place.socket),
                ready_limit_s=UP_WITHIN_S,
                grace_s=STOP_WITHIN_S,
            ),
            Child(
                name="courier",
                argv=_python("fedward_client.courier.main", carrier, halves[1]),
                env=environment,
                pass_fds=halves[1:],
                log=folder.root / LOGS / "courier.log",
                watch=partial(CourierFolder.deafness, carrier),
            ),
        )
    finally:
        for half in halves:
            os.close(half)


def _python(module: str, folder: Path, half: int) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", module, str(folder), "--credentials-fd", str(half))


def _courier_of(root: Path, given: Path | None) -> Path:
    return (given or root / COURIER).absolute()


def _why(ended: Ended, folder: Folder, carrier: Path) -> FedwardError:
    """What the process said before it ended for good."""
    logs = {"trainer": [folder.root / LOGS / "trainer.jsonl"]}
    for log in logs.get(str(ended.child), [carrier / "log.jsonl", folder.root / LOGS / "courier.log"]):
        if told := _said(log):
            return told
    return InputError(f"the {ended.child} ended with code {ended.code}", hint=f"see {folder.root / LOGS}")


def _said(log: Path) -> FedwardError | None:
    """The last error of a log: JSON lines of a process, or the two lines of a command."""
    try:
        lines = log.read_bytes()[-TAIL:].decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("level") in ("ERROR", "CRITICAL"):
            return InputError(str(row.get("message", "")), hint=f"all of it is in {log}")
    told = {key: line for line in lines for key in ("fedward: error: ", "hint: ") if line.startswith(key)}
    if "fedward: error: " not in told:
        return None
    what, hint = (told.get(key, "").removeprefix(key) for key in ("fedward: error: ", "hint: "))
    return InputError(what, hint=hint or f"see {log}")


# ---- words ---------------------------------------------------------------------------
def _processes(folder: Folder) -> list[dict[str, Any]]:
    content = read_json(folder.root / PROCESSES)
    children = content.get("children", []) if isinstance(content, dict) else []
    return [child for child in children if isinstance(child, dict)]


def _life(child: dict[str, Any]) -> str:
    restarts = int(child.get("restarts", 0))
    again = f", restarted {restarts} times" if restarts else ""
    return f"{child.get('state')}, process {child.get('pid')}{again}"


def _link(link: Status | None) -> str:
    if link is None:
        return "no courier runs"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(link.since))
    why = f": {link.reason}; {link.hint}" if link.reason else ""
    return f"{link.state.value} to {link.server} since {since}{why}"


def _held(folder: Folder) -> tuple[str, ...]:
    """Runs that a failure holds here. Those of a plan that is being served are not told apart: not while it runs."""
    if not folder.has_books or folder.in_use:
        return ()
    return folder.read_books(folder.load_keys()).ledger.held()


def _problem(root: Path, serving: bool, link: Status | None) -> FedwardError | None:
    if not serving or link is None:
        return InputError("the site does not run", hint=f"fedward-client start {root}")
    if link.reason:
        return InputError(f"the link is {link.state.value}: {link.reason}", hint=link.hint or "it is tried again")
    return None
