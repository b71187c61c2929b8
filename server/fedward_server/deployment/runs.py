"""The runs of an operator's folder: what a person wants of each, and how it stands. Files alone; no process, no Flower.

    runs/NAME/   bundle/        config and tensors, as `fedward-sim prepare` made them; never changed
                 wanted.json    what a person wants: running or stopped; only commands write it
                 status.json    how it stands; only the desk and the conductor write it, but for `resume`
                 checkpoints/  rounds.jsonl  witness.json  log.jsonl      of the conductor
                 adapter/       of the export

A folder appears whole or not at all. A run that failed stays so until ``resume``, which sets its status back to
``waiting`` with no starts counted: that is how a desk is asked to try again.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedward_common.errors import InputError, OutputError
from fedward_common.files import make_private_folder, read_json, rewrite_json, sync_folder, write_new

if TYPE_CHECKING:
    from fedward_server.bundle import Bundle

__all__ = ["RunFolder", "RunState", "RunStatus", "Wanted", "create_run", "find_run", "list_runs"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BUNDLE = "bundle"
DRAFT = ".draft-"
BUNDLE_FILES = ("bundle.json", "initial.safetensors", "frozen.safetensors")
SCHEMA = 1
SHOWN_DIGITS = 12


class Wanted(StrEnum):
    """What a person wants of a run."""

    RUNNING = "running"  # until it is finished
    STOPPED = "stopped"  # for now: the last finished round is kept


class RunState(StrEnum):
    """How a run stands."""

    WAITING = "waiting"  # for the server, for sites, or for its next start
    RUNNING = "running"  # its conductor is at work
    FINISHED = "finished"  # every round is done
    STOPPED = "stopped"  # as wanted; `resume` goes on
    FAILED = "failed"  # too many quick failures; `resume` tries again
    ABANDONED = "abandoned"  # a round found too few answers; `resume` tries again

    @property
    def is_over(self) -> bool:
        """Whether nothing happens until somebody asks for it."""
        return self not in (RunState.WAITING, RunState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The content of status.json; readers skip unknown keys.

    Attributes:
      state: how the run stands.
      round: the last finished round, counted from 1; 0 before the first.
      rounds: of the whole run.
      stage: the name of the present stage.
      attempt: at the round in work.
      sites_connected: how many enrolled sites are there at this moment.
      since: when ``state`` began (Unix time).
      reason: why it failed or was abandoned: a sentence of ours, never an exception's text.
      hint: what to do about it.
      starts: of the conductor, since the run was made or resumed.
    """

    state: RunState = RunState.WAITING
    round: int = 0
    rounds: int = 0
    stage: str = ""
    attempt: int = 0
    sites_connected: int = 0
    since: float = 0.0
    reason: str = ""
    hint: str = ""
    starts: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, row: Any) -> Self:
        """Of a JSON object; what is missing or strange has its default."""
        given: Mapping[str, Any] = row if isinstance(row, dict) else {}
        kinds = {field.name: type(field.default) for field in fields(cls)}
        known = {name: _as(kind, given.get(name)) for name, kind in kinds.items()}
        return cls(**{name: value for name, value in known.items() if value is not None})


def _as(kind: type, value: Any) -> Any:
    try:
        return kind(value) if value is not None else None
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    root: Path

    @property
    def name(self) -> str:
        """The operator's name of the run: that of the folder."""
        return self.root.name

    @property
    def bundle_folder(self) -> Path:
        """What was prepared."""
        return self.root / BUNDLE

    @property
    def wanted_file(self) -> Path:
        """What a person wants."""
        return self.root / "wanted.json"

    @property
    def status_file(self) -> Path:
        """How the run stands."""
        return self.root / "status.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def rounds(self) -> Path:
        """The diary: one line for every attempt at a round."""
        return self.root / "rounds.jsonl"

    @property
    def witness(self) -> Path:
        """What the coordinator knows of the sites' ledgers."""
        return self.root / "witness.json"

    @property
    def adapter(self) -> Path:
        """Where the export goes by default."""
        return self.root / "adapter"

    @property
    def log(self) -> Path:
        """The conductor's log, one JSON object a line."""
        return self.root / "log.jsonl"

    @property
    def run_id(self) -> str:
        """The run's own id, the same over all its Flower runs; empty where the bundle is damaged."""
        return _run_id_in(self.bundle_folder)

    @property
    def created(self) -> float:
        """When the run was made (Unix time); 0 where that cannot be read."""
        return float(_as(float, self._wanted().get("created")) or 0.0)

    def load_bundle(self) -> Bundle:
        """The bundle, checked.

        Raises:
          OutputError: it is damaged.
        """
        from fedward_server.bundle import Bundle

        return Bundle.load(self.bundle_folder)

    def read_wanted(self) -> Wanted:
        """What a person wants; a damaged file means stopped, so that nothing runs unasked."""
        asked = self._wanted().get("state")
        return Wanted.RUNNING if asked == Wanted.RUNNING.value else Wanted.STOPPED

    def write_wanted(self, wanted: Wanted) -> None:
        """Ask for it.

        Raises:
          OutputError: the file cannot be written.
        """
        rewrite_json(self.wanted_file, {"created": self.created, "schema": SCHEMA, "state": wanted.value})

    def read_status(self) -> RunStatus:
        """How the run stands, as was last written."""
        return RunStatus.from_json(read_json(self.status_file))

    def write_status(self, status: RunStatus) -> None:
        """Say how the run stands.

        Guarantees:
          - A reader sees the old status or the new one, never half of it.

        Raises:
          OutputError: the file cannot be written.
        """
        rewrite_json(self.status_file, status.to_json())

    def stop(self) -> None:
        """Ask for a stop. What is finished is kept."""
        self.write_wanted(Wanted.STOPPED)

    def resume(self) -> None:
        """Ask for the run to go on from its last finished round; earlier failures no longer count.

        Raises:
          InputError: the run is finished.
        """
        status = self.read_status()
        if status.state is RunState.FINISHED:
            raise InputError(f"run {self.name} is finished", hint=f"fedward-server export {self.name}")
        if status.state.is_over:
            self.write_status(
                replace(status, state=RunState.WAITING, since=time.time(), reason="", hint="", starts=0, attempt=0)
            )
        self.write_wanted(Wanted.RUNNING)

    def _wanted(self) -> dict[str, Any]:
        row = read_json(self.wanted_file)
        return row if isinstance(row, dict) else {}


# ---- all runs ----------------------------------------------------------------------
def list_runs(runs: Path) -> list[RunFolder]:
    """Every run, the oldest first."""
    try:
        found = [RunFolder(path) for path in runs.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda run: (run.created, run.name))


def find_run(runs: Path, text: str) -> RunFolder:
    """The run with this name, or the only one whose name or run id begins like this.

    Raises:
      InputError: there is none, or there are several.
    """
    known = list_runs(runs)
    exact = [run for run in known if run.name == text]
    found = exact or [run for run in known if text and (run.name.startswith(text) or run.run_id.startswith(text))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(
            f"there is no run {text!r}", hint="`fedward-server runs` lists them; enough of a beginning will do"
        )
    names = ", ".join(run.name for run in found)
    raise InputError(f"{text!r} is the beginning of {len(found)} runs: {names}", hint="give more of it")


def create_run(runs: Path, bundle_folder: Path, *, name: str | None = None) -> RunFolder:
    """Copy a bundle into a new run that is wanted running. The caller makes sure to be the only one who does.

    Args:
      runs: the folder of all runs.
      bundle_folder: as ``Bundle.save`` wrote it.
      name: of the run; None: the run file's name, with a number where that is taken.

    Guarantees:
      - The run is there, whole and checked, or not at all, also after a crash; what a crash left goes with the next.

    Raises:
      InputError: no name for a run, or a run of this name or run id is there.
      OutputError: the bundle is broken, or the disk is full.
    """
    from fedward_server.bundle import Bundle

    make_private_folder(runs)
    if name is not None:
        _check_free(runs, name)
    with _draft(runs) as draft:
        _copy(bundle_folder, draft / BUNDLE)
        try:
            bundle = Bundle.load(draft / BUNDLE)
        except OutputError as error:
            raise OutputError(f"{bundle_folder} holds no readable run bundle", hint=error.hint) from None
        _check_new(runs, bundle.run_id)
        target = runs / (name or _free_name(runs, bundle.config.name))
        now = time.time()
        made = RunFolder(draft)
        rewrite_json(made.wanted_file, {"created": now, "schema": SCHEMA, "state": Wanted.RUNNING.value})
        made.write_status(RunStatus(rounds=bundle.config.total_rounds, since=now))
        _settle(draft, target)
    return RunFolder(target)


def _check_free(runs: Path, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a run", hint="1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if (runs / name).exists():
        raise InputError(f"there is a run {name} already", hint="give another --name")


def _check_new(runs: Path, run_id: str) -> None:
    for run in list_runs(runs):
        if run.run_id == run_id:
            raise InputError(
                f"this bundle is run {run.name} already",
                hint=f"`fedward-server resume {run.name}` continues it; prepare the run file again for a new run",
            )


def _free_name(runs: Path, base: str) -> str:
    number = 1
    name = base
    while (runs / name).exists():
        number += 1
        name = f"{base[:58]}-{number}"
    return name


@contextlib.contextmanager
def _draft(runs: Path) -> Iterator[Path]:
    for left in runs.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = runs / f"{DRAFT}{secrets.token_hex(8)}"
    try:
        draft.mkdir(mode=0o700)
        yield draft
    except OSError as error:
        raise OutputError(f"cannot write {runs}: {error.strerror}", hint="check the disk and who owns it") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    # checked afterwards, as a copy: the source may change meanwhile
    target.mkdir(mode=0o700)
    for name in BUNDLE_FILES:
        try:
            content = (source / name).read_bytes()
        except OSError:
            raise OutputError(
                f"{source} holds no run bundle", hint="`fedward-sim prepare RUN.toml` makes one"
            ) from None
        write_new(target / name, content)


def _settle(draft: Path, target: Path) -> None:
    sync_folder(draft)
    draft.rename(target)
    sync_folder(target.parent)


def _run_id_in(bundle_folder: Path) -> str:
    try:
        content = json.loads((bundle_folder / "bundle.json").read_text(encoding="utf-8"))["content"]
        return str(content["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
