"""A prepared run: what a coordinator without torch needs to run a run file.

Written by ``fedward-sim prepare`` (which has torch), read by the server. A folder of json and safetensors:

    bundle.json            run id, config, spec                 initial.safetensors   the adapter before round 1
    frozen.safetensors     A (and B), public, for the export
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedward_common.adapter import Adapter, AdapterSpec, Vector
from fedward_common.config import RunConfig
from fedward_common.errors import OutputError
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms

__all__ = ["Bundle", "run_id_of", "terms_of"]

VERSION = 1


def terms_of(config: RunConfig) -> PrivacyTerms:
    """The privacy terms of a run file: what every plan of the run announces."""
    privacy = config.privacy
    return PrivacyTerms(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        unit=privacy.unit,
        clip_norm=privacy.clip_norm,
        max_records_per_unit=privacy.max_records_per_unit,
        stages=tuple(
            StageTerms(
                name=stage.name,
                sampling_rate=stage.sampling_rate,
                rounds=stage.rounds,
                local_steps=stage.local_steps,
                noise_ratio=stage.noise_ratio,
            )
            for stage in config.stages
        ),
        metrics=MetricTerms(
            evaluations=config.evaluations,
            share=privacy.metrics_share,
            validation_fraction=privacy.validation_fraction,
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Config, spec and initial tensors of one run. ``run_id`` is fresh for every preparation."""

    run_id: str
    config: RunConfig
    initial: Adapter
    frozen: Mapping[str, Vector]

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that the run trains."""
        return self.initial.spec

    def save(self, folder: Path) -> None:
        """Write the bundle into an existing folder."""
        from safetensors.numpy import save_file

        content = {
            "version": VERSION,
            "run_id": self.run_id,
            "config": self.config.model_dump(mode="json", by_alias=True),
            "spec": TypeAdapter(AdapterSpec).dump_python(self.spec, mode="json"),
        }
        (folder / "bundle.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        self.initial.save(folder / "initial.safetensors")
        save_file(dict(self.frozen), folder / "frozen.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read ``save`` back.

        Raises:
          OutputError: the folder holds no bundle, or a broken one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
            config = RunConfig.model_validate(content["config"])
            spec = TypeAdapter(AdapterSpec).validate_python(content["spec"])
            frozen = load_file(folder / "frozen.safetensors")
        except (OSError, ValueError, KeyError, ValidationError, SafetensorError):
            raise OutputError(f"{folder} holds no readable run bundle", hint="prepare the run again") from None
        initial = Adapter.load(spec, folder / "initial.safetensors")
        return cls(run_id=content["run_id"], config=config, initial=initial, frozen=frozen)


def run_id_of(config: RunConfig, *, nonce: bytes) -> str:
    """A fresh run id: SHA-256 (hex) of the config's digest and a nonce."""
    return hashlib.sha256(bytes.fromhex(config.digest) + nonce).hexdigest()
