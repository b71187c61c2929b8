"""A real site's folder without torch: a filled site file, a model that is never loaded, spending without training.

Example:
    folder = open_site_folder(tmp_path / "site")
    spend(folder, "ab" * 32, plan_id="cd" * 32)
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedward_client.books.audit import AuditLine, Kind
from fedward_client.installation.folder import Folder
from fedward_client.installation.keys import public_key_text
from fedward_client.installation.site_file import template
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Quote
from fedward_common.privacy.guarantee import PrivacyTerms
from support.nouns import KEY, TERMS

UNITS = 40
LABELS = ("lung", "skin")
ONE_STAGE = replace(TERMS, delta=1e-4, stages=(replace(TERMS.stages[0], sampling_rate=1.0),))


def filled(**values: str) -> str:
    """The template with every key that it asks for; ``values`` are TOML, by the last part of a key's name."""
    text = re.sub(r"(?m)^#> ", "", template("st-elsewhere"))
    given = {
        "path": '"notes.csv"',
        "label": '"organ"',
        "nominal_units": str(UNITS),
        "run_delta": "1e-4",
        "life_delta": "1e-3",
        "public_key": f'"{public_key_text(KEY.public_key())}"',
    }
    for key, value in (given | values).items():
        found = re.search(rf"(?m)^(# )?{key} = .*$", text)
        assert found, key
        text = text.replace(found[0], f"{key} = {value}", 1)
    return text


def notes(rows: int = UNITS) -> str:
    """A table of ``rows`` records: note, organ, a patient of two records each, and a lasting id."""
    lines = [
        f"{'cough' if n % 2 else 'burn'} {n},{LABELS[(n + 1) % 2]},p{n // 2},n{n}"  # a comma holds no text here
        for n in range(rows)
    ]
    return "\n".join(["note,organ,patient,note_id", *lines]) + "\n"


def fake_base(folder: Path, *, hidden: int = 8) -> Path:
    """A folder that looks like an encoder: one layer with query and value of ``hidden`` x ``hidden``."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": hidden, "model_type": "bert"}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\ncough\nburn\n")
    names = ("embeddings.word_embeddings", "encoder.layer.0.query", "encoder.layer.0.value")
    weights = {f"{name}.weight": np.ones((hidden, hidden), np.float32) for name in names}
    save_file({**weights, "encoder.layer.0.query.bias": np.zeros(hidden, np.float32)}, folder / "model.safetensors")
    return folder


def new_site(root: Path, **values: str) -> Folder:
    """A site whose file is filled in and whose ledger is not open yet; the data lies in its folder."""
    folder = Folder.create(root, name="st-elsewhere")
    folder.site_file.write_text(filled(**values))
    (root / "notes.csv").write_text(notes())
    return folder


def open_site_folder(root: Path, **values: str) -> Folder:
    """A site with an open ledger."""
    folder = new_site(root, **values)
    site, keys = folder.load_site(), folder.load_keys()
    with folder.lock():
        folder.create_books(site, keys)
        with folder.open_books(site, keys):
            pass
    return folder


def spend(
    folder: Folder,
    run_id: str,
    *,
    plan_id: str = "cd" * 32,
    terms: PrivacyTerms = ONE_STAGE,
    outcome: Outcome | None = Outcome.RELEASED,
) -> None:
    """Reserve a run, start one plan of it, and settle it: without an outcome it looks like a crash."""
    with folder.lock(), folder.open_books(folder.load_site(), folder.load_keys()) as books:
        quote = Quote.of(terms)
        grant = books.ledger.reserve(quote, run_id=run_id, units=[f"n{n}" for n in range(UNITS)])
        books.ledger.start(grant, plan_id, events=(replace(quote.events[0], count=1),))
        if outcome is None:
            return
        released = {"update_digest": "ee" * 32, "size": 100} if outcome is Outcome.RELEASED else {}
        kind = Kind.RELEASE if released else Kind.HOLD
        books.audit.write(
            AuditLine(kind=kind, run_id=run_id, round=1, plan_id=plan_id, ledger_head=books.ledger.head, **released)  # type: ignore[arg-type]
        )
        books.ledger.settle(plan_id, outcome)
