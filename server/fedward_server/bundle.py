"""A prepared run: what a coordinator without torch needs to run a run file.

Written by ``fedward_simulations.prepare`` (which has torch), read by the server. A folder of json and safetensors:

    bundle.json            run id, config, spec, digests        initial.safetensors   the adapter before round 1
    frozen.safetensors     A (and B), public, for the export
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedward_common.adapter import Adapter, AdapterSpec, Vector
from fedward_common.config import RunConfig
from fedward_common.errors import FedwardError, OutputError

__all__ = ["Bundle", "run_id_of"]

VERSION = 2  # 2: base_name
INITIAL, FROZEN = "initial.safetensors", "frozen.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Config, spec and initial tensors of one run. ``run_id`` is fresh for every preparation.

    ``base_name`` is where users of the finished adapter find the base weights: a hub id, or a folder.
    """

    run_id: str
    config: RunConfig
    initial: Adapter
    frozen: Mapping[str, Vector]
    base_name: str

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that the run trains."""
        return self.initial.spec

    def save(self, folder: Path) -> None:
        """Write the bundle into an existing folder."""
        from safetensors.numpy import save

        self.initial.save(folder / INITIAL)
        frozen = {name: np.ascontiguousarray(value) for name, value in self.frozen.items()}
        (folder / FROZEN).write_bytes(save(frozen))
        content = {
            "version": VERSION,
            "run_id": self.run_id,
            "base_name": self.base_name,
            "config": self.config.model_dump(mode="json", by_alias=True),
            "spec": TypeAdapter(AdapterSpec).dump_python(self.spec, mode="json"),
            "files": {name: _sha256((folder / name).read_bytes()) for name in (INITIAL, FROZEN)},
        }
        envelope = {"sha256": _digest(content), "content": content}
        (folder / "bundle.json").write_text(json.dumps(envelope, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read ``save`` back.

        Raises:
          OutputError: the folder holds no bundle, or a broken one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            content = _checked(folder)
            spec = TypeAdapter(AdapterSpec).validate_python(content["spec"])
            return cls(
                run_id=content["run_id"],
                base_name=content["base_name"],
                config=RunConfig.model_validate(content["config"]),
                initial=Adapter.load(spec, folder / INITIAL),
                frozen=load_file(folder / FROZEN),
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError, FedwardError):
            raise OutputError(f"{folder} holds no readable run bundle", hint="prepare the run again") from None


def _checked(folder: Path) -> dict[str, Any]:
    envelope = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    content: dict[str, Any] = envelope["content"]
    if _digest(content) != envelope["sha256"] or content["version"] != VERSION:
        raise ValueError("digest or version of bundle.json")
    for name in (INITIAL, FROZEN):
        if _sha256((folder / name).read_bytes()) != content["files"][name]:
            raise ValueError(f"digest of {name}")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run_id_of(config: RunConfig, *, nonce: bytes) -> str:
    """A fresh run id: SHA-256 (hex) of the config's digest and a nonce."""
    return hashlib.sha256(bytes.fromhex(config.digest) + nonce).hexdigest()
