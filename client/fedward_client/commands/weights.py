"""What a base model's files say without loading it: the shapes of its weights, from the headers of its safetensors.

Enough to forecast how large an update is and how long a step takes, on a machine without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedward_common.adapter import AdapterSpec
from fedward_common.config import AdapterConfig, Method
from fedward_common.errors import ModelError

__all__ = ["Shapes", "read_shapes", "spec_for"]

Extents = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Of a base model: the hidden size, and the shape of every matrix by its tensor's name."""

    hidden_size: int
    matrices: Mapping[str, Extents]

    @property
    def work_per_token(self) -> float:
        """Multiplications and additions of one token's way through the encoder, without attention between tokens."""
        return 2.0 * sum(math.prod(shape) for name, shape in self.matrices.items() if "embedding" not in name)

    def layers(self, module: str) -> dict[str, Extents]:
        """Name and shape of each linear layer whose last name is ``module``."""
        ends = (f".{module}.weight", module + ".weight")
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.matrices.items()
            if name.endswith(ends[0]) or name == ends[1]
        }


def read_shapes(folder: Path) -> Shapes:
    """The shapes of a base model's weights.

    Raises:
      ModelError: the folder holds no readable configuration or safetensors.
    """
    from safetensors import SafetensorError, safe_open

    matrices: dict[str, Extents] = {}
    try:
        hidden = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as weights:
                shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            matrices.update({name: shape for name, shape in shapes.items() if len(shape) == 2})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise ModelError(f"{folder} holds no readable base model", hint="fetch it again") from None
    return Shapes(hidden_size=hidden, matrices=matrices)


def spec_for(shapes: Shapes, adapter: AdapterConfig, *, fingerprint: str, classes: int) -> AdapterSpec:
    """The adapter that a run would train on this base: right in sizes; tensor names may lack the model's own prefix.

    Raises:
      ModelError: no layer has a target's name, or the rank is too large.
    """
    layers: dict[str, Extents] = {}
    for module in adapter.target_modules:
        found = shapes.layers(module)
        if not found:
            raise ModelError(f"the base model has no layer named {module!r}", hint="compare adapter.target_modules")
        layers |= found
    smallest = min(min(shape) for shape in layers.values())
    if adapter.rank > smallest:
        raise ModelError(f"rank {adapter.rank} exceeds a layer of the base model", hint=f"choose at most {smallest}")
    head: dict[str, Extents] = {"head.weight": (classes, shapes.hidden_size), "head.bias": (classes,)}
    trained: dict[str, Extents] = {}
    for layer, weight in layers.items():
        trained |= _trained(layer, weight, adapter)
    return AdapterSpec(
        base_fingerprint=fingerprint,
        method=adapter.method.value,
        rank=adapter.rank,
        alpha=adapter.alpha,
        target_modules=adapter.target_modules,
        groups={"head": tuple(sorted(head)), "adapter": tuple(sorted(trained))},
        tensors={**head, **trained},
    )


def _trained(layer: str, weight: Extents, adapter: AdapterConfig) -> dict[str, Extents]:
    rank, (outputs, inputs) = adapter.rank, weight
    if adapter.method is Method.CORE:
        return {f"{layer}.core": (rank, rank)}
    b: dict[str, Extents] = {f"{layer}.lora_B": (outputs, rank)}
    return b if adapter.freeze_a else b | {f"{layer}.lora_A": (rank, inputs)}
