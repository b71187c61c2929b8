"""How long a person waits: for help, for an error, and until a demo's first plan is sent. Each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedward_simulations.bench.table import Table, middle

__all__ = ["measure"]

PROGRAM = (sys.executable, "-c", "from fedward_simulations.cli import main; main()")


def measure(*, times: int = 3) -> Table:
    """Start each command ``times`` times, after one start that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        place, missing = Path(folder), str(Path(folder) / "missing.toml")
        rows = (
            ("`fedward-sim --help`", [_until_exit("--help", code=0) for _ in range(times + 1)]),
            ("`fedward-sim run missing.toml`", [_until_exit("run", missing, code=2) for _ in range(times + 1)]),
            ("`fedward-sim demo` until its first plan", [_until_plan(place / str(n)) for n in range(times + 1)]),
        )
    return Table(
        title="Seconds until something happens",
        head=("command", "median (range)"),
        rows=tuple((what, middle(seconds[1:])) for what, seconds in rows),
        note=f"From the start of the process; {times} times each, files in the cache of the system.",
    )


def _until_exit(*arguments: str, code: int) -> float:
    began = time.perf_counter()
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False)  # noqa: S603
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return seconds


def _until_plan(out: Path) -> float:
    began = time.perf_counter()
    command = [*PROGRAM, "demo", "--json", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
        try:
            for line in process.stdout or ():
                if json.loads(line)["event"] == "started":  # the next thing that happens is that plans are sent
                    return time.perf_counter() - began
        finally:
            process.kill()
    raise RuntimeError("the demo ended before it started a round")
