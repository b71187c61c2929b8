"""A whole federation of real processes on loopback: an operator, three hospitals, a tap before each of them.

Everything is typed as a person would type it: ``fedward-server`` and ``fedward-client`` in processes of their own. Each
site reaches the gateway through a tap of its own, which writes down every byte in clear and can be cut. Every record
holds a canary.

Example:
    with Deployed.make(tmp_path) as federation:
        federation.run()
        federation.wait_for_round(3)
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import SiteKeys
from fedward_common.config import ModelConfig, RunConfig
from fedward_common.machine.exec import command
from fedward_common.machine.namespaces import Network
from fedward_common.modeling.base import fingerprint
from fedward_server.bundle import Bundle
from support.shared import FOLDER
from support.tap import Tap
from support.tiny import WORDS, worded_base

NAMES = ("gard", "ghr", "ninds")
NATURAL = {"gard": "GARD", "ghr": "GHR", "ninds": "NINDS"}
RECORDS = 240
MEDQUAD = FOLDER / "medquad_qtype.train.jsonl.gz"
TOPICS = ("information", "symptoms", "treatment", "causes")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def free_port() -> int:
    """A loopback port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(*argv: str, code: int = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A fedward command, run to its end; its exit code is checked."""
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | QUIET,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == code, f"{argv}: code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(what: str, true: Callable[[], Any], *, seconds: float, every: float = 0.05) -> Any:
    """Poll until something is true; what it was is in the failure."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass(kw_only=True, eq=False)
class Command:
    """A long-running fedward command, in a process group of its own, its output in a file."""

    argv: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Start it."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                # it ends with the tests, however these end
                command([sys.executable, "-m", *self.argv], network=Network.SHARED),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=os.environ | QUIET,
                start_new_session=True,
            )

    def end(self) -> None:
        """Ask it to end; kill its group where it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hospital:
    """One site: its folder, its tap, its canaries."""

    name: str
    root: Path
    tap: Tap
    canaries: tuple[str, ...]

    @property
    def keys(self) -> SiteKeys:
        """Of the site."""
        return Folder.open(self.root).load_keys()

    def pid(self, process: str) -> int:
        """Of its trainer or courier, as they are now."""
        return pid_of(self.root / "processes.json", process)

    def ledger_lines(self) -> int:
        """How long the ledger is: it grows when a round is marked started, and when it is settled."""
        path = self.root / "books" / "ledger.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def audit(self, kind: str) -> list[dict[str, Any]]:
        """The audit lines of one kind."""
        lines = (self.root / "books" / "audit.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [line for line in found if kind in json.dumps(line)]

    def link(self) -> dict[str, Any]:
        """What the courier says of itself."""
        try:
            return json.loads((self.root / "courier" / "state" / "status.json").read_text())  # type: ignore[no-any-return]
        except (OSError, ValueError):
            return {}


def pid_of(path: Path, name: str) -> int:
    """A running child's process number, from its supervisor's status file."""

    def running() -> int | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            for child in json.loads(path.read_text())["children"]:
                if child["name"] == name and child["state"] == "running" and child["pid"]:
                    return int(child["pid"])
        return None

    return int(wait_until(f"{name} runs", running, seconds=60))


@dataclass(kw_only=True, eq=False)
class Deployed:
    """The federation. ``close`` ends every process that it started, by its id."""

    folder: Path
    config: RunConfig
    base: ModelConfig
    gateway: int
    sites: dict[str, Hospital]
    commands: dict[str, Command] = field(default_factory=dict)
    run_name: str = "qtype"

    @classmethod
    def make(cls, folder: Path, *, stages: Sequence[dict[str, Any]], slot_s: int = 2) -> Self:
        """Set an operator and three sites up, by commands; nothing runs yet but the taps."""
        base = worded_base(folder / "base", _words())
        gateway = free_port()
        call("fedward_server", "init", str(folder / "op"), "--host", "127.0.0.1", "--port", str(gateway),
             "--name", "localhost", "--name", "127.0.0.1")  # fmt: skip
        _edit(folder / "op" / "server.toml", r"(\[metrics\][^\[]*?port = )\d+", rf"\g<1>{free_port()}")
        _edit(folder / "op" / "server.toml", r"(\[superlink\][^\[]*?port = )\d+", rf"\g<1>{free_port()}")
        config = _config(base, stages)
        made = cls(folder=folder, config=config, base=base, gateway=gateway, sites={})
        for name in NAMES:
            made._add_site(name, slot_s)
        return made

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        for started in reversed(self.commands.values()):
            started.end()
        for site in self.sites.values():
            site.tap.__exit__()

    @property
    def operator(self) -> Path:
        """The operator's folder."""
        return self.folder / "op"

    @property
    def run_folder(self) -> Path:
        """The operator's folder of the run."""
        return self.operator / "runs" / self.run_name

    # ---- as people do it -----------------------------------------------------------
    def start_server(self) -> None:
        """``fedward-server start``, until the gateway answers."""
        self.commands["server"] = Command(
            argv=("fedward_server", "start", str(self.operator)), log=self.folder / "server.log"
        )
        wait_until("the gateway listens", lambda: _answers(self.gateway), seconds=90)

    def start_site(self, name: str) -> None:
        """``fedward-client start``."""
        site = self.sites[name]
        self.commands[name] = Command(argv=("fedward_client", "start", str(site.root)), log=self.folder / f"{name}.log")

    def start(self) -> None:
        """Everything, until all three sites are connected."""
        self.start_server()
        for name, site in self.sites.items():
            call("fedward_server", "enrol", str(site.root / f"{name}.pub"), str(self.operator), "--yes")
            self.start_site(name)
        wait_until("all sites are connected", lambda: self.connected() == len(self.sites), seconds=90)

    def prepare(self) -> Path:
        """A run file, and its bundle."""
        bundle = self.folder / "bundle"
        if not bundle.exists():
            (self.folder / "run.toml").write_text(_toml(self.config), encoding="utf-8")
            call("fedward_simulations", "prepare", str(self.folder / "run.toml"), "--out", str(bundle))
        return bundle

    def run(self) -> None:
        """``fedward-server run``."""
        argv = ("run", str(self.prepare()), str(self.operator), "--name", self.run_name, "--detach")
        call("fedward_server", *argv)

    # ---- looking -------------------------------------------------------------------
    def connected(self) -> int:
        """How many sites the desk sees."""
        shown = call("fedward_server", "sites", str(self.operator), "--json").stdout
        return sum(1 for site in json.loads(shown)["sites"] if site.get("connected"))

    def status(self) -> dict[str, Any]:
        """Of the run."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.run_folder / "status.json").read_text())  # type: ignore[no-any-return]
        return {}

    def rounds(self) -> list[dict[str, Any]]:
        """The diary so far."""
        path = self.run_folder / "rounds.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def finished(self) -> int:
        """The last finished round."""
        return max((row["round"] for row in self.rounds() if not row["abandoned"]), default=0)

    def wait_for_round(self, number: int, *, seconds: float = 120) -> None:
        """Until a round is finished."""
        wait_until(f"round {number} is finished", lambda: self.finished() >= number, seconds=seconds)

    def pid(self, process: str) -> int:
        """Of superlink, desk or gateway."""
        return pid_of(self.operator / "state" / "processes.json", process)

    def bundle(self) -> Bundle:
        """As it was prepared."""
        return Bundle.load(self.prepare())

    # ---- setting up ----------------------------------------------------------------
    def _add_site(self, name: str, slot_s: int) -> None:
        keys = self.operator / "keys"
        tap = Tap(free_port(), self.gateway, keys)
        root = self.folder / name
        argv = (
            "--server",
            f"localhost:{tap.port}",
            "--ca",
            str(keys / "ca.pem"),
            "--operator-key",
            str(keys / "plan.pub"),
        )
        call("fedward_client", "init", str(root), *argv)
        canaries = _write_records(root / "records.csv", name)
        site_file = Folder.open(root).site_file
        site_file.write_text(self._site_toml(site_file.read_text(), slot_s), encoding="utf-8")
        identity = fingerprint(Path(self.base.base), pooling=self.base.pooling)
        call("fedward_client", "fetch-model", self.base.base, str(root))
        assert (root / "models" / identity).is_dir()
        call("fedward_client", "init", str(root))
        tap.__enter__()
        self.sites[name] = Hospital(name=name, root=root, tap=tap, canaries=canaries)

    def _site_toml(self, text: str, slot_s: int) -> str:
        values = {
            "id": '"records"',
            "path": '"records.csv"',
            "text": '"text"',
            "label": '"label"',
            "nominal_units": str(RECORDS),
            "labels": json.dumps(list(self.config.task.labels)),
            "unit": '"record"',
            "models": json.dumps([fingerprint(Path(self.base.base), pooling=self.base.pooling)]),
            "run_epsilon": "8.0",
            "run_delta": "1e-3",
            "life_epsilon": "16.0",
            "life_delta": "2e-3",
        }
        for key, value in values.items():
            text = re.sub(rf"^#> {key} = .*$", lambda _, k=key, v=value: f"{k} = {v}", text, flags=re.M)  # type: ignore[misc]
        text = re.sub(r"^# record_id = .*$", 'record_id = "id"', text, flags=re.M)
        text = re.sub(r"^max_tokens = \d+", "max_tokens = 32", text, flags=re.M)
        text = re.sub(r"^validation_fraction = [0-9.]+", "validation_fraction = 0.2", text, flags=re.M)
        return re.sub(r"^slot_s = \d+", f"slot_s = {slot_s}", text, flags=re.M)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    changed = re.sub(pattern, replacement, text, count=1)
    assert changed != text, f"{pattern} is not in {path.name}"
    path.write_text(changed)


def _config(base: ModelConfig, stages: Sequence[dict[str, Any]]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "qtype",
            "seed": 5,
            "model": base.model_dump(),
            "task": {"labels": _labels()},
            "adapter": {"rank": 4, "alpha": 16.0},
            "data": {"train": "none"},
            "privacy": {"validation_fraction": 0.2, "delta": 1e-3, "epsilon": 8.0},
            "rounds": {"minimum": 2, "deadline_s": 30, "retries": 4},
            "server": {"learning_rate": 0.05},
            "stages": list(stages),
        }
    )


def _toml(config: RunConfig) -> str:
    import tomli_w  # Flower brings it

    return tomli_w.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def _rows(site: str) -> Iterator[tuple[str, str]]:
    """Text and label of a site's records: natural ones where the shared data lies beside the repository."""
    if MEDQUAD.is_file():
        with gzip.open(MEDQUAD, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["site"] == NATURAL[site]:
                    yield row["text"], row["label"]
        return
    for number in range(RECORDS):
        topic = TOPICS[(number * 7 + len(site)) % len(TOPICS)]
        yield f"{topic} of the {WORDS[number % len(WORDS)]} {topic}", topic


def _labels() -> list[str]:
    if not MEDQUAD.is_file():
        return list(TOPICS)
    with gzip.open(MEDQUAD, "rt", encoding="utf-8") as lines:
        return sorted({json.loads(line)["label"] for line in lines})


def _words() -> tuple[str, ...]:
    """A vocabulary for the tiny base: the commonest words of the shared texts, or of the made ones."""
    from collections import Counter

    counts: Counter[str] = Counter()
    for site in NAMES:
        for number, (text, _) in enumerate(_rows(site)):
            if number < RECORDS:
                counts.update(re.findall(r"[a-z]+", text.lower()))
    return tuple(word for word, _ in counts.most_common(600))


def _write_records(path: Path, site: str) -> tuple[str, ...]:
    """The site's table, with a canary in every text and every id."""
    canaries = []
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("id", "text", "label"))
        for number, (text, label) in enumerate(_rows(site)):
            if number == RECORDS:
                break
            canary = f"zqcanäry{site}{number:04d}{os.urandom(6).hex()}"
            canaries.append(canary)
            table.writerow((f"id-{canary}", f"{text} {canary}", label))
    path.chmod(0o600)
    return tuple(canaries)
