"""The finished adapter in PEFT's own format, with the head and a model card; safetensors and json alone, no torch.

    adapter/   adapter_config.json   adapter_model.safetensors   head.safetensors   labels.json   README.md

Both methods export as an ordinary LoRA: for ``core``, lora_A = A and lora_B = B R.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.adapter import Adapter, Vector
from fedward_common.config import Method
from fedward_common.errors import OutputError
from fedward_server.bundle import Bundle

__all__ = ["export_adapter", "peft_tensors"]


def peft_tensors(adapter: Adapter, frozen: Mapping[str, Vector]) -> dict[str, Vector]:
    """PEFT's names and shapes: ``lora_A`` of ``(rank, in)`` and ``lora_B`` of ``(out, rank)`` for each module."""
    out: dict[str, Vector] = {}
    values = {**frozen, **adapter.tensors}
    for name in adapter.spec.groups["adapter"]:
        module, kind = name.rsplit(".", 1)
        prefix = f"base_model.model.{module}"
        if adapter.spec.method == Method.CORE.value:
            out[f"{prefix}.lora_A.weight"] = values[f"{module}.lora_A"]
            out[f"{prefix}.lora_B.weight"] = (values[f"{module}.lora_B"] @ adapter.tensors[name]).astype(np.float32)
        elif kind == "lora_B":
            out[f"{prefix}.lora_A.weight"] = values[f"{module}.lora_A"]
            out[f"{prefix}.lora_B.weight"] = values[name]
    return out


def export_adapter(
    folder: Path, adapter: Adapter, *, bundle: Bundle, base_name: str, summary: Mapping[str, Any]
) -> None:
    """Write the adapter folder.

    Args:
      folder: made if missing.
      adapter: the finished adapter.
      bundle: config and frozen tensors.
      base_name: where users find the base weights (a hub id or a folder).
      summary: what the model card quotes.

    Raises:
      OutputError: the disk is full or not writable.
    """
    head = {"weight": adapter.tensors["head.weight"], "bias": adapter.tensors["head.bias"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(folder / "adapter_model.safetensors", peft_tensors(adapter, bundle.frozen))
        _write_tensors(folder / "head.safetensors", head)
        _write_json(folder / "adapter_config.json", _peft_config(adapter, base_name, bundle.config.model.revision))
        _write_json(folder / "labels.json", list(bundle.config.task.labels))
        (folder / "README.md").write_text(_card(bundle, base_name, summary), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the adapter to {folder}: {error.strerror or 'disk error'}",
            hint="free disk space, then `fedward-sim run --resume` exports it from the last checkpoint",
        ) from None


def _write_tensors(path: Path, tensors: Mapping[str, Vector]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _peft_config(adapter: Adapter, base_name: str, revision: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": adapter.spec.rank,
        "lora_alpha": adapter.spec.alpha,
        "target_modules": list(adapter.spec.target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _card(bundle: Bundle, base_name: str, summary: Mapping[str, Any]) -> str:
    config = bundle.config
    privacy, adapter = config.privacy, config.adapter
    epsilon = math.ceil(summary["epsilon"] * 1000) / 1000  # up, never down
    waivers = summary.get("waivers") or ()
    waived = (
        f"**Waived: {', '.join(waivers)}.** The run was a simulation whose randomness can be repeated from its seed; "
        "for whoever knows the seed there is no privacy.\n"
        if waivers
        else ""
    )
    return f"""---
base_model: {base_name}
library_name: peft
tags: [fedward, lora, differential-privacy, federated-learning]
---
# {config.name}

LoRA adapter and linear head for text classification into {len(config.task.labels)} labels (`labels.json`), trained by
fedward over {summary["sites"]} sites in {summary["rounds"]} rounds. Base: `{base_name}`, fingerprint
`{summary["base_fingerprint"]}`, {config.model.pooling.value} pooling, at most {config.model.max_tokens} tokens.

| | |
|---|---|
| accuracy (coordinator's evaluation data) | {summary["accuracy"]:.4f} |
| macro F1 | {summary["macro_f1"]:.4f} |
| always guessing the commonest label | {summary["majority_accuracy"]:.4f} |
| method, rank, modules | {adapter.method.value}, {adapter.rank}, {", ".join(adapter.target_modules)} |

Data: `{Path(config.data.train).name}`, columns {", ".join(config.data.text)} and {config.data.label}.

## The guarantee
At each site, the whole run, noisy site metrics included, is ({epsilon:g}, {privacy.delta:g})-differentially private
for adding or removing one **{privacy.unit.value}** of that site. Epsilon is the largest over sites, computed by
privacy-loss distributions from the recorded events.
{waived}
## What it is not
- The accuracy above was measured on the coordinator's evaluation data, which is outside the guarantee.
- It does not cover a person present at several sites, or several records of one person when the unit is a record.
- It says nothing about settings picked by looking at real data, nor that the sites' data is what they say.
"""
