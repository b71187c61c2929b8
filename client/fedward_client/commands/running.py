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
from fedward_client.door.place import SERVING, Place
from fedward_client.installation.folder import Folder
from fedward_common.errors import ConfigError, FedwardError, InputError, OutputError
from fedward_common.files import make_private_folder, read_json
from fedward_common.machine.holding import Stop, hold, holder, stop
from fedward_common.machine.keeper import State
from fedward_common.machine.life import Child
from fedward_common.machine.processes import Ended, Supervisor
from fedward_common.report import Report, counted, rows

__all__ = ["check_door", "halt", "start", "start_in_background", "status"]

LOCK, PROCESSES, LOGS = "start.lock", "processes.json", "logs"
STOP_WITHIN_S = 90.0  # a round that is being trained may end first
UP_WITHIN_S = 120.0
OPEN_WITHIN_S = 600.0  # libraries from a slow disk, and books of many years
TAIL = 64 * 1024
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
FOR_TRAINING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
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
    check_door(CourierFolder.open(carrier), Place.at_site(folder.root))
    make_private_folder(folder.root / LOGS)
    with hold(folder.root / LOCK), _children(folder, carrier) as children:
        ended = Supervisor(children, status=folder.root / PROCESSES).run()
    if ended.child is not None:
        raise _why(ended, folder)
    return Report(facts={"command": "start", "stopped": True}, lines=("stopped",))


def start_in_background(root: Path, courier: Path | None) -> Report:
    """``start`` in a process that outlives the terminal.

    Guarantees:
      - When this returns, the trainer takes plans and the courier runs.

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
        children = _processes(folder, of=process.pid)
        if children and all(child.get("state") == "running" for child in children):
            lines = (f"started as process {process.pid}; `fedward-client status {root}` tells how it is",)
            return Report(facts={"command": "start", "pid": process.pid}, lines=lines)
        time.sleep(0.2)
    raise InputError(f"the site is not up after {UP_WITHIN_S:.0f} s", hint=f"fedward-client status {root}; see {log}")


def status(root: Path, courier: Path | None) -> Report:
    """How both processes are, what the link is like, and which runs are held.

    Returns:
      A report; its ``problem`` says that the site does not run, does not reach the operator, or that this account
      cannot see whether it does.
    """
    folder, carrier = Folder.open(root), _courier_of(root, courier)
    pid, serving, held = holder(folder.root / LOCK), _serving(folder), _held(folder)
    link, unseen = _courier(carrier)
    children = _processes(folder, of=pid)
    facts = {
        "command": "status",
        "courier": None if link is None else json.loads(link.to_json()),
        "held_runs": None if held is None else list(held),
        "pid": pid,
        "processes": children,
        "takes_plans": serving,
    }
    lines = rows(
        [
            ("site", f"running, process {pid}" if pid else "not started by `fedward-client start`"),
            *((str(child["name"]), _life(child)) for child in children),
            ("plans", "are taken" if serving else "are not taken: no trainer has opened the site"),
            ("link", _link(link) if link else unseen or _no_courier(folder)),
            *([("courier held by", ", ".join(link.confined) or "nothing but the account")] if link else []),
            ("held runs", "not known while the trainer runs" if held is None else ", ".join(held) or "none"),
        ]
    )
    return Report(facts=facts, lines=lines, problem=_problem(root, pid, serving, link, unseen))


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
    pair = Pair.make()
    halves = (pair.trainer.to_fd(), pair.courier.to_fd())
    try:
        yield (
            Child(
                name="trainer",
                argv=_python("fedward_client.trainer.main", folder.root.absolute(), halves[0]),
                env=_environment(*KEPT, *FOR_TRAINING),
                pass_fds=halves[:1],
                log=folder.root / LOGS / "trainer.jsonl",
                ready=partial(_serving, folder),
                ready_limit_s=OPEN_WITHIN_S,
                grace_s=STOP_WITHIN_S,
            ),
            Child(
                name="courier",
                argv=_python("fedward_client.courier.main", carrier, halves[1]),
                env=_environment(*KEPT),
                pass_fds=halves[1:],
                log=folder.root / LOGS / "courier.log",
                watch=partial(CourierFolder.deafness, carrier),
                # whatever becomes of the process with the network, it must not end the one with the data
                critical=False,
                fatal_codes=frozenset(),
            ),
        )
    finally:
        for half in halves:
            os.close(half)


def _environment(*names: str) -> dict[str, str]:
    # what else stands there (tokens, agents, message buses) is nobody's business in these processes
    return {name: os.environ[name] for name in names if name in os.environ} | QUIET


def _python(module: str, folder: Path, half: int) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", module, str(folder), "--credentials-fd", str(half))


def _courier_of(root: Path, given: Path | None) -> Path:
    return (given or root / COURIER).absolute()


def _why(ended: Ended, folder: Folder) -> FedwardError:
    """What the trainer said before it ended for good."""
    if told := _said(folder.root / LOGS / "trainer.jsonl"):
        return told
    return InputError(f"the {ended.child} ended with code {ended.code}", hint=f"see {folder.root / LOGS}")


def _said(log: Path) -> FedwardError | None:
    """The last error of a log: JSON lines of a process, or the two lines of a command."""
    try:
        with open(os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("level") in ("ERROR", "CRITICAL"):
            return InputError(str(row.get("message", "")), hint=f"all of it is in {log}")
    told = {key: line for line in lines for key in ("fedward: error: ", "hint: ") if line.startswith(key)}
    if "fedward: error: " not in told:
        return None
    what, hint = (told.get(key, "").removeprefix(key) for key in ("fedward: error: ", "hint: "))
    return InputError(what, hint=hint or f"see {log}")


# ---- words ---------------------------------------------------------------------------
def _processes(folder: Folder, *, of: int | None) -> list[dict[str, Any]]:
    """What a supervisor said last; nothing where that was another one, which a crash may have left behind."""
    content = read_json(folder.root / PROCESSES)
    if not isinstance(content, dict) or of is None or content.get("pid") != of:
        return []
    return [child for child in content.get("children", []) if isinstance(child, dict)]


def _life(child: dict[str, Any]) -> str:
    restarts = int(child.get("restarts", 0))
    again = f", restarted {counted(restarts, 'time', 'times')}" if restarts else ""
    process = f", process {child['pid']}" if child.get("pid") else ""
    why = f": {child['reason']}" if child.get("reason") and child.get("state") != State.RUNNING else ""
    return f"{child.get('state')}{process}{again}{why}"


def _no_courier(folder: Folder) -> str:
    told = _said(folder.root / LOGS / "courier.log")
    return f"no courier runs: {told}" if told else "no courier runs"


def _serving(folder: Folder) -> bool:
    return holder(folder.root / SERVING) is not None


def _courier(carrier: Path) -> tuple[Status | None, str]:
    """What the courier says of itself, or why nothing of it can be seen from here."""
    try:
        carrier.stat()
        return CourierFolder.status(carrier), ""
    except OSError as error:
        return None, f"cannot be seen: {carrier}: {error.strerror}"
    except OutputError as error:
        return None, f"cannot be seen: {error}"


def _link(link: Status) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(link.since))
    why = "; ".join(text for text in (link.reason, link.hint) if text)
    return f"{link.state.value} ({link.server}) since {since}{why and f': {why}'}"


def _held(folder: Folder) -> tuple[str, ...] | None:
    """Runs that a failure holds here; None while the trainer runs: from outside, a plan that it serves looks alike."""
    if not folder.has_books:
        return ()
    if folder.in_use:
        return None
    return folder.read_books(folder.load_keys()).ledger.held()


def check_door(carrier: CourierFolder, place: Place) -> None:
    """Refuse a courier that would knock at another door than the trainer's.

    Raises:
      ConfigError: both files disagree.
    """
    if Path(carrier.file.door) != place.socket:
        raise ConfigError(
            f"courier.toml has its door at {carrier.file.door}, site.toml at {place.socket}",
            hint=f"set door in {carrier.path / 'courier.toml'}; with two accounts it has to be the same path",
        )


def _problem(root: Path, pid: int | None, serving: bool, link: Status | None, unseen: str) -> FedwardError | None:
    if pid and not (serving and link):
        return InputError("one of the site's processes is down", hint=f"it is started again; see {root / LOGS}")
    if serving and unseen:
        return InputError(
            f"the courier {unseen}", hint=f"with two accounts, as root: fedward-client status {root} --courier DIR"
        )
    if not serving or link is None:
        return InputError(
            "the site does not run", hint=f"fedward-client start {root}; with two accounts, systemctl start both units"
        )
    if link.reason:
        return InputError(f"the link is {link.state.value}: {link.reason}", hint=link.hint or "it is tried again")
    return None
