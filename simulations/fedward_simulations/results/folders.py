"""Run directories: which folder may be written to, what an earlier run left in one. Light: no torch, no Flower.

run.toml  bundle/  checkpoints/  rounds.jsonl  summary.json  plots/  adapter/
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_common.errors import OutputError
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoint, Checkpoints

__all__ = [
    "StoppedRun",
    "claim_folder",
    "lay_out",
    "move_aside",
    "read_stopped",
    "read_summary",
    "whole",
    "write_bundle",
    "write_summary",
]

BEGUN = ("checkpoints", "sweep.json")  # what a run and a sweep have from their beginning on


@dataclass(frozen=True, kw_only=True, eq=False)
class StoppedRun:
    """What a run that was stopped left: its bundle and its last checkpoint."""

    bundle: Bundle
    checkpoint: Checkpoint


def claim_folder(out: Path) -> None:
    """Check that an output folder is free to use and can be written; it is not made yet.

    Raises:
      OutputError: it is a file, or holds something, or neither it nor the folder to make it in can be written.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"output folder {out} is a file", hint="give another --out")
    # os.path, here and below: what lies in a folder that may not be entered is not there, rather than an exception
    nearest = next((folder for folder in (out, *out.parents) if os.path.exists(folder)), out)
    reason = _unwritable(nearest)
    if reason:
        raise OutputError(f"cannot write to {out}: {reason}", hint="check the disk, or give --out")
    if nearest == out and any(out.iterdir()):
        begun = not (out / "summary.json").exists() and any((out / name).exists() for name in BEGUN)
        hint = f"give another --out{', or --resume to go on' * begun}"
        raise OutputError(f"output folder {out} is not empty", hint=hint)


def _unwritable(folder: Path) -> str | None:
    if not os.path.isdir(folder):
        return os.strerror(errno.ENOTDIR)
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return None
    return os.strerror(errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES)


def move_aside(folder: Path) -> Path | None:
    """Rename an earlier result to the first free ``NAME.1``, ``NAME.2``, ...; None where there is nothing.

    Raises:
      OutputError: it cannot be renamed, or is where this process stands.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    folder, number = _replaceable(folder), 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    try:
        folder.rename(target)
    except OSError as error:
        raise OutputError(f"cannot move {folder} aside: {error.strerror}", hint="move it by hand") from None
    return target


def _replaceable(folder: Path) -> Path:
    whole = Path(os.path.abspath(folder))
    if Path.cwd().is_relative_to(whole):  # whoever stands in it would stand in what is moved or gone
        raise OutputError(f"{folder} is the folder you are in, or above it", hint="give another --out")
    return whole


def lay_out(out: Path, bundle: Bundle) -> None:
    """Make a run directory with its resolved run file and bundle.

    Raises:
      OutputError: the folder cannot be written.
    """
    try:
        (out / "bundle").mkdir(parents=True)
        (out / "run.toml").write_text(bundle.config.to_toml(), encoding="utf-8")
        bundle.save(out / "bundle")
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror}", hint="check the disk, or give --out") from None


def write_bundle(out: Path, bundle: Bundle) -> None:
    """Write a bundle into a new or empty folder, whole or not at all.

    Raises:
      OutputError: the folder cannot be written, or is where this process stands.
    """
    out = _replaceable(out)
    draft = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        bundle.save(draft)
        draft.rename(out)  # takes the place of an empty folder, of nothing else
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror}", hint="check the disk, or give --out") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_stopped(out: Path) -> StoppedRun:
    """What ``run --resume`` goes on from.

    Raises:
      OutputError: no run there, a corrupt checkpoint, or already finished.
    """
    if (out / "summary.json").exists():
        raise OutputError(f"the run in {out} is finished", hint="`fedward-sim report` redraws its plots")
    if not (out / "bundle").is_dir():
        raise OutputError(f"there is no run in {out}", hint="give the folder that `fedward-sim run --out` wrote")
    bundle = Bundle.load(out / "bundle")
    return StoppedRun(bundle=bundle, checkpoint=Checkpoints(out / "checkpoints").latest(bundle.spec))


def read_summary(out: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
      OutputError: the run is not finished, or the file is corrupt.
    """
    try:
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputError(f"there is no finished run in {out}", hint="give a folder that holds summary.json") from None
    return summary


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    with whole(out / "summary.json") as draft:
        draft.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside a file of results, whose place it takes once it is written; open to whoever may read the folder.

    Guarantees:
      - The file is the old one or the new one, never a part; no draft is left where writing failed.

    Raises:
      OutputError: the disk is full or not writable.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", hint="check the disk") from None
