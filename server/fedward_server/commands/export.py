"""``export``: the adapter of a run's last finished round, in PEFT's own format; without torch."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from fedward_common.errors import OutputError
from fedward_common.report import Report, rows
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoints
from fedward_server.commands.follow import read_rows
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder
from fedward_server.export import Epsilon

__all__ = ["export", "summary_of"]


def export(folder: OperatorFolder, text: str, out: Path | None) -> Report:
    """Write the adapter folder of a run, also of one that still goes on: then that of its last finished round.

    Args:
      folder: of the operator.
      text: name or id of the run.
      out: a new folder; None: ``adapter`` in the run's own folder.

    Raises:
      InputError: no such run.
      OutputError: no round is finished yet, the folder exists, or cannot be written.
    """
    from fedward_server.export import export_adapter

    run = folder.find_run(text)
    target = out or run.adapter
    _check_free(target)
    bundle = run.load_bundle()
    checkpoint = _last(run, bundle)
    adapter, finished = checkpoint.state.adapter, checkpoint.state.finished
    summary = summary_of(run, bundle, finished=finished, digest=adapter.digest)
    draft = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        export_adapter(draft, adapter, bundle=bundle, summary=summary)
        os.rename(draft, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}", hint="give another --out") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    total = bundle.config.total_rounds
    facts = {
        "adapter_digest": adapter.digest,
        "command": "export",
        "out": str(target),
        "round": finished,
        "rounds": total,
    }
    whole = "" if finished == total else ": the run is not finished"
    shown = rows([("wrote", str(target)), ("round", f"{finished} of {total}{whole}"), ("adapter", adapter.digest)])
    return Report(facts=facts, lines=shown)


def summary_of(run: RunFolder, bundle: Bundle, *, finished: int, digest: str) -> dict[str, Any]:
    """What the model card may say of a deployed run.

    Epsilon is what the signed plans promise at most: the sites' ledgers, not the coordinator, know what was spent.
    Measured figures are there only where round ``finished`` has them: those of another round are of another adapter.
    """
    diary = [row for row in read_rows(run.rounds) if not row.get("abandoned")]
    measured: dict[str, Any] = next((row for row in reversed(diary) if row.get("round") == finished), {})
    evaluated, sites = measured.get("evaluation") or {}, measured.get("sites") or {}
    privacy = bundle.config.privacy
    return {
        "adapter_digest": digest,
        "base_fingerprint": bundle.spec.base_fingerprint,
        "delta": privacy.delta,
        "epsilon": privacy.epsilon,
        "epsilon_is": Epsilon.PROMISED,
        "name": bundle.config.name,
        "rounds": finished,
        "run_id": bundle.run_id,
        "site_metrics": dict(sites),
        "sites": max((int(row.get("replied", 0)) for row in diary), default=0),
        "unit": privacy.unit.value,
        "waivers": [],
        **{key: evaluated[key] for key in ("accuracy", "macro_f1", "majority_accuracy") if key in evaluated},
    }


def _last(run: RunFolder, bundle: Bundle) -> Any:
    if not run.checkpoints.is_dir():
        raise OutputError(f"no round of run {run.name} is finished", hint=f"fedward-server status --run {run.name}")
    checkpoint = Checkpoints(run.checkpoints).latest(bundle.spec)
    if checkpoint.run_id != bundle.run_id:
        raise OutputError(f"the checkpoint in {run.checkpoints} is of another run", hint="restore the run's folder")
    if checkpoint.state.finished == 0:
        raise OutputError(f"no round of run {run.name} is finished", hint=f"fedward-server status --run {run.name}")
    return checkpoint


def _check_free(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists and is never overwritten", hint="give --out a new folder")
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}", hint="make it first, or give another --out")
