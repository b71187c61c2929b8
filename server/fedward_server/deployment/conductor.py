"""The process of one run: the round loop over Flower, from the last checkpoint to the last round.

    python -P -m fedward_server.deployment.conductor DIR RUN --order FD

The order (the SuperLink's port, the task's token) comes through a descriptor, since a command line is for all to see.
The same ServerApp as in a simulation runs here; only Grid and sites are real. It holds the plan key and sees noised
updates; it must not know data, and a run's code is this file, never Flower's bundle.

How it ended is the exit code (``Ending``); why is in status.json. Its log names sites and outcome codes alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fedward_common.errors import FedwardError, InputError, RoundAbandoned, RunStopped
from fedward_common.machine.logs import json_logging
from fedward_common.round import RoundRecord
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoint, Checkpoints
from fedward_server.deployment.flower import FlowerAway, FlowerRefused, node_key_pem
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.judging import evaluator_of
from fedward_server.deployment.outcome import LONGEST_ORDER, Ending, Order
from fedward_server.deployment.runs import RunFolder, RunState, Wanted
from fedward_server.deployment.superlink import Upstream
from fedward_server.deployment.task import Outcome, TaskGrid
from fedward_server.loop import Coordinator, EnrolledSite
from fedward_server.records import RoundLog
from fedward_server.state import State

__all__ = ["LiveSites", "StatusKeeper", "conduct", "main"]

LOG = logging.getLogger("fedward.conductor")
WANTED_S = 1.0  # between two looks at what a person wants
NUMBER_BYTES = 4  # float32
SLACK, AROUND_BYTES = 1.1, 64 << 10  # an update is as large as the adapter, and has a header and Flower's records


class LiveSites(Mapping[int, EnrolledSite]):
    """The enrolled sites by Flower's node id, read again whenever somebody asks who is connected.

    A site whose node is not connected stands under a negative number, which is no node's: its name and key are known
    to whoever lists all sites, and it is never asked.

    Guarantees:
      - Between two calls of ``seen`` nothing changes.
      - A node without an enrolment, or with a revoked one, is no site.
    """

    def __init__(self, folder: OperatorFolder, *, told: Callable[[int], None]) -> None:
        """Nobody is connected yet; ``told`` hears how many are, whenever somebody asked."""
        self._folder, self._told = folder, told
        self._sites: dict[int, EnrolledSite] = {}
        self.seen({})

    def seen(self, nodes: Mapping[int, bytes]) -> None:
        """Take in which nodes are connected, by their public keys (PEM)."""
        by_key = {key: node for node, key in nodes.items()}
        sites = {}
        for number, (name, enrolment) in enumerate(sorted(self._folder.sites().items()), 1):
            node = by_key.get(node_key_pem(enrolment.node_key), -number)
            sites[node] = EnrolledSite(name=name, key=enrolment.signing_key)
        self._sites = sites
        self._told(sum(node > 0 for node in sites))

    def __getitem__(self, node: int) -> EnrolledSite:
        """The site behind a node."""
        return self._sites[node]

    def __iter__(self) -> Iterator[int]:
        """Node ids, and negative numbers of sites that are not connected."""
        return iter(self._sites)

    def __len__(self) -> int:
        """Of all enrolled sites."""
        return len(self._sites)


class StatusKeeper:
    """Watches a run for people: keeps status.json true and writes the log. An Observer of the loop."""

    def __init__(self, run: RunFolder, *, rounds: int, finished: int) -> None:
        """Say that the run is under way."""
        self._run = run
        status = run.read_status()
        self._status = replace(
            status,
            state=RunState.RUNNING,
            round=finished,
            rounds=rounds,
            attempt=0,
            since=time.time(),
            reason="",
            hint="",
        )
        self._write()

    def connected(self, sites: int) -> None:
        """How many enrolled sites are there."""
        if sites != self._status.sites_connected:
            self._status = replace(self._status, sites_connected=sites)
            self._write()

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """Plans are about to be sent."""
        LOG.info("round %d of stage %s, attempt %d: %d sites are asked", round, stage, attempt, cohort)
        self._status = replace(self._status, stage=stage, attempt=attempt)
        self._write()

    def answered(self, site: str, outcome: str) -> None:
        """One answer was judged; ``outcome`` is a code of a closed list."""
        LOG.info("%s: %s", site, outcome)

    def round_finished(self, record: RoundRecord) -> None:
        """An attempt is over."""
        how = "abandoned" if record.abandoned else "finished"
        LOG.info("round %d %s: %d updates in %.1f s", record.round, how, record.replied, record.seconds)
        if not record.abandoned:
            self._status = replace(self._status, round=record.round, attempt=0)
            self._write()

    def note(self, text: str) -> None:
        """One sentence of the loop's."""
        LOG.info("%s", text)

    def end(self, state: RunState, *, reason: str = "", hint: str = "") -> None:
        """Say how the run stands now that its conductor ends."""
        LOG.info("the run is %s%s", state.value, f": {reason}" if reason else "")
        self._status = replace(self._status, state=state, since=time.time(), reason=reason, hint=hint)
        self._write()

    def _write(self) -> None:
        try:
            self._run.write_status(self._status)
        except FedwardError as error:  # a full disk stops the run at its next checkpoint, not here
            LOG.warning("%s", error)


class _Stopping:
    """Whether to stop: SIGTERM came, a person wants it, or the task is lost. Asked often, so it looks rarely."""

    def __init__(self, run: RunFolder) -> None:
        self.asked = threading.Event()
        self.grid: TaskGrid | None = None
        self._run, self._looked = run, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= WANTED_S:
            self._looked = now
            if self.wanted:
                self.asked.set()
        return self.asked.is_set() or self.lost

    @property
    def wanted(self) -> bool:
        return self._run.read_wanted() is Wanted.STOPPED

    @property
    def lost(self) -> bool:
        return self.grid is not None and self.grid.lost


def conduct(folder: OperatorFolder, run: RunFolder, order: Order) -> Ending:
    """Run what is left of a run and say how that ended; status.json says it too.

    Guarantees:
      - A run goes on from its last finished round, under the same plan ids, whatever ended the conductor before.
      - The error that ended it is in status.json; where it is not ours, it is never written as text.
    """
    stopping = _Stopping(run)
    signal.signal(signal.SIGTERM, lambda *_: stopping.asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's
    try:
        return _conduct(folder, run, order, stopping)
    except FedwardError as error:
        status = run.read_status()
        keeper = StatusKeeper(run, rounds=status.rounds, finished=status.round)
        keeper.end(RunState.FAILED, reason=str(error), hint=error.hint)
        return Ending.UNUSABLE


def _conduct(folder: OperatorFolder, run: RunFolder, order: Order, stopping: _Stopping) -> Ending:
    bundle = run.load_bundle()
    start = _start(run, bundle)
    status = StatusKeeper(run, rounds=bundle.config.total_rounds, finished=start.state.finished)
    sites = LiveSites(folder, told=status.connected)
    upstream = Upstream.of(folder, port=order.port)
    most = int(SLACK * NUMBER_BYTES * bundle.spec.size) + AROUND_BYTES
    stopping.grid = grid = TaskGrid(upstream, order.token, stopping=stopping, seen=sites.seen, most_bytes=most)
    with closing(evaluator_of(run, bundle.config, base=folder.root, stopping=stopping)) as evaluator:
        coordinator = Coordinator(
            bundle=bundle,
            key=folder.authority().plan_key(),
            sites=sites,
            evaluator=evaluator,
            observer=status,
            checkpoints=Checkpoints(run.checkpoints),
            log=RoundLog(run.rounds),
            heads=dict(start.heads),
            missed=dict(start.missed),
            units=dict(start.units),
            witness=run.witness,
            stopping=stopping,
        )
        return _drive(coordinator, grid, start.state, status=status, stopping=stopping)


def _start(run: RunFolder, bundle: Bundle) -> Checkpoint:
    """The last checkpoint, or the beginning; the diary forgets what lies after it."""
    checkpoints = Checkpoints(run.checkpoints)
    if not any(run.checkpoints.glob("round-*")):
        initial = State.initial(bundle.initial)
        checkpoints.save(initial, run_id=bundle.run_id, heads={}, extra={})
    start = checkpoints.latest(bundle.spec)
    if start.run_id != bundle.run_id:
        raise InputError("the checkpoint is of another run", hint=f"remove {run.checkpoints} to begin anew")
    RoundLog(run.rounds).rewind(finished=start.state.finished)
    return start


def _drive(
    coordinator: Coordinator, grid: TaskGrid, state: State, *, status: StatusKeeper, stopping: _Stopping
) -> Ending:
    from fedward_server.app import server_app

    outcome = Outcome.FAILED
    try:
        server_app(coordinator, state, done=lambda _: None)(grid, grid.begin())
        outcome = Outcome.COMPLETED
        status.end(RunState.FINISHED)
        return Ending.FINISHED
    except RoundAbandoned as error:
        status.end(RunState.ABANDONED, reason=str(error), hint="`fedward-server resume` tries again")
        return Ending.ABANDONED
    except (RunStopped, FlowerAway, FlowerRefused):
        outcome = Outcome.STOPPED
        # a desk that ends says SIGTERM as well: the run then goes on with the next one
        status.end(RunState.STOPPED if stopping.wanted else RunState.WAITING)
        return Ending.STOPPED if stopping.asked.is_set() else Ending.LOST
    except FedwardError as error:
        status.end(RunState.FAILED, reason=str(error), hint=error.hint)
        return Ending.UNUSABLE
    finally:
        grid.finish(outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(prog="fedward_server.deployment.conductor", description="Conduct one run.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("run")
    parser.add_argument("--order", type=int, required=True, help="descriptor of the desk's order")
    asked = parser.parse_args(arguments)
    folder = OperatorFolder.open(asked.folder)
    run = RunFolder(folder.runs / asked.run)
    json_logging(run.log, "conductor")
    try:
        order = Order.from_bytes(os.pread(asked.order, LONGEST_ORDER, 0))
        os.close(asked.order)
        return conduct(folder, run, order)
    except FedwardError as error:
        LOG.error("%s | %s", error, error.hint)
        return Ending.LOST


if __name__ == "__main__":
    sys.exit(main())
