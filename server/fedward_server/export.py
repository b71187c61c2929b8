"""The finished adapter in PEFT's own format, with the head and a model card; safetensors and json alone, no torch.

    adapter/   adapter_config.json   adapter_model.safetensors   head.safetensors   labels.json   README.md

Both methods export as an ordinary LoRA: for ``core``, lora_A = A and lora_B = B R.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.adapter import Adapter, Vector
from fedward_common.config import Method
from fedward_common.errors import OutputError
from fedward_common.report import rounded_up
from fedward_server.bundle import Bundle

__all__ = ["Epsilon", "export_adapter", "peft_tensors"]


class Epsilon(StrEnum):
    """What the epsilon of a model card is."""

    SPENT = "spent"
    """Computed from recorded events: a simulation has every site's ledger."""

    PROMISED = "promised"
    """The most that the signed plans allowed: a coordinator does not see the sites' ledgers."""


SOURCES = {
    Epsilon.SPENT: "Epsilon is the largest over\n"
    "sites, computed by privacy-loss distributions from the recorded events.",
    Epsilon.PROMISED: "Epsilon is what the\n"
    "signed plans allowed at most; each site's signed certificate says what it spent.",
}


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


def export_adapter(folder: Path, adapter: Adapter, *, bundle: Bundle, summary: Mapping[str, Any]) -> None:
    """Write the adapter folder.

    Args:
      folder: made if missing.
      adapter: the finished adapter.
      bundle: config, frozen tensors, and where users find the base weights.
      summary: what the model card quotes: ``sites``, ``rounds``, ``base_fingerprint``, ``epsilon`` and, as far as they
        are known, ``epsilon_is``, ``waivers``, ``accuracy``, ``macro_f1``, ``majority_accuracy``, ``site_metrics``.

    Raises:
      OutputError: the disk is full or not writable.
    """
    head = {"weight": adapter.tensors["head.weight"], "bias": adapter.tensors["head.bias"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(folder / "adapter_model.safetensors", peft_tensors(adapter, bundle.frozen))
        _write_tensors(folder / "head.safetensors", head)
        _write_json(folder / "adapter_config.json", _peft_config(adapter, bundle))
        _write_json(folder / "labels.json", list(bundle.config.task.labels))
        (folder / "README.md").write_text(_card(bundle, summary), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the adapter to {folder}: {error.strerror or 'disk error'}",
            hint="free disk space; the last checkpoint still has it",
        ) from None


def _write_tensors(path: Path, tensors: Mapping[str, Vector]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _peft_config(adapter: Adapter, bundle: Bundle) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": bundle.base_name,
        "revision": bundle.config.model.revision,
        "r": adapter.spec.rank,
        "lora_alpha": adapter.spec.alpha,
        "target_modules": list(adapter.spec.target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


SITES_MEASURED = "over the sites' validation units, of the adapter that the last round began with"
MEASURED = {
    "accuracy": "accuracy (coordinator's evaluation data)",
    "macro_f1": "macro F1",
    "majority_accuracy": "always guessing the commonest label",
}


def _card(bundle: Bundle, summary: Mapping[str, Any]) -> str:
    config = bundle.config
    privacy, adapter = config.privacy, config.adapter
    modules = ", ".join(adapter.target_modules)
    epsilon = rounded_up(summary["epsilon"], digits=3)
    return f"""---
base_model: {bundle.base_name}
library_name: peft
tags: [fedward, lora, differential-privacy, federated-learning]
---
# {config.name}

LoRA adapter and linear head for text classification into {len(config.task.labels)} labels (`labels.json`), trained by
fedward over {summary["sites"]} sites in {summary["rounds"]} rounds. Base: `{bundle.base_name}`, fingerprint
`{summary["base_fingerprint"]}`, {config.model.pooling.value} pooling, at most {config.model.max_tokens} tokens.

| | |
|---|---|
{_measured(summary)}| method, rank, modules | {adapter.method.value}, {adapter.rank}, {modules} |

Data: `{Path(config.data.train).name}`, columns {", ".join(config.data.text)} and {config.data.label}.

## The guarantee
At each site, the whole run, noisy site metrics included, is ({epsilon}, {privacy.delta:g})-differentially private
for adding or removing one **{privacy.unit.value}** of that site. {SOURCES[Epsilon(summary.get("epsilon_is", "spent"))]}
{_waived(summary)}
## What it is not
- Any accuracy on the coordinator's evaluation data is outside the guarantee.
- It does not cover a person present at several sites, or several records of one person when the unit is a record.
- It says nothing about settings picked by looking at real data, nor that the sites' data is what they say.
"""


def _measured(summary: Mapping[str, Any]) -> str:
    rows = [(text, summary[key]) for key, text in MEASURED.items() if key in summary]
    sites = summary.get("site_metrics") or {}
    if "accuracy" in sites:
        rows.append((f"accuracy {SITES_MEASURED} (noisy, inside the guarantee)", sites["accuracy"]))
    return "".join(f"| {text} | {value:.4f} |\n" for text, value in rows)


def _waived(summary: Mapping[str, Any]) -> str:
    waivers = summary.get("waivers") or ()
    if not waivers:
        return ""
    return (
        f"**Waived: {', '.join(waivers)}.** The run was a simulation whose randomness can be repeated from its seed; "
        "for whoever knows the seed there is no privacy.\n"
    )
