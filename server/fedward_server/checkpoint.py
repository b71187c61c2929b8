"""Atomic checkpoints: a run continues from the last finished round, or from nothing; never from half a file.

    checkpoints/round-0007/    state.json   adapter.safetensors   moments.safetensors

A folder is written under another name, fsynced, and renamed into place; every file's digest is in state.json. Where the
round was saved before, the old folder steps aside (``.round-0007.old``) and goes once the new one is in its place.
``heads`` is the last ledger head of each site, which goes back to it in the next plan; ``missed`` the attempts that a
failing site has missed, ``units`` the number of units that each site declared first. ``extra`` is the caller's own JSON
(the simulator keeps its virtual sites' ledgers there).
There is no random state: the coordinator draws cohorts alone, each from (seed, round, attempt).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.errors import FedwardError, OutputError
from fedward_common.files import sync_file, sync_folder
from fedward_server.state import Moments, State

__all__ = ["Checkpoint", "Checkpoints"]

VERSION = 1
KEPT = 2
NOBODY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What was read back: the state after ``state.finished`` rounds, its run, numbers by site, the caller's JSON."""

    run_id: str
    state: State
    heads: dict[str, str]
    extra: dict[str, Any]
    missed: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run directory; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the first save."""
        self._folder = folder

    def save(
        self,
        state: State,
        *,
        run_id: str,
        heads: Mapping[str, str],
        extra: dict[str, Any],
        missed: Mapping[str, int] = NOBODY,
        units: Mapping[str, int] = NOBODY,
    ) -> None:
        """Write a checkpoint and forget all but the newest two.

        Guarantees:
          - After a crash at any instant the newest complete checkpoint is found by ``latest``, also where the round
            had been saved before.
          - Two checkpoints stay on disk, and nothing that a crash left behind.

        Raises:
          OutputError: the disk is full or not writable; earlier checkpoints are intact.
        """
        target = self._folder / f"round-{state.finished:04d}"
        draft = self._folder / f".{target.name}.part"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            _make_durably(self._folder)
            draft.mkdir()
            numbers = {"missed": dict(missed), "units": dict(units)}
            _write(draft, state, {"run_id": run_id, "heads": dict(heads), **numbers, "extra": extra})
            self._put_in_place(draft, target)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise OutputError(
                f"cannot write a checkpoint: {error.strerror or 'disk error'}",
                hint="free disk space, then resume the run: it goes on from the last checkpoint",
            ) from None
        for old in [*self._finished()[:-KEPT], *self._folder.glob(".round-*")]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self, spec: AdapterSpec) -> Checkpoint:
        """Read the newest checkpoint.

        Raises:
          OutputError: there is none, or it is corrupt; the hint names the one before it.
        """
        found = self._finished()
        if not found:
            raise OutputError(f"there is no checkpoint under {self._folder}", hint="start the run anew")
        try:
            return _read(found[-1], spec)
        except (OSError, ValueError, KeyError, TypeError, FedwardError):
            earlier = f"remove it to continue from {found[-2].name}" if len(found) > 1 else "start the run anew"
            raise OutputError(f"checkpoint {found[-1]} is corrupt", hint=earlier) from None

    def _put_in_place(self, draft: Path, target: Path) -> None:
        # a folder that is not empty cannot be replaced in one step: the old one keeps counting until the new one does
        if target.exists():
            aside = _aside(target)
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        draft.rename(target)
        sync_folder(self._folder)

    def _finished(self) -> list[Path]:
        found = {_number(path.name): path for path in self._folder.glob(".round-*.old")}
        found |= {_number(path.name): path for path in self._folder.glob("round-*")}
        # by number: as text, round-10000 would come before round-9999
        return [found[number] for number in sorted(found) if number >= 0]


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _number(name: str) -> int:
    digits = name.removeprefix(".").removeprefix("round-").removesuffix(".old")
    return int(digits) if digits.isdecimal() else -1


def _write(folder: Path, state: State, also: dict[str, Any]) -> None:
    from safetensors.numpy import save

    state.adapter.save(folder / "adapter.safetensors")
    moments = save({"first": state.moments.first, "second": state.moments.second})
    (folder / "moments.safetensors").write_bytes(moments)
    content = {
        "version": VERSION,
        "finished": state.finished,
        "adapter_digest": state.adapter.digest,
        "steps": dict(state.moments.steps),
        "files": {name: _sha256(folder / name) for name in ("adapter.safetensors", "moments.safetensors")},
        **also,
    }
    text = json.dumps(content)
    envelope = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}
    (folder / "state.json").write_text(json.dumps(envelope), encoding="utf-8")
    for file in folder.iterdir():
        sync_file(file)
    sync_folder(folder)


def _read(folder: Path, spec: AdapterSpec) -> Checkpoint:
    from safetensors.numpy import load_file

    envelope = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    content = envelope["content"]
    if hashlib.sha256(json.dumps(content).encode()).hexdigest() != envelope["sha256"]:
        raise ValueError("digest of state.json")
    for name, digest in content["files"].items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"digest of {name}")
    if content["version"] != VERSION:
        raise ValueError("version")
    moments = load_file(folder / "moments.safetensors")
    adapter = Adapter.load(spec, folder / "adapter.safetensors")
    if adapter.digest != content["adapter_digest"]:
        raise ValueError("the adapter is of another spec")
    state = State(
        finished=content["finished"],
        adapter=adapter,
        moments=Moments(
            first=moments["first"].astype(np.float64), second=moments["second"], steps=dict(content["steps"])
        ),
    )
    return Checkpoint(
        run_id=content["run_id"],
        state=state,
        heads=dict(content["heads"]),
        extra=content["extra"],
        missed=dict(content.get("missed", {})),  # neither is in the first checkpoints of version 1
        units=dict(content.get("units", {})),
    )


def _make_durably(folder: Path) -> None:
    """Make a folder and those above it; a power cut leaves none of them out."""
    if not folder.exists():
        _make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
