"""Seconds of a round beyond training: an operator and three sites as real processes on loopback, release slots off.

Everything is started by the commands that people type. What a site spends on its data is read from its own ledger: the
time between the entry that marks a round started and the one that settles it. The rest of a round is messages, polls,
books and the coordinator.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedward_common.errors import OutputError
from fedward_common.machine.exec import command
from fedward_common.machine.namespaces import Network
from fedward_simulations.bench.table import Table, middle

__all__ = ["measure"]

LABELS = ("lung", "skin")
SITES = ("one", "two", "three")
RECORDS = 200
WARM = 2  # rounds that load the model and compute features
AIM_S = 4.0
START_S = 240.0


def measure(*, rounds: int = 20) -> Table:
    """Run a head-only run of MiniLM over three sites.

    Args:
      rounds: counted ones; two more come before them.

    Raises:
      OutputError: a process did not start, or the run did not end.
    """
    with tempfile.TemporaryDirectory(prefix="fdb-") as place, ExitStack() as stack:
        bench = _Bench(Path(place), rounds + WARM, stack)
        bench.start()
        diary = bench.run()
        training = [bench.training_s(name) for name in SITES]
    ends = [row["seconds"] for row in diary[WARM:]]
    slowest = [max(times) for times in zip(*training, strict=True)][WARM:]
    beyond = [end - spent for end, spent in zip(ends, slowest, strict=True)]
    return Table(
        title="A round of three sites on loopback",
        head=("what", "median (range)", "unit"),
        rows=(
            ("a round", middle(ends), "s"),
            ("of it the slowest site's work on data", middle(slowest, digits=3), "s"),
            ("beyond it", middle(beyond), "s"),
        ),
        note=f"{rounds} rounds of the head of MiniLM at three sites of {RECORDS} records, real processes, TLS through "
        f"the gateway, release slots off. Aim: {AIM_S:g} s beyond it; Flower's stock engine takes about 13.",
    )


class _Bench:
    """A federation in a folder; ``stack`` ends its processes."""

    def __init__(self, place: Path, rounds: int, stack: ExitStack) -> None:
        self._place, self._rounds, self._stack, self._port = place, rounds, stack, _free_port()
        self._operator = place / "operator"

    def start(self) -> None:
        """Set everybody up, by commands, and wait until all are connected."""
        listen = ("--host", "127.0.0.1", "--port", str(self._port), "--name", "localhost")
        _call("fedward_server", "init", str(self._operator), *listen)
        _set(self._operator / "server.toml", r"(\[metrics\][^\[]*?port = )\d+", r"\g<1>0")
        _set(self._operator / "server.toml", r"(\[superlink\][^\[]*?port = )\d+", rf"\g<1>{_free_port()}")
        (self._place / "run.toml").write_text(_RUN.format(rounds=self._rounds), encoding="utf-8")
        bundle = str(self._place / "bundle")
        _call("fedward_simulations", "prepare", str(self._place / "run.toml"), "--out", bundle)
        self._stack.enter_context(_running("fedward_server", "start", str(self._operator)))
        for name in SITES:
            self._add(name)
        _until("all sites are connected", self._connected, seconds=START_S)

    def run(self) -> list[dict[str, Any]]:
        """The diary of the finished run."""
        run, operator = self._operator / "runs" / "bench", str(self._operator)
        _call("fedward_server", "run", str(self._place / "bundle"), operator, "--name", "bench", "--detach")
        limit = START_S + 15.0 * self._rounds
        _until("the run is finished", lambda: _json(run / "status.json").get("state") == "finished", seconds=limit)
        rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if not row["abandoned"]]

    def training_s(self, name: str) -> list[float]:
        """Seconds of each round between the ledger's entry that marks it started and the one that settles it."""
        text = (self._place / name / "books" / "ledger.jsonl").read_text(encoding="utf-8")
        entries = [json.loads(line) for line in text.splitlines()]
        begun = [entry["at"] for entry in entries if entry["body"]["entry"] == "start"]
        done = [entry["at"] for entry in entries if entry["body"]["entry"] == "settle"]
        return [end - start for start, end in zip(begun, done, strict=True)]

    def _connected(self) -> bool:
        rows = _json(self._operator / "state" / "sites.json").get("sites", {})
        found = rows.values() if isinstance(rows, dict) else rows
        return sum(bool(row.get("connected")) for row in found) == len(SITES)

    def _add(self, name: str) -> None:
        root, keys = self._place / name, self._operator / "keys"
        joining = ("--server", f"localhost:{self._port}", "--ca", str(keys / "ca.pem"))
        _call("fedward_client", "init", str(root), *joining, "--operator-key", str(keys / "plan.pub"))
        _write_records(root / "records.csv", name)
        _fill(root / "site.toml")
        told = _call("fedward_client", "fetch-model", "minilm", str(root), "--json")
        fingerprint = json.loads(told.splitlines()[-1])["fingerprint"]
        _set(root / "site.toml", r"models = \[\]", f'models = ["{fingerprint}"]')
        _call("fedward_client", "init", str(root))
        _call("fedward_server", "enrol", str(root / f"{name}.pub"), str(self._operator), "--yes")
        self._stack.enter_context(_running("fedward_client", "start", str(root)))


# ---- commands ------------------------------------------------------------------------
def _call(*argv: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own programs
        [sys.executable, "-m", *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise OutputError(f"{argv[0]} {argv[1]} failed: {done.stderr.strip()[:500]}", hint="run it by hand")
    return done.stdout


@contextmanager
def _running(*argv: str) -> Iterator[None]:
    process = subprocess.Popen(  # noqa: S603 - our own programs; they end with this one, however it ends
        command([sys.executable, "-m", *argv], network=Network.SHARED),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _until(what: str, true: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise OutputError(f"not within {seconds:.0f} s: {what}", hint="try again on an idle machine")
        time.sleep(0.2)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- files ---------------------------------------------------------------------------
_RUN = """\
name = "bench"
[model]
base = "minilm"
max_tokens = 32
[task]
labels = ["lung", "skin"]
[data]
train = "none"
[privacy]
delta = 1e-3
validation_fraction = 0.05
[rounds]
minimum = 3
deadline_s = 120
[[stages]]
name = "head"
train = ["head"]
rounds = {rounds}
sampling_rate = 1.0
"""
_SITE = {
    "id": '"records"',
    "path": '"records.csv"',
    "text": '"text"',
    "label": '"label"',
    "nominal_units": str(RECORDS),
    "labels": '["lung", "skin"]',
    "unit": '"record"',
    "run_epsilon": "8.0",
    "run_delta": "1e-3",
    "life_epsilon": "16.0",
    "life_delta": "2e-3",
    "models": "[]",
}


def _fill(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for key, value in _SITE.items():
        text = re.sub(rf"^#> {key} = .*$", f"{key} = {value}", text, flags=re.M)
    text = text.replace("max_tokens = 128", "max_tokens = 32").replace('release_at = "slot"', 'release_at = "ready"')
    path.write_text(text, encoding="utf-8")


def _write_records(path: Path, site: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("text", "label"))
        table.writerows(
            (f"a note of {site} about the {LABELS[n % 2]}, number {n}", LABELS[n % 2]) for n in range(RECORDS)
        )
    path.chmod(0o600)


def _set(path: Path, pattern: str, replacement: str) -> None:
    path.write_text(re.sub(pattern, replacement, path.read_text(encoding="utf-8"), count=1), encoding="utf-8")
