"""``fetch-model``: brings a base model into the site's folder, under the fingerprint that plans and policy name.

Only files that the fingerprint covers come in: safetensors, the configuration, the tokenizer. No code, no pickles.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from pathlib import Path

from fedward_client.installation.folder import Folder
from fedward_common.config import ModelConfig, Pooling
from fedward_common.errors import ConfigError, ModelError, OutputError
from fedward_common.files import sync_file, sync_folder, write_new
from fedward_common.report import Report, rows

__all__ = ["fetch_model", "source_of"]

HUB_ID = re.compile(r"(?P<base>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[0-9a-f]{40}))?", flags=re.ASCII)
HUB_FORM = "org/name@ and 40 hex digits"


def fetch_model(folder: Folder, source: str) -> Report:
    """Copy a base model in.

    Args:
      folder: of the site; its site file says how texts are pooled.
      source: an alias, a local folder, or a hub id with a pinned revision: ``org/name@COMMIT``.

    Guarantees:
      - The copy has the fingerprint that it is named by, also after a crash: it is made aside, read back, and renamed.
      - A model that is there already is left as it is.

    Raises:
      ModelError: there is no such model, or it cannot be used.
      OutputError: the folder cannot be written.
    """
    from fedward_common.modeling.base import fingerprint

    site = folder.load_site()
    pooling = site.model.pooling
    origin = _locate(source)
    with folder.lock():
        draft = folder.models / f".incoming-{secrets.token_hex(8)}"
        try:
            identity = _copy(origin, draft, pooling)
            target = folder.model(identity)
            new = not target.exists()
            if new:
                os.rename(draft, target)
                _note_source(folder, identity, source, pooling)
            elif fingerprint(target, pooling=pooling) != identity:
                raise ModelError(f"{target} does not hold what its name says", hint="delete it and fetch it again")
        except OSError as error:
            raise OutputError(f"cannot write to {folder.models}: {error.strerror}", hint="check the disk") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    listed = identity in site.policy_table.models
    facts = {"command": "fetch-model", "fingerprint": identity, "listed": listed, "new": new, "source": source}
    return Report(facts=facts, lines=_lines(identity, source, new=new, listed=listed, pooling=pooling))


def source_of(folder: Folder, fingerprint: str) -> str:
    """Where a model came from, as it was typed; empty where that was not noted."""
    try:
        note = json.loads((folder.models / f"{fingerprint}.json").read_text(encoding="utf-8"))
        return str(note["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _locate(source: str) -> Path:
    from fedward_common.modeling.base import ALIASES, locate

    if source in ALIASES:
        return locate(ModelConfig(base=source))
    folder = Path(os.path.expanduser(source))  # unlike Path.expanduser it leaves an unknown ~user as it is
    if source and folder.is_dir():
        return folder
    found = HUB_ID.fullmatch(source)
    if found is None:
        raise ConfigError(
            f"there is no base model {source!r}",
            hint=f"give an alias ({', '.join(ALIASES)}), an existing folder, or a hub id with its commit: {HUB_FORM}",
        )
    if found["revision"] is None:
        raise ConfigError(f"hub model {source} has no pinned commit", hint=f"write it as {HUB_FORM}")
    return locate(ModelConfig(base=found["base"], revision=found["revision"]))


def _copy(origin: Path, draft: Path, pooling: Pooling) -> str:
    from fedward_common.modeling.base import fingerprint, model_files

    expected = fingerprint(origin, pooling=pooling)
    draft.mkdir(mode=0o700)
    for file in model_files(origin):
        if file.suffix == ".safetensors":
            _check_safetensors(file)
        shutil.copyfile(file, draft / file.name)
        sync_file(draft / file.name)
    sync_folder(draft)
    try:
        same = fingerprint(draft, pooling=pooling) == expected
    except ModelError:
        same = False
    if not same:
        raise ModelError(f"{origin} changed while it was copied", hint="fetch it again")
    return expected


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            weights.keys()
    except (SafetensorError, OSError):
        raise ModelError(f"{file.name} is no safetensors file", hint="fetch or convert the model again") from None


def _note_source(folder: Folder, identity: str, source: str, pooling: Pooling) -> None:
    note = folder.models / f"{identity}.json"
    note.unlink(missing_ok=True)
    write_new(note, json.dumps({"pooling": str(pooling), "schema": 1, "source": source}).encode() + b"\n")


def _lines(identity: str, source: str, *, new: bool, listed: bool, pooling: Pooling) -> tuple[str, ...]:
    todo = "it is on the list: plans may name it" if listed else f'to allow it, add "{identity}" to policy.models'
    return rows(
        [
            ("model", f"{source}, {pooling} pooling" + ("" if new else " (was here already)")),
            ("fingerprint", identity),
            ("policy", todo),
        ]
    )
