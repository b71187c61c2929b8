"""Numbers for Prometheus, on loopback: sites, rounds, updates, bytes, restarts, the certificate's end.

They are read from the files that are there anyway (rounds.jsonl, status.json, processes.json) whenever somebody asks.
Labels are names that the operator gave and codes of closed lists; no label and no number comes from data.

    fedward_sites_enrolled  fedward_sites_connected  fedward_runs{state}
    fedward_run_round{run}  fedward_run_rounds{run}
    fedward_rounds_total{run,outcome}  fedward_updates_total{run,outcome}  fedward_bytes_total{run,direction}
    fedward_process_restarts_total{process}  fedward_certificate_expiry_seconds
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedward_common.errors import FedwardError
from fedward_common.files import read_json
from fedward_server.deployment.authority import Authority
from fedward_server.deployment.conducting import Conducting
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.roster import Roster
from fedward_server.deployment.runs import RunFolder

__all__ = ["Sources", "registry", "serve_metrics"]

LOG = logging.getLogger("fedward.metrics")
WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the numbers come from."""

    folder: OperatorFolder
    roster: Roster
    runs: Mapping[str, Conducting]


@dataclass(kw_only=True)
class _Diary:
    """The sums of one rounds.jsonl, read again when the file changes."""

    stamp: tuple[int, int] = (0, 0)
    rounds: Counter[str] = field(default_factory=Counter)
    updates: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path) -> None:
        try:
            stat = path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self.stamp:
                return
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        self.rounds, self.updates, self.traffic = Counter(), Counter(), Counter()
        for line in lines:
            self._add(line)
        self.stamp = stat.st_mtime_ns, stat.st_size

    def _add(self, line: str) -> None:
        try:
            row = json.loads(line)
            answers = Counter({"update": row["replied"]}) + Counter(row["refused"]) + Counter(row["dropped"])
            self.rounds["abandoned" if row["abandoned"] else "finished"] += 1
            self.traffic.update(down=row["bytes_down"], up=row["bytes_up"])
        except (ValueError, KeyError, TypeError):  # cut off by a crash
            return
        self.updates += answers


class _Numbers(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._diaries: dict[str, _Diary] = {}

    def collect(self) -> Iterator[Metric]:
        roster = self._sources.roster
        yield _gauge("fedward_sites_enrolled", "Enrolled sites", [((), roster.enrolled)])
        yield _gauge("fedward_sites_connected", "Enrolled sites that are connected", [((), roster.connected)])
        yield from self._of_runs(self._sources.folder.list_runs())
        restarts = [((name,), count) for name, count in self._restarts().items()]
        yield _counter("fedward_process_restarts", "Restarts of a process", restarts, "process")
        if (left := self._certificate()) is not None:
            yield _gauge("fedward_certificate_expiry_seconds", "Until the certificate expires", [((), left)])

    def _of_runs(self, runs: list[RunFolder]) -> Iterator[Metric]:
        states = {run.name: run.read_status() for run in runs}
        diaries = {run.name: self._diary(run) for run in runs}
        yield _gauge("fedward_run_round", "Last finished round", [((n,), s.round) for n, s in states.items()], "run")
        yield _gauge("fedward_run_rounds", "Rounds of the run", [((n,), s.rounds) for n, s in states.items()], "run")
        by_state = Counter(status.state.value for status in states.values())
        yield _gauge("fedward_runs", "Runs by state", [((state,), n) for state, n in by_state.items()], "state")
        for name, text, label, part in (
            ("fedward_rounds", "Attempts at rounds", "outcome", "rounds"),
            ("fedward_updates", "Answers and missing answers of sites", "outcome", "updates"),
            ("fedward_bytes", "Bytes of plans (down) and answers (up)", "direction", "traffic"),
        ):
            rows = [((run, key), n) for run, diary in diaries.items() for key, n in getattr(diary, part).items()]
            yield _counter(name, text, rows, "run", label)

    def _diary(self, run: RunFolder) -> _Diary:
        diary = self._diaries.setdefault(run.name, _Diary())
        diary.read(run.rounds)
        return diary

    def _restarts(self) -> dict[str, float]:
        report = read_json(self._sources.folder.processes_file)
        rows = report.get("children", []) if isinstance(report, dict) else []
        known = {str(row["name"]): float(row["restarts"]) for row in rows}
        return {**known, "conductor": float(sum(one.crashes for one in list(self._sources.runs.values())))}

    def _certificate(self) -> float | None:
        try:
            until = Authority(self._sources.folder.keys).certificate().not_after  # without a look at any secret
        except FedwardError:
            return None
        return (until - datetime.now(UTC)).total_seconds()


def registry(sources: Sources) -> CollectorRegistry:
    """All families above, read when they are asked for."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Numbers(sources))
    return made


def serve_metrics(listener: socket.socket, sources: Sources) -> Callable[[], None]:
    """Answer ``GET /metrics`` on a socket that is bound already, in a thread; the result ends it."""
    server = _Server(listener, make_wsgi_app(registry(sources)))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end


class _Quiet(WSGIRequestHandler):
    timeout = WAIT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Who reads numbers is not worth a line."""


class _Server(WSGIServer):
    def __init__(self, listener: socket.socket, app: Any) -> None:
        super().__init__(listener.getsockname()[:2], _Quiet, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = str(listener.getsockname()[0]), int(listener.getsockname()[1])
        self.setup_environ()
        self.set_app(app)
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up is not worth a trace."""
        LOG.debug("a reader of the metrics went away")


def _gauge(name: str, text: str, rows: Sequence[tuple[tuple[str, ...], float]], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, rows: Sequence[tuple[tuple[str, ...], float]], *labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family
