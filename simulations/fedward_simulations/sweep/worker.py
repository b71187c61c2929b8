"""One process of a sweep: runs the jobs that it is handed, on a base model and data that it keeps between them.

It tells its parent how far a job is and how it ended, and nothing else; what a job prints goes to the job's log. It
ends with its parent, also where the parent was killed. Light until the first job comes: torch is imported then.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fedward_common.config import RunConfig
from fedward_common.errors import FedwardError, OutputError
from fedward_simulations.engines import BY_DEFAULT, Computing

if TYPE_CHECKING:
    from fedward_simulations.results.folders import StoppedRun
    from fedward_simulations.run import Workbench

__all__ = ["Advanced", "Ended", "Failed", "News", "Order", "kinship", "serve"]

# what two jobs may differ in and still share data, model and cached features
LOOSE: Any = {"name": True, "output": True, "stages": True, "server": True, "privacy": {"epsilon", "clip_norm"}}


@dataclass(frozen=True, kw_only=True)
class Order:
    """A job as a worker gets it. ``kin`` is equal for jobs that share data and model; ``worker`` numbers who has it."""

    name: str
    run_file: str
    kin: str
    out: Path
    log: Path
    per_site: bool = False
    computing: Computing = BY_DEFAULT
    worker: int = 0


@dataclass(frozen=True)
class Advanced:
    """So many rounds of the job are done."""

    name: str
    rounds: int


@dataclass(frozen=True)
class Ended:
    """The job is finished; its summary is on disk."""

    name: str


@dataclass(frozen=True)
class Failed:
    """The job ended with an error, or with its process."""

    name: str
    what: str
    hint: str


News: TypeAlias = Advanced | Ended | Failed
Tell: TypeAlias = Callable[[News], None]


def kinship(config: RunConfig) -> str:
    """Equal for run files whose jobs may share data, model and cached features.

    Guarantees:
      - Run files that differ in data, partition, model, task, adapter, seed, delta or sites' number are no kin.
    """
    return json.dumps(config.model_dump(mode="json", exclude=LOOSE), sort_keys=True)


def serve(orders: Connection, threads: int) -> None:
    """Run the jobs that come through a pipe until it is closed.

    Guarantees:
      - The process ends when its parent does.
      - A job that raises is reported and the next one served.
    """
    _end_with_parent()
    _without_semaphores()
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    bench = Bench()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            order: Order = orders.recv()
            with _printing_to(order.log):
                news = _outcome(order, bench, orders.send)
            orders.send(news)


class Bench:
    """The data and model of the last job, for the next one if it is kin."""

    def __init__(self) -> None:
        """Nothing is loaded."""
        self._kin = ""
        self._held: Workbench | None = None

    def lay_out(self, order: Order, config: RunConfig, *, run_id: str | None) -> Workbench:
        """A workbench for this job.

        Raises:
          FedwardError: data, base model or promise cannot be used.
        """
        from fedward_common.privacy.grants import Quote
        from fedward_simulations.dealing.sources import read_source
        from fedward_simulations.run import Workbench

        if self._held is None or self._kin != order.kin:
            self._held = None  # the old one's memory goes first
            self._held = Workbench.open(
                config,
                read_source(config),
                run_id=run_id,
                device=order.computing.place(turn=order.worker),
            )
            self._kin = order.kin
            return self._held
        Quote.of(config.terms)
        return _renamed(self._held.with_config(config), run_id)


def _renamed(bench: Workbench, run_id: str | None) -> Workbench:
    if run_id is None:
        return bench
    prepared = bench.prepared
    return replace(bench, prepared=replace(prepared, bundle=replace(prepared.bundle, run_id=run_id)))


def _outcome(order: Order, bench: Bench, tell: Tell) -> News:
    try:
        _perform(order, bench, tell)
    except FedwardError as error:
        return Failed(order.name, str(error), error.hint)
    except Exception as error:
        # its text may quote a record, and stays in the log
        traceback.print_exc()
        return Failed(order.name, f"{type(error).__name__} in the run", f"see {order.log}")
    return Ended(order.name)


def _perform(order: Order, bench: Bench, tell: Tell) -> None:
    from fedward_simulations.run import resume, run

    config = RunConfig.from_toml(order.run_file, source=order.name)
    done = (order.out / "summary.json").exists()
    stopped = None if done else _stopped(order.out)
    run_id = stopped.bundle.run_id if stopped else None
    workbench = bench.lay_out(order, config, run_id=run_id)
    view = _reporter(order, tell)
    if stopped is not None:
        before = {**stopped.checkpoint.extra.get("computing", {}), "device": order.computing.device}
        computing = replace(Computing.of({}, before=before), processes=order.computing.processes)
        resume(workbench, stopped, out=order.out, view=view, computing=computing)
    elif not done:
        run(workbench, out=order.out, view=view, computing=order.computing)
    if order.per_site:
        _measure_sites(order, workbench)


def _stopped(out: Path) -> StoppedRun | None:
    """The stopped run in a folder; what a job left that was stopped before its first checkpoint is removed.

    Guarantees:
      - A run that may have asked a site stays where it is, whatever else is wrong with it.

    Raises:
      OutputError: it began, and cannot be read.
    """
    from fedward_simulations.results.folders import read_stopped

    if not out.exists():
        return None
    checkpoints = out / "checkpoints"
    begun = [*checkpoints.glob("round-*"), *checkpoints.glob(".round-*.old"), *out.glob("rounds.jsonl")]
    if not begun:
        shutil.rmtree(out)  # the first checkpoint is written before any site is asked
        return None
    try:
        return read_stopped(out)
    except (OSError, ValueError, KeyError):
        raise OutputError(
            f"the stopped run in {out} cannot be read", hint="bring its files back, or give the sweep another --out"
        ) from None


def _measure_sites(order: Order, bench: Workbench) -> None:
    from fedward_simulations.results.folders import read_summary, whole
    from fedward_simulations.sweep.sites import site_scores

    epsilons = read_summary(order.out)["epsilon_by_site"]
    rows = [row | {"epsilon": epsilons.get(row["site"])} for row in site_scores(bench, order.out)]
    with whole(order.out / "sites.json") as draft:
        draft.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _reporter(order: Order, tell: Tell) -> Any:
    from fedward_simulations.watching.lines import LineView

    class Reporter(LineView):
        """Lines into the job's log, and news to the parent."""

        def round_finished(self, record: Any) -> None:
            super().round_finished(record)
            if not record.abandoned:
                tell(Advanced(order.name, record.round))

    return Reporter()


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Whatever this process prints goes to a file, also what native code prints as it dies."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _without_semaphores() -> None:
    # tqdm would make one of the system's, and the system complain of it on the terminal where a worker is killed
    from tqdm import tqdm  # type: ignore[import-untyped]

    tqdm.set_lock(threading.RLock())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)  # checkpoints are atomic: an end at any instant is one that --resume mends

    threading.Thread(target=watch, daemon=True).start()
