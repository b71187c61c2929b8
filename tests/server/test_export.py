from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedward_common.adapter import Adapter
from fedward_common.config import AdapterConfig, Method, ModelConfig, Pooling
from fedward_common.errors import OutputError
from fedward_common.modeling.adapters import AdaptedModel, adapt
from fedward_common.modeling.base import load_base
from fedward_server.bundle import Bundle
from fedward_server.export import export_adapter, peft_tensors
from support.coordinating import config_of

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SUMMARY: dict[str, Any] = {
    "sites": 3,
    "rounds": 4,
    "accuracy": 0.75,
    "macro_f1": 0.5,
    "majority_accuracy": 0.25,
    "epsilon": 7.12341,
    "base_fingerprint": "ab" * 32,
}
CONFIGS = {
    "core": AdapterConfig(method=Method.CORE, rank=4, alpha=16.0),
    "lora": AdapterConfig(method=Method.LORA, rank=4, alpha=16.0),
    "frozen A": AdapterConfig(method=Method.LORA, rank=4, alpha=16.0, freeze_a=True),
}


def trained(tiny: ModelConfig, config: AdapterConfig) -> tuple[AdaptedModel, Adapter, Bundle]:
    """A model whose every number moved, its adapter, and the bundle it was made from."""
    model = adapt(load_base(tiny), config, classes=2, public_seed=3)
    values = np.random.default_rng(0).normal(scale=0.3, size=model.spec.size).astype(np.float32)
    adapter = Adapter(spec=model.spec, vector=values)
    model.load(adapter)
    run = config_of(model=tiny.model_dump(), adapter=config.model_dump())
    bundle = Bundle(run_id="cd" * 32, config=run, initial=adapter, frozen=model.frozen, base_name="someone/base")
    return model, adapter, bundle


# peft's PeftModel asks a model for a property that transformers 5 deprecates
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_plain_peft_and_transformers_load_it_and_give_the_same_logits(
    config: AdapterConfig, tiny: ModelConfig, tmp_path: Path
) -> None:
    import peft
    import transformers

    model, adapter, bundle = trained(tiny, config)
    export_adapter(tmp_path / "adapter", adapter, bundle=bundle, summary=SUMMARY)
    plain = transformers.AutoModel.from_pretrained(tiny.base).eval()
    loaded = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    head = load_file(tmp_path / "adapter" / "head.safetensors")
    with torch.no_grad():
        hidden = loaded(input_ids=IDS, attention_mask=MASK).last_hidden_state
        pooled = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
        logits = pooled @ head["weight"].T + head["bias"]
        torch.testing.assert_close(logits, model(IDS, MASK), rtol=0, atol=1e-4)
        with loaded.disable_adapter():
            without = loaded(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert (hidden - without).abs().max() > 0.01  # the adapter does something


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_tensors_are_an_ordinary_loras(config: AdapterConfig, tiny: ModelConfig) -> None:
    _, adapter, bundle = trained(tiny, config)
    tensors = peft_tensors(adapter, bundle.frozen)
    assert len(tensors) == 2 * 2 * 2
    for name, value in tensors.items():
        assert name.startswith("base_model.model.encoder.layer.")
        assert value.shape == ((4, 32) if name.endswith(".lora_A.weight") else (32, 4))
        assert value.dtype == np.float32


def test_the_folder_holds_json_safetensors_and_a_card_alone(tiny: ModelConfig, tmp_path: Path) -> None:
    _, adapter, bundle = trained(tiny, CONFIGS["core"])
    folder = tmp_path / "deep" / "adapter"
    export_adapter(folder, adapter, bundle=bundle, summary=SUMMARY)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "labels.json",
    ]
    assert json.loads((folder / "labels.json").read_text(encoding="utf-8")) == ["yes", "no"]
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "someone/base"
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 16.0, "LORA")


def test_the_card_rounds_epsilon_up_and_names_waivers(tiny: ModelConfig, tmp_path: Path) -> None:
    _, adapter, bundle = trained(tiny, CONFIGS["core"])
    export_adapter(tmp_path / "a", adapter, bundle=bundle, summary=SUMMARY)
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "(7.124, 1e-05)-differentially private" in card
    assert "Waived" not in card
    assert bundle.config.model.pooling is Pooling.MEAN
    assert "mean pooling" in card
    waived = {**SUMMARY, "waivers": ["seeded_randomness"]}
    export_adapter(tmp_path / "b", adapter, bundle=bundle, summary=waived)
    assert "**Waived: seeded_randomness.**" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_a_card_without_the_coordinators_data_says_what_the_plans_promised(tiny: ModelConfig, tmp_path: Path) -> None:
    _, adapter, bundle = trained(tiny, CONFIGS["core"])
    known = {key: SUMMARY[key] for key in ("sites", "rounds", "epsilon", "base_fingerprint")}
    sites = {"accuracy": 0.625, "loss": 1.0}
    export_adapter(
        tmp_path / "a", adapter, bundle=bundle, summary={**known, "epsilon_is": "promised", "site_metrics": sites}
    )
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "signed plans allowed at most" in card
    assert "0.6250" in card
    assert "macro F1" not in card


@pytest.mark.parametrize("call", ["mkdir", "write_bytes", "write_text"])
def test_a_full_disk_is_an_error_with_a_hint(
    call: str, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, adapter, bundle = trained(tiny, CONFIGS["core"])
    monkeypatch.setattr(Path, call, full)
    with pytest.raises(OutputError, match="No space left") as caught:
        export_adapter(tmp_path / "a", adapter, bundle=bundle, summary=SUMMARY)
    assert caught.value.hint
