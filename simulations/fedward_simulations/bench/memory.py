"""The most memory of a process that simulates a thousand sites, over that of one that simulates a single site.

Both have the same records in all: what differs is what sites cost. Each is a process of its own, two rounds long, with
50 sites computed at a time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from fedward_common.config import ModelConfig
from fedward_common.errors import OutputError
from fedward_simulations.bench.ray import CLIENTS, TOKENS, by, workbench
from fedward_simulations.bench.table import Table, middle
from fedward_simulations.device import peak_bytes
from fedward_simulations.engines import Engine

__all__ = ["measure", "peak_of"]

Held: TypeAlias = dict[str, int]  # bytes on host and device

SITES, RECORDS, ROUNDS = 1000, 2000, 2
AIM = 1.10
LONGEST_S = 1800.0


def measure(*, repeats: int = 3, sites: int = SITES, records: int = RECORDS) -> Table:
    """Measure both in turn.

    Args:
      repeats: how many of each.
      sites: in the larger population.
      records: in all, in each population.
    """
    pairs = [(_peak(1, records), _peak(sites, records)) for _ in range(repeats)]
    return Table(
        title=f"Memory of {sites:,} sites",
        head=("what", "median (range)", "aim"),
        rows=tuple(row for where in ("host", "device") if pairs[0][0][where] for row in _rows(where, sites, pairs)),
        note=f"The most that a process held with {records:,} records of {TOKENS} tokens at one site or at all; every "
        f"site asked in each of {ROUNDS} rounds, {CLIENTS} computed at a time; MiniLM, LoRA of rank 8 and head; "
        f"{repeats} of each in turn. Host: resident memory; device: of a GPU, where there is one.",
    )


def _rows(where: str, sites: int, pairs: Sequence[tuple[Held, Held]]) -> Iterator[tuple[str, ...]]:
    held = [(one[where], many[where]) for one, many in pairs]
    yield f"{where}, 1 site, MB", middle([one / 1e6 for one, _ in held], digits=0), ""
    yield f"{where}, {sites:,} sites, MB", middle([many / 1e6 for _, many in held], digits=0), ""
    yield f"{where}, {sites:,} over 1", middle([many / one for one, many in held]), f"at most {AIM:.2f}"


def _peak(sites: int, records: int) -> Held:
    call = [sys.executable, "-m", "fedward_simulations.bench.memory", str(sites), str(records)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=LONGEST_S, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise OutputError(f"{sites} sites did not run: {done.stderr[-500:]}", hint="run it by hand")
    host, device = done.stdout.split()[-2:]
    return {"host": int(host), "device": int(device)}


def peak_of(sites: int, records: int, model: ModelConfig | None = None) -> Held:
    """The most bytes that this process ever held, after rounds of so many sites that share so many records."""
    with by(Engine.COHORT, clients=CLIENTS)(workbench(records // sites, clients=sites, model=model)) as one:
        for _ in range(ROUNDS):
            one()
    return peak_bytes()


if __name__ == "__main__":
    most = peak_of(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"{most['host']} {most['device']}\n")
