"""The operator's desk: reads the folder again and again, and makes Flower agree with it.

    python -P -m fedward_server.deployment.desk DIR --port P [--metrics FD] [--server FILE]

Enrolments become nodes, wanted runs become Flower runs with a conductor each, tasks go to the conductor that awaits
them. It is our executor: it claims ServerApp tasks alone and never opens a bundle. Commands only write files, so they
work while it is down; it keeps nothing that it could not find again. Conductors die with it and begin anew from their
checkpoints with the next one.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from fedward_common.errors import FedwardError
from fedward_common.machine.life import Child, Life
from fedward_common.machine.logs import json_logging
from fedward_server.deployment.conducting import Alive, Conducting, RunControl
from fedward_server.deployment.flower import Acquired, Control, FlowerAway, Tasks
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.outcome import Order
from fedward_server.deployment.roster import NodeControl, Roster
from fedward_server.deployment.runs import RunFolder
from fedward_server.deployment.server_file import ServerFile
from fedward_server.deployment.superlink import Upstream

__all__ = ["Desk", "main", "spawn_conductor"]

LOG = logging.getLogger("fedward.desk")
TICK_S = 0.5
SITES_S = 2.0
SWEEP_S = 60.0
AWAY_S = 2.0  # to another try, where the SuperLink did not answer: each may take as long as a call
END_S = 8.0  # for conductors to end, when the desk is told to


class DeskControl(NodeControl, RunControl, Protocol):
    """Flower's nodes and runs."""

    def unfinished_runs(self) -> set[int]:
        """Flower runs that are not over."""
        ...


class TaskSource(Protocol):
    """Flower's waiting tasks."""

    def acquire(self) -> Acquired | None:
        """Claim one."""
        ...


class Desk:
    """One reconciliation at a time.

    Guarantees:
      - Whatever was wanted while it was down is done once it is up; nothing is done twice.
      - One run's trouble, or a SuperLink that is away, holds up nothing else.
      - A Flower run that nobody here began is stopped.
    """

    def __init__(
        self,
        folder: OperatorFolder,
        *,
        control: DeskControl,
        tasks: TaskSource,
        spawn: Callable[[RunFolder, Acquired], Alive],
        restarts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet."""
        self.roster = Roster(folder, control)
        self.runs: dict[str, Conducting] = {}
        self._folder, self._control, self._tasks = folder, control, tasks
        self._spawn, self._restarts, self._clock = spawn, restarts, clock
        self._sites_due = self._sweep_due = clock()

    def tick(self) -> None:
        """Make Flower agree with the folder, as far as it can be done now."""
        for step in (self._tick_runs, self._sweep, self._sites, self._hand_out):
            try:
                step()
            except FlowerAway:
                continue  # each tries for itself: what needs no SuperLink is done meanwhile
            except (FedwardError, OSError) as error:
                LOG.error("%s", error)

    def close(self) -> None:
        """Ask all conductors to end, wait a little, then end them. Nothing new is begun."""
        for conducting in self.runs.values():
            conducting.close()
        end = self._clock() + END_S
        while self._clock() < end and any(conducting.alive for conducting in self.runs.values()):
            for conducting in self.runs.values():
                with suppress(FedwardError, OSError):
                    conducting.tick()
            time.sleep(0.05)
        for conducting in self.runs.values():
            conducting.kill()

    def _sweep(self) -> None:
        # what a former desk left, whose conductors died with it, and what was begun in a call that nobody heard the end
        # of: nobody drives these
        if self._clock() < self._sweep_due:
            return
        driven = {conducting.flower_run for conducting in self.runs.values()}
        self._sweep_due = self._clock() + AWAY_S
        for flower_run in self._control.unfinished_runs() - driven:
            self._control.stop_run(flower_run)
        self._sweep_due = self._clock() + SWEEP_S

    def _sites(self) -> None:
        if self._clock() >= self._sites_due:
            self._sites_due = self._clock() + SITES_S
            self.roster.reconcile()

    def _tick_runs(self) -> None:
        away = False
        for run in self._folder.list_runs():
            try:
                self._conducting(run).tick()
            except FlowerAway:
                away = True  # the others may have a conductor to look after
            except (FedwardError, OSError) as error:
                LOG.error("run %s: %s", run.name, error)
        if away:
            raise FlowerAway("the SuperLink does not answer", hint="wait")

    def _conducting(self, run: RunFolder) -> Conducting:
        if run.name not in self.runs:
            self.runs[run.name] = Conducting(
                run, control=self._control, spawn=self._spawn, restarts=self._restarts, clock=self._clock
            )
        return self.runs[run.name]

    def _hand_out(self) -> None:
        while any(conducting.awaited is not None for conducting in self.runs.values()):
            task = self._tasks.acquire()
            if task is None:
                return
            awaiting = [one for one in self.runs.values() if one.awaited == task.flower_run]
            for conducting in awaiting:
                conducting.take(task)
            if not awaiting:
                self._control.stop_run(task.flower_run)


def spawn_conductor(folder: OperatorFolder, port: int) -> Callable[[RunFolder, Acquired], Life]:
    """How a conductor is started: as a child that dies with this process, the token in a descriptor."""

    def spawn(run: RunFolder, task: Acquired) -> Life:
        order = os.memfd_create("order")
        try:
            os.pwrite(order, Order(port=port, token=task.token).to_bytes(), 0)
            argv = (sys.executable, "-P", "-m", "fedward_server.deployment.conductor", str(folder.root), run.name)
            child = Child(
                name=f"conductor {run.name}",
                argv=(*argv, "--order", str(order)),
                pass_fds=(order,),
                log=folder.logs / f"conductor-{run.name}.log",
            )
            return Life(child)
        finally:
            os.close(order)

    return spawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(prog="fedward_server.deployment.desk", description="The operator's desk.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True, help="of the SuperLink on loopback")
    parser.add_argument("--metrics", type=int, default=-1, help="descriptor of the metrics socket")
    parser.add_argument("--server", type=Path, metavar="FILE", help="the server file; without it DIR/server.toml")
    asked = parser.parse_args(arguments)
    json_logging(sys.stderr, "desk")
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's
    try:
        folder = OperatorFolder.open(asked.folder)
        restarts = ServerFile.load(asked.server or folder.server_file).runs.restarts
        _run(folder, asked.port, asked.metrics, ending, restarts=restarts)
    except FedwardError as error:
        LOG.error("%s | %s", error, error.hint)
        return 1
    return 0


def _run(folder: OperatorFolder, port: int, metrics: int, ending: threading.Event, *, restarts: int) -> None:
    upstream = Upstream.of(folder, port=port)
    with ExitStack() as stack:
        control, tasks = Control(upstream), Tasks(upstream)
        stack.callback(control.close)
        stack.callback(tasks.close)
        desk = Desk(folder, control=control, tasks=tasks, spawn=spawn_conductor(folder, port), restarts=restarts)
        stack.callback(desk.close)
        if metrics >= 0:
            from fedward_server.deployment.metrics import Sources, serve_metrics

            sources = Sources(folder=folder, roster=desk.roster, runs=desk.runs)
            stack.callback(serve_metrics(socket.socket(fileno=metrics), sources))
        while not ending.is_set():
            desk.tick()
            with suppress(OSError):
                folder.desk_beat.touch(mode=0o600)
            ending.wait(TICK_S)


if __name__ == "__main__":
    sys.exit(main())
