"""A real site in a real folder: site file, keys, durable books, a tiny base model, patients, an operator.

Example:
    hospital = Hospital.make(tmp_path)
    with open_site(hospital.root) as site:
        reply = hospital.read(site.answer(hospital.plan_bytes()))
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import SiteKeys, public_key_text
from fedward_common.adapter import Adapter
from fedward_common.codec import decode_reply, encode_plan, key_fingerprint, new_key
from fedward_common.config import RunConfig
from fedward_common.modeling.base import fingerprint
from fedward_common.round import Code, Refusal, Reply, RoundPlan, Update
from fedward_server.bundle import Bundle
from fedward_server.loop import plan_for
from fedward_server.state import State
from fedward_simulations.prepare import prepare
from support.tiny import WORDS, tiny_base

LABELS = ("lung", "skin", "bone")
STAGES: list[dict[str, Any]] = [
    {"name": "head", "train": ["head"], "rounds": 3, "evaluate_every": 3},
    {"name": "adapter", "train": ["adapter"], "rounds": 2, "sampling_rate": 0.5, "noise_ratio": 0.5},
]
# everybody takes part in every step: its price has a closed form, which no accountant has to search for
PLAIN: list[dict[str, Any]] = [{"name": "head", "train": ["head"], "rounds": 8, "evaluate_every": 4}]
SITE = """\
schema = 1
name = "st-elsewhere"
[data]
id = "notes"
path = "notes.csv"
text = "note"
label = "organ"
{unit_line}
nominal_units = 40
[task]
labels = ["lung", "skin", "bone"]
[model]
max_tokens = 32
[policy]
unit = "{unit}"
models = ["{model}"]
run_epsilon = 8.0
run_delta = 1e-3
life_epsilon = 16.0
life_delta = 1e-2
max_clip_norm = 2.0
max_records_per_unit = 4
max_steps = 50
minimum_units = 5
validation_fraction = 0.2
coordinator_states_min_sites = 1
[coordinator]
public_key = "{operator}"
"""


def write_notes(path: Path, patients: Sequence[str], *, per_patient: int = 2, seed: int = 0) -> None:
    """A table of short notes whose words tell the organ."""
    generator = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("note", "organ", "patient", "id"))
        for patient in patients:
            for number in range(per_patient):
                label = int(generator.integers(0, len(LABELS)))
                words = [WORDS[label], *generator.choice(WORDS, 4)]
                rows.writerow((" ".join(words), LABELS[label], patient, f"{patient}-{number}"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Hospital:
    """A site's folder, and the operator that it enrolled with."""

    root: Path
    operator: Ed25519PrivateKey
    keys: SiteKeys
    bundle: Bundle

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        unit: str = "patient",
        unit_line: str | None = None,
        patients: int = 40,
        stages: Sequence[dict[str, Any]] = STAGES,
    ) -> Self:
        """A site that is ready to answer; with ``PLAIN`` stages within a second of the first plan."""
        model = tiny_base(folder / "base")
        operator, identity = new_key(), fingerprint(Path(model.base), pooling=model.pooling)
        line = ('unit = "patient"' if unit == "patient" else "") if unit_line is None else unit_line
        site = Folder.create(folder / "site", name="st-elsewhere")
        text = SITE.format(unit=unit, unit_line=line, model=identity, operator=public_key_text(operator.public_key()))
        site.site_file.write_text(text, encoding="utf-8")
        shutil.copytree(model.base, site.model(identity))
        write_notes(site.root / "notes.csv", [f"p{number}" for number in range(patients)])
        with site.lock():
            site.create_books(site.load_site(), site.load_keys())
        config = RunConfig.model_validate(
            {
                "name": "small",
                "seed": 3,
                "model": model.model_dump(),
                "task": {"labels": LABELS},
                "adapter": {"rank": 4, "alpha": 16.0},
                "data": {"train": "none", **({"unit": "patient"} if unit == "patient" else {})},
                "privacy": {
                    "unit": unit,
                    "validation_fraction": 0.2,
                    "delta": 1e-3,
                    "max_records_per_unit": 2 if unit == "patient" else 1,
                },
                "stages": list(stages),
            }
        )
        return cls(root=site.root, operator=operator, keys=site.load_keys(), bundle=prepare(config).bundle)

    def plan(self, *, round: int = 1, **changes: Any) -> RoundPlan:
        """The plan of a round from the initial adapter, addressed to this site, with fields replaced."""
        state = replace(State.initial(self.bundle.initial), finished=round - 1)
        plan = plan_for(self.bundle, state, expires_at=time.time() + 3600)
        return replace(plan.addressed_to(key_fingerprint(self.keys.public_key)), **changes)

    def plan_bytes(
        self, *, round: int = 1, adapter: Adapter | None = None, key: Ed25519PrivateKey | None = None, **changes: Any
    ) -> bytes:
        """``plan``, signed by the operator, with an adapter: the initial one unless another is given."""
        start = adapter or self.bundle.initial
        about = {"adapter_digest": start.digest, "spec_digest": start.spec.digest}
        return encode_plan(self.plan(round=round, **{**about, **changes}), start, key=key or self.operator)

    def read(self, reply: bytes, *, groups: tuple[str, ...] = ("head",)) -> Reply:
        """What the coordinator reads."""
        return decode_reply(reply, public_key=self.keys.public_key, spec=self.bundle.spec.subset(groups))

    def code(self, reply: bytes) -> Code | None:
        """The code of a refusal; None for an update."""
        answer = self.read(reply)
        assert isinstance(answer, Update | Refusal)
        return answer.code if isinstance(answer, Refusal) else None
