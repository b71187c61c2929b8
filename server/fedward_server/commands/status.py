"""``status``: what is at work, how long the certificate holds, who is enrolled, how the runs stand."""

from __future__ import annotations

from typing import Any

from fedward_common.errors import FedwardError
from fedward_common.files import read_json
from fedward_common.report import Report, rows, table
from fedward_server.commands.follow import read_rows, round_line, status_line
from fedward_server.commands.runs import run_facts, shown_status
from fedward_server.commands.sites import count_line
from fedward_server.commands.words import ago, certificate_line, moment, quoted, stamp
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder

__all__ = ["run_status", "status"]

SHOWN_RUNS = 8
SHOWN_ROUNDS = 10
NONE = "-"


def status(folder: OperatorFolder) -> Report:
    """The whole operator's side at a glance.

    Returns:
      A report; its ``problem`` says that keys or server file are not in order.
    """
    holder = folder.holder()
    certificate, problem = _certificate(folder)
    known = folder.list_runs()
    at_work = f"running (process {holder})" if holder else f"down: fedward-server start{quoted(folder)}"
    head = rows(
        [
            ("server", at_work),
            *certificate,
            ("sites", count_line(folder)),
            ("runs", _run_count(known, running=holder is not None)),
        ]
    )
    facts = {
        "command": "status",
        "processes": _children(folder) if holder else [],
        "runs": [run_facts(run) for run in known],
        "server": holder,
        **_certificate_facts(folder),
        "sites": sorted(folder.sites()),
    }
    processes = _processes(folder) if holder else ()
    body = _runs(known, running=holder is not None)
    return Report(facts=facts, lines=(*head, *processes, *body), problem=problem)


def run_status(folder: OperatorFolder, text: str) -> Report:
    """One run: how it stands and what its last rounds did; all rounds under ``-v``.

    Raises:
      InputError: no such run.
    """
    run = folder.find_run(text)
    now, diary = shown_status(run, server_running=folder.holder() is not None), read_rows(run.rounds)
    head = rows(
        [
            ("run", run.name),
            ("run id", run.run_id),
            ("made", stamp(run.created) if run.created else NONE),
            ("wanted", run.read_wanted().value),
            ("state", status_line(now)),
            *([("since", f"{stamp(now.since)}, {ago(now.since)}")] if now.since else []),
            *([("hint", now.hint)] if now.hint else []),
        ]
    )
    lines = [round_line(row, rounds=now.rounds) for row in diary]
    above = (f"{len(lines) - SHOWN_ROUNDS} earlier lines: see -v",) if len(lines) > SHOWN_ROUNDS else ()
    facts = {"command": "status", **run_facts(run), "diary": diary}
    return Report(facts=facts, lines=(*head, *above, *lines[-SHOWN_ROUNDS:]), details=tuple(lines[:-SHOWN_ROUNDS]))


def _certificate(folder: OperatorFolder) -> tuple[list[tuple[str, str]], FedwardError | None]:
    try:
        server, keys = folder.load_server(), folder.authority()
        certificate = keys.certificate()
    except FedwardError as error:
        return [("certificate", f"{error}")], error
    found = [("address", server.address), ("certificate", certificate_line(certificate))]
    missing = sorted(set(server.gateway.names) - set(certificate.names))
    if missing:
        found.append(("", f"server.toml also names {', '.join(missing)}: fedward-server renew"))
    return found, None


def _certificate_facts(folder: OperatorFolder) -> dict[str, Any]:
    try:
        certificate = folder.authority().certificate()
    except FedwardError:
        return {"certificate_days_left": None}
    return {"certificate_days_left": certificate.days_left()}


def _children(folder: OperatorFolder) -> list[dict[str, Any]]:
    content = read_json(folder.processes_file)
    children = content.get("children") if isinstance(content, dict) else None
    return [row for row in children if isinstance(row, dict)] if isinstance(children, list) else []


def _processes(folder: OperatorFolder) -> tuple[str, ...]:
    cells = [
        (
            str(row.get("name", NONE)),
            str(row.get("state", NONE)),
            str(row.get("pid") or NONE),
            ago(moment(row.get("since"))),
            str(row.get("restarts", 0)),
            str(row.get("reason") or ""),
        )
        for row in _children(folder)
    ]
    return ("", *table(("process", "state", "pid", "for", "restarts", ""), cells)) if cells else ()


def _run_count(known: list[RunFolder], *, running: bool) -> str:
    states = [shown_status(run, server_running=running).state.value for run in known]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"


def _runs(known: list[RunFolder], *, running: bool) -> tuple[str, ...]:
    chosen = known[-SHOWN_RUNS:]
    lines = table(
        ("run", "state"), [(run.name, status_line(shown_status(run, server_running=running))) for run in chosen]
    )
    return ("", *lines) if chosen else ()
