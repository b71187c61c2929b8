"""Atomic checkpoints: a run continues from the last finished round, or from nothing; never from half a file.

    checkpoints/round-0007/    state.json   adapter.safetensors   moments.safetensors

A folder is written under another name, fsynced, and renamed into place; every file's digest is in state.json.
``heads`` is the last ledger head of each site, which goes back to it in the next plan. ``extra`` is the caller's own
JSON (the simulator keeps its virtual sites' ledgers there).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.adapter import Adapter, AdapterSpec
from fedward_common.errors import FedwardError, OutputError
from fedward_server.state import Moments, State

__all__ = ["Checkpoint", "Checkpoints"]

VERSION = 1
KEPT = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What was read back: the state after ``state.finished`` rounds, its run, the sites' heads, the caller's JSON."""

    run_id: str
    state: State
    heads: dict[str, str]
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before the first save."""
        self._folder = folder

    def save(self, state: State, *, run_id: str, heads: Mapping[str, str], extra: dict[str, Any]) -> None:
        """Write a checkpoint and forget all but the newest two.

        Guarantees:
          - After a crash at any instant the newest complete checkpoint is found by ``latest``.

        Raises:
          OutputError: the disk is full or not writable; earlier checkpoints are intact.
        """
        target = self._folder / f"round-{state.finished:04d}"
        draft = self._folder / f".{target.name}.part"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            _write(draft, state, {"run_id": run_id, "heads": dict(heads), "extra": extra})
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
            _fsync(self._folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise OutputError(
                f"cannot write a checkpoint: {error.strerror or 'disk error'}",
                hint="free disk space, then `fedward-sim run --resume` continues from the last checkpoint",
            ) from None
        for old in self._finished()[:-KEPT]:
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

    def _finished(self) -> list[Path]:
        # by number: as text, round-10000 would come before round-9999
        found = [path for path in self._folder.glob("round-*") if path.name.removeprefix("round-").isdecimal()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("round-")))


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
        _fsync(file)
    _fsync(folder)


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
    return Checkpoint(run_id=content["run_id"], state=state, heads=dict(content["heads"]), extra=content["extra"])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
