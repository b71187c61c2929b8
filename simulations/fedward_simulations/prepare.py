"""From a run file to a bundle: load the base, put the adapter on it, fix the public tensors. Needs torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from fedward_common.adapter import Adapter
from fedward_common.config import RunConfig
from fedward_common.modeling.adapters import AdaptedModel, adapt
from fedward_common.modeling.base import ALIASES, Base, load_base
from fedward_server.bundle import Bundle, run_id_of

__all__ = ["Prepared", "prepare", "public_base_name"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A bundle and the resident model that it was made from."""

    bundle: Bundle
    base: Base
    model: AdaptedModel


def prepare(config: RunConfig, *, run_id: str | None = None, device: torch.device | None = None) -> Prepared:
    """Load the base model and make the run's bundle.

    Args:
      config: a checked run file.
      run_id: of the run to continue; a fresh one otherwise.
      device: where the model is put once its public tensors are fixed, on the CPU, as everywhere.

    Raises:
      ModelError: the base cannot be used.
    """
    base = load_base(config.model)
    model = adapt(base, config.adapter, classes=len(config.task.labels), public_seed=config.seed)
    initial = Adapter.from_tensors(
        model.spec, {name: np.array(value) for name, value in model.read(model.spec.groups).tensors.items()}
    )
    bundle = Bundle(
        run_id=run_id or run_id_of(config, nonce=os.urandom(32)),
        config=config,
        initial=initial,
        frozen=model.frozen,
        base_name=public_base_name(config),
    )
    return Prepared(bundle=bundle, base=base, model=model if device is None else model.to(device))


def public_base_name(config: RunConfig) -> str:
    """Where users of the exported adapter find the base weights."""
    alias = ALIASES.get(config.model.base)
    return alias.hub_id if alias else config.model.base
