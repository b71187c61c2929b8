"""An operator's folder without any process: enrolments of made-up sites, runs of a bundle without torch.

Example:
    folder = new_operator(tmp_path / "operator")
    folder.enrol(statement("st-elsewhere"))
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.enrolment import Enrolment
from fedward_server.deployment.folder import OperatorFolder
from fedward_server.deployment.runs import RunFolder
from support.coordinating import bundle_of

NAMES = ("fed.example.org", "192.0.2.7")


def new_operator(root: Path) -> OperatorFolder:
    """The folder that ``init`` makes."""
    return OperatorFolder.create(root, name="lung", names=NAMES)


def node_key(number: int) -> ec.EllipticCurvePublicKey:
    """Always the same key for a number: no secret."""
    return ec.derive_private_key(number + 1, ec.SECP384R1()).public_key()


def signing_key(number: int) -> Ed25519PrivateKey:
    """Always the same key for a number: no secret."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def statement(name: str, *, node: int = 1, signing: int = 1) -> str:
    """The enrolment file of a site with these keys."""
    return Enrolment.sign(name, node=node_key(node), signing=signing_key(signing)).to_text()


def bundle_folder(folder: Path, *, run_id: str = "cd" * 32, name: str = "small") -> Path:
    """A saved bundle."""
    folder.mkdir(parents=True)
    bundle = bundle_of()
    config = bundle.config.model_copy(update={"name": name})
    replace(bundle, run_id=run_id, config=config).save(folder)
    return folder


def new_run(folder: OperatorFolder, place: Path, *, run_id: str = "cd" * 32, name: str = "small") -> RunFolder:
    """A run of a fresh bundle; ``place`` must not exist."""
    return folder.create_run(bundle_folder(place, run_id=run_id), name=name)


def diary_row(round: int, **changes: Any) -> dict[str, Any]:
    """A line of rounds.jsonl."""
    row = {"round": round, "stage": "head", "attempt": 1, "cohort": 3, "replied": 2, "seconds": 1.5}
    return {**row, "refused": {}, "dropped": {"no_answer": 1}, **changes}


def write_diary(run: RunFolder, *rows: dict[str, Any]) -> None:
    """Append to rounds.jsonl."""
    with run.rounds.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
