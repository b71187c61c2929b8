"""``run``, ``runs``, ``stop``, ``resume``: what the operator wants of a run. The running server makes it so."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedward_common.errors import InputError, OutputError, RoundAbandoned
from fedward_common.report import Report, rows, table
from fedward_server.commands.follow import status_line
from fedward_server.commands.words import ago, quoted, when
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder, RunState, RunStatus, Wanted

__all__ = ["begin", "outcome", "resume", "run_facts", "runs", "shown_status", "stop"]

SHOWN_DIGITS = 12
TWO_SLOTS_S = 60.0  # of a site that keeps the default network.slot_s
PREPARE = [sys.executable, "-m", "fedward_simulations", "prepare"]
NEEDED = ("fedward_simulations", "torch", "transformers", "peft")
HERE_ALONE = "run `fedward-sim prepare RUN.toml --out BUNDLE` where torch is, copy the folder BUNDLE here, and give it"


# ---- begin -------------------------------------------------------------------------
def begin(
    folder: OperatorFolder, source: Path, *, name: str | None, settings: Sequence[str]
) -> tuple[RunFolder, Report]:
    """Make a run of a bundle, or of a run file that is prepared first.

    Args:
      folder: of the operator.
      source: a bundle's folder, or a RUN.toml.
      name: of the run; None: the run file's name, with a number where that is taken.
      settings: ``a.b=value`` for the run file.

    Raises:
      InputError: the source is neither, or cannot be prepared here; the name or the bundle is taken.
      OutputError: the bundle is broken, or the disk is full.
    """
    if source.is_dir():
        if settings:
            raise InputError("--set is for a run file; a bundle is fixed", hint="give RUN.toml, or leave --set out")
        run = folder.create_run(source, name=name)
    else:
        with tempfile.TemporaryDirectory(prefix="fedward-") as place:
            bundle = Path(place) / "bundle"
            _prepare(source, bundle, settings)
            run = folder.create_run(bundle, name=name)
    notes = _notes(run.load_bundle().config.rounds.deadline_s)
    facts = {"command": "run", **run_facts(run), "notes": notes}
    lines = (*rows([("run", run.name), ("run id", run.run_id)]), *notes, when(folder, "it starts"))
    return run, Report(facts=facts, lines=lines)


def _notes(deadline_s: float) -> list[str]:
    # a site's slot is its own affair, and the first round of a run takes it longest
    if deadline_s >= TWO_SLOTS_S:
        return []
    short = f"note: rounds.deadline_s is {deadline_s:g} s; a site's answer leaves it a slot after its plan came"
    return [f"{short}, 30 s unless the site says otherwise: {TWO_SLOTS_S:g} s or more is sound"]


def _prepare(run_file: Path, bundle: Path, settings: Sequence[str]) -> None:
    if not run_file.is_file():
        raise InputError(f"there is no bundle and no run file {run_file}", hint="`fedward-sim prepare` makes a bundle")
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"a run file cannot be prepared here: {missing[0]} is not installed", hint=HERE_ALONE)
    options = [word for setting in settings for word in ("--set", setting)]
    # torch stays in a process of its own: the server runs without
    done = subprocess.run(  # noqa: S603
        [*PREPARE, str(run_file), "--out", str(bundle), *options], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    if done.returncode in (-2, 130):
        raise KeyboardInterrupt
    said = dict(line.split(": ", 1) for line in done.stderr.splitlines() if ": " in line)
    what = said.get("fedward", "").removeprefix("error: ") or f"preparing ended with exit code {done.returncode}"
    raise InputError(what, hint=said.get("hint") or HERE_ALONE)


# ---- list --------------------------------------------------------------------------
def runs(folder: OperatorFolder) -> Report:
    """Every run and how it stands, the oldest first."""
    known = folder.list_runs()
    running = folder.holder() is not None
    facts = {"command": "runs", "runs": [run_facts(run) for run in known], "server_running": running}
    if not known:
        return Report(facts=facts, lines=(f"there is no run: fedward-server run BUNDLE{quoted(folder)}",))
    body = table(("name", "state", "round", "since", "run id"), [_cells(run, running=running) for run in known])
    down = () if running else (f"the server is down: fedward-server start{quoted(folder)}",)
    details = tuple(f"{run.name}: {run.read_status().reason}" for run in known if run.read_status().reason)
    return Report(facts=facts, lines=(*body, *down), details=details)


def shown_status(run: RunFolder, *, server_running: bool) -> RunStatus:
    """The status as a person should read it: a run whose server is down waits for it, whatever the file says."""
    status = run.read_status()
    if server_running or status.state.is_over:
        return status
    return replace(status, state=RunState.WAITING, sites_connected=0, reason="the server is down")


def run_facts(run: RunFolder) -> dict[str, Any]:
    """What ``--json`` says of a run."""
    return {
        "created": run.created,
        "name": run.name,
        "run_id": run.run_id,
        "wanted": run.read_wanted().value,
        **run.read_status().to_json(),
    }


def _cells(run: RunFolder, *, running: bool) -> tuple[str, ...]:
    status = shown_status(run, server_running=running)
    return (
        run.name,
        _state(run, status),
        f"{status.round}/{status.rounds}",
        f"{ago(status.since)} ago" if status.since else "-",
        run.run_id[:SHOWN_DIGITS],
    )


def _state(run: RunFolder, status: RunStatus) -> str:
    """How it stands, or what is wanted and not yet so."""
    stopping = run.read_wanted() is Wanted.STOPPED and not status.state.is_over
    return "stopping" if stopping else status.state.value


# ---- change ------------------------------------------------------------------------
def stop(folder: OperatorFolder, text: str) -> Report:
    """Ask a run to stop; it can be resumed.

    Raises:
      InputError: no such run, or it is over.
    """
    run = folder.find_run(text)
    if run.read_status().state is RunState.FINISHED:
        raise InputError(f"run {run.name} is finished", hint=f"fedward-server export {run.name}{quoted(folder)}")
    run.stop()
    facts = {"command": "stop", **run_facts(run)}
    kept = f"finished rounds are kept: fedward-server resume {run.name}{quoted(folder)}"
    return Report(facts=facts, lines=(when(folder, f"run {run.name} stops"), kept))


def resume(folder: OperatorFolder, text: str) -> Report:
    """Ask a run to go on from its last finished round.

    Raises:
      InputError: no such run, or it is finished.
    """
    run = folder.find_run(text)
    run.resume()
    status = run.read_status()
    facts = {"command": "resume", **run_facts(run)}
    at = f"from round {status.round + 1} of {status.rounds}"
    return Report(facts=facts, lines=(when(folder, f"run {run.name} goes on {at}"),))


def outcome(folder: OperatorFolder, run: RunFolder) -> Report:
    """How a run that was followed ended."""
    status, here = run.read_status(), quoted(folder)
    facts = {"command": "run", **run_facts(run)}
    if status.state is RunState.FINISHED:
        return Report(facts=facts, lines=(f"finished: fedward-server export {run.name}{here}",))
    again = status.hint or f"fedward-server resume {run.name}{here}"
    line = f"run {run.name}: {status_line(status)}"
    if status.state is RunState.STOPPED:
        return Report(facts=facts, lines=(line, f"to go on: fedward-server resume {run.name}{here}"))
    if status.state is RunState.ABANDONED:
        return Report(facts=facts, lines=(line,), problem=RoundAbandoned(f"run {run.name} was abandoned", hint=again))
    return Report(facts=facts, lines=(line,), problem=OutputError(f"run {run.name} failed", hint=again))
