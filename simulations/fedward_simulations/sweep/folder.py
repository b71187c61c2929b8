"""A sweep's folder: what it holds, and what an earlier process left there. Light: no torch, no Flower.

sweep.json  runs/JOB/  logs/JOB.log  failures/JOB.json  results.csv  results.parquet  points.csv  points.parquet
report.md  summary.json  plots/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedward_common.config import RunConfig
from fedward_common.errors import ConfigError, DataError, OutputError
from fedward_common.report import counted
from fedward_simulations.results.folders import claim_folder, read_summary, whole
from fedward_simulations.sweep.plan import Job, Plan

__all__ = ["Status", "SweepFolder"]

VERSION = 1


class Status(StrEnum):
    """How a job stands."""

    DONE = "done"  # its summary is there
    FAILED = "failed"  # it ended with an error, or its process died; --resume tries again
    STOPPED = "stopped"  # it began and did not end; --resume goes on with it
    PENDING = "pending"  # it never began


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """One sweep on disk."""

    root: Path

    # ---- opening -------------------------------------------------------------------
    @contextlib.contextmanager
    def begin(self, plan: Plan) -> Iterator[int]:
        """Take a missing or empty folder, alone until the block is left.

        Yields:
          0: no job of the plan is news.

        Raises:
          OutputError: it is a file, holds something, cannot be written, or another sweep is at work there.
        """
        claim_folder(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.root}: {error.strerror}", hint="check the disk") from None
        with self._alone():
            claim_folder(self.root)  # another sweep may have come and gone meanwhile
            self._write_plan(plan)
            yield 0

    @contextlib.contextmanager
    def go_on(self, plan: Plan) -> Iterator[int]:
        """Take the folder of an earlier sweep, alone until the block is left.

        Yields:
          How many jobs of the plan the earlier sweep did not know.

        Guarantees:
          - What ran stays in the sweep: a plan that leaves out a job that began is refused.
          - Data that changed since the sweep began is refused.
          - Nothing is written before this process is alone there.

        Raises:
          OutputError: there is no sweep, or another one is at work there, or one of these.
        """
        with self._alone():
            earlier = self._read_plan()
            self._check_kept(plan)
            self._check_data(plan, earlier["data"])
            new = {job.name for job in plan.jobs} - set(earlier["jobs"])
            grown = earlier["grown"] or bool(new and self._begun())
            self._write_plan(plan, known=earlier["data"], grown=grown)
            yield len(new)

    @property
    def grown(self) -> bool:
        """Whether jobs were added after others had begun.

        Raises:
          OutputError: there is no sweep.
        """
        return bool(self._read_plan()["grown"])

    # ---- jobs ----------------------------------------------------------------------
    def run(self, name: str) -> Path:
        """The run directory of a job."""
        return self.root / "runs" / name

    def log(self, name: str) -> Path:
        """Whatever a job printed."""
        return self.root / "logs" / f"{name}.log"

    def status(self, job: Job, *, per_site: bool = False) -> Status:
        """How a job stands; with ``per_site``, done means measured at each site too."""
        folder = self.run(job.name)
        if (folder / "summary.json").exists() and (not per_site or (folder / "sites.json").exists()):
            return Status.DONE
        if self._failure(job.name).exists():
            return Status.FAILED
        return Status.STOPPED if folder.exists() else Status.PENDING

    def summary(self, job: Job) -> dict[str, Any]:
        """The summary of a finished job.

        Raises:
          OutputError: it cannot be read, or is of another run file.
        """
        folder = self.run(job.name)
        summary = read_summary(folder)
        try:
            same = RunConfig.load(folder / "run.toml").digest == job.config.digest
        except ConfigError:
            same = False
        if not same:
            raise OutputError(f"{folder} holds another run", hint="move it away, then --resume runs it again")
        return summary

    def failure(self, job: Job) -> dict[str, str]:
        """What went wrong, if anything did."""
        try:
            return dict(json.loads(self._failure(job.name).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def fail(self, name: str, *, what: str, hint: str) -> None:
        """Record what went wrong."""
        _write(self._failure(name), json.dumps({"what": what, "hint": hint}) + "\n")

    def forgive(self, name: str) -> None:
        """Forget a failure: the job is tried again."""
        self._failure(name).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a file of the sweep, whole or not at all."""
        _write(self.root / name, text)

    # ---- insides -------------------------------------------------------------------
    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.root, os.O_RDONLY)
        except OSError:
            raise self._no_sweep() from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(f"another sweep is at work in {self.root}", hint="wait for it, or stop it") from None
            yield
        finally:
            os.close(descriptor)

    def _check_kept(self, plan: Plan) -> None:
        # by the folders: they are what ran, whatever was written down of them
        if lost := self._begun() - {job.name for job in plan.jobs}:
            runs = counted(len(lost), "run", "runs")
            raise OutputError(
                f"the sweep file lacks {runs} in {self.root}: it or its run file changed",
                hint="undo the change, or give another --out: what ran counts, also for privacy",
            )

    def _begun(self) -> set[str]:
        return {path.name for path in (self.root / "runs").glob("*") if path.is_dir()}

    def _check_data(self, plan: Plan, known: Mapping[str, str]) -> None:
        digests = _data_digests(plan)
        changed = [path for path, digest in known.items() if digests.get(path, digest) != digest]
        if changed:
            raise OutputError(f"{changed[0]} changed since the sweep began", hint="give another --out")

    def _failure(self, name: str) -> Path:
        return self.root / "failures" / f"{name}.json"

    def _write_plan(self, plan: Plan, *, known: Mapping[str, str] | None = None, grown: bool = False) -> None:
        content = {
            "version": VERSION,
            "name": plan.name,
            "grown": grown,
            "data": {**_data_digests(plan), **(known or {})},
            "jobs": {job.name: {"point": job.point.label, "seed": job.seed} for job in plan.jobs},
        }
        _write(self.root / "sweep.json", json.dumps(content, indent=1) + "\n")

    def _read_plan(self) -> dict[str, Any]:
        try:
            content = json.loads((self.root / "sweep.json").read_text(encoding="utf-8"))
            grown = bool(content.get("grown", False))
            return {"jobs": dict(content["jobs"]), "data": dict(content["data"]), "grown": grown}
        except OSError:
            raise self._no_sweep() from None
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"{self.root / 'sweep.json'} is broken", hint="give another --out") from None

    def _no_sweep(self) -> OutputError:
        return OutputError(f"there is no sweep in {self.root}", hint="start it without --resume")


def _write(path: Path, text: str) -> None:
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _data_digests(plan: Plan) -> dict[str, str]:
    """SHA-256 of every local file that some job reads."""
    data = [job.config.data for job in plan.jobs]
    sources = {source for one in data for source in (one.train, one.test) if source}
    return {source: _digest(Path(source)) for source in sorted(sources) if Path(source).is_file()}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check who may read it") from None
