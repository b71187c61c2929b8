from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedward_common.adapter import Adapter
from fedward_common.config import AdapterConfig, Method, ModelConfig, Pooling
from fedward_common.errors import ModelError, SpecMismatch
from fedward_common.modeling.adapters import AdaptedModel, CoreProjection, adapt
from fedward_common.modeling.base import load_base

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
CONFIGS = {
    "core": AdapterConfig(method=Method.CORE, rank=4, alpha=16.0),
    "lora": AdapterConfig(method=Method.LORA, rank=4, alpha=16.0),
    "frozen A": AdapterConfig(method=Method.LORA, rank=4, alpha=16.0, freeze_a=True),
}
LAYERS = [f"encoder.layer.{n}.attention.self.{name}" for n in (0, 1) for name in ("query", "value")]


def model_of(
    tiny: ModelConfig, config: AdapterConfig = CONFIGS["core"], *, seed: int = 3, **changes: Any
) -> AdaptedModel:
    """A fresh adapted model with three classes."""
    base = load_base(tiny.model_copy(update=changes))
    return adapt(base, config, classes=3, public_seed=seed)


def moved(model: AdaptedModel, *, seed: int = 0) -> Adapter:
    """An adapter in which every number matters."""
    values = np.random.default_rng(seed).normal(scale=0.3, size=model.spec.size)
    return Adapter(spec=model.spec, vector=values.astype(np.float32))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_adapted_model_starts_as_the_base(config: AdapterConfig, tiny: ModelConfig) -> None:
    plain = load_base(tiny)
    with torch.no_grad():
        hidden = plain.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        model = model_of(tiny, config)
        assert torch.equal(model.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state, hidden)
        assert torch.equal(model(IDS, MASK), torch.zeros(2, 3))
        means = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
        torch.testing.assert_close(model.features(IDS, MASK), means)


def test_cls_pooling_takes_the_first_token(tiny: ModelConfig) -> None:
    model = model_of(tiny, pooling=Pooling.CLS)
    with torch.no_grad():
        hidden = model.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        assert torch.equal(model.features(IDS, MASK), hidden[:, 0])


def test_a_text_without_any_token_has_finite_features(tiny: ModelConfig) -> None:
    with torch.no_grad():
        assert model_of(tiny).features(IDS, MASK * 0).isfinite().all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_same_inputs_give_the_same_tensors_whatever_torchs_random_state(
    config: AdapterConfig, tiny: ModelConfig
) -> None:
    torch.manual_seed(1)
    one = model_of(tiny, config)
    torch.manual_seed(2)
    two = model_of(tiny, config)
    assert one.spec.digest == two.spec.digest
    assert one.read(["head", "adapter"]).digest == two.read(["head", "adapter"]).digest
    assert one.frozen.keys() == two.frozen.keys()
    for name, value in one.frozen.items():
        np.testing.assert_array_equal(value, two.frozen[name])


def test_lora_a_depends_on_the_public_seed_alone_and_core_on_no_seed(tiny: ModelConfig) -> None:
    frozen = [model_of(tiny, CONFIGS["frozen A"], seed=seed).frozen for seed in (3, 3, 4)]
    name = f"{LAYERS[0]}.lora_A"
    np.testing.assert_array_equal(frozen[0][name], frozen[1][name])
    assert (frozen[0][name] != frozen[2][name]).all()
    assert (frozen[0][name] != frozen[0][f"{LAYERS[1]}.lora_A"]).all()
    core = [model_of(tiny, seed=seed).frozen[name] for seed in (3, 4)]
    np.testing.assert_array_equal(core[0], core[1])


@pytest.mark.parametrize(
    ("method", "names"), [("core", {"core"}), ("lora", {"lora_A", "lora_B"}), ("frozen A", {"lora_B"})]
)
def test_the_spec_names_what_is_trained(method: str, names: set[str], tiny: ModelConfig) -> None:
    model = model_of(tiny, CONFIGS[method])
    spec = model.spec
    assert spec.groups["head"] == ("head.bias", "head.weight")
    assert set(spec.groups["adapter"]) == {f"{layer}.{name}" for layer in LAYERS for name in names}
    assert (spec.tensors["head.weight"], spec.tensors["head.bias"]) == ((3, 32), (3,))
    shapes = {"core": (4, 4), "lora_A": (4, 32), "lora_B": (32, 4)}
    assert all(spec.tensors[n] == shapes[n.rsplit(".", 1)[1]] for n in spec.groups["adapter"])
    assert spec.base_fingerprint == load_base(tiny).fingerprint
    assert (spec.method, spec.rank, spec.alpha) == (CONFIGS[method].method.value, 4, 16.0)
    assert spec.target_modules == ("query", "value")
    frozen = {"core": {"lora_A", "lora_B"}, "lora": set(), "frozen A": {"lora_A"}}[method]
    assert set(model.frozen) == {f"{layer}.{name}" for layer in LAYERS for name in frozen}


def test_core_factors_are_the_weights_principal_part(tiny: ModelConfig) -> None:
    weight = load_base(tiny).encoder.get_submodule(LAYERS[0]).get_parameter("weight").numpy().copy()
    frozen = model_of(tiny).frozen
    product = frozen[f"{LAYERS[0]}.lora_B"] @ frozen[f"{LAYERS[0]}.lora_A"]
    u, s, vt = np.linalg.svd(weight.astype(np.float64))
    np.testing.assert_allclose(product, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-5)


def test_the_core_update_is_linear_in_what_is_trained(tiny: ModelConfig) -> None:
    projection = CoreProjection(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    x = torch.ones(3, 5)
    assert not projection(x).any()
    with torch.no_grad():
        projection.core.weight.copy_(torch.eye(2))
        once = projection(x)
        projection.core.weight.mul_(3.0)
        torch.testing.assert_close(projection(x), 3 * once)
    assert [name for name, _ in projection.named_parameters()] == ["core.weight"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_load_and_read_are_inverse_and_every_number_matters(config: AdapterConfig, tiny: ModelConfig) -> None:
    model = model_of(tiny, config)
    adapter = moved(model)
    model.load(adapter)
    assert model.read(["head", "adapter"]).digest == adapter.digest
    assert model.read(["head"]).digest == adapter.subset(["head"]).digest
    with torch.no_grad():
        logits = model(IDS, MASK)
        for group in ("head", "adapter"):
            model.load(adapter)
            model.load(adapter.subset([group]).scaled(0.5))
            assert not torch.allclose(model(IDS, MASK), logits)


def test_what_was_read_does_not_change_with_the_model(tiny: ModelConfig) -> None:
    model = model_of(tiny)
    model.load(moved(model))
    read = model.read(["head"])
    before = read.to_bytes()
    model.load(moved(model, seed=1))
    assert read.to_bytes() == before


def test_an_adapter_of_another_spec_is_refused_and_the_model_is_as_it_was(tiny: ModelConfig) -> None:
    model = model_of(tiny)
    adapter = moved(model)
    model.load(adapter)
    for spec in (replace(model.spec, base_fingerprint="0" * 64), replace(model.spec, alpha=1.0)):
        with pytest.raises(SpecMismatch):
            model.load(Adapter.zeros(spec))
        with pytest.raises(SpecMismatch):
            model.load(Adapter.zeros(spec.subset(["head"])))
    assert model.read(["head", "adapter"]).digest == adapter.digest


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_select_makes_exactly_the_named_groups_trainable_in_canonical_order(
    config: AdapterConfig, tiny: ModelConfig
) -> None:
    model = model_of(tiny, config)
    for groups in (["head"], ["adapter"], ["head", "adapter"], ["head"]):
        chosen = model.select(groups)
        spec = model.spec.subset(groups)
        assert [tuple(parameter.shape) for parameter in chosen] == [spec.tensors[name] for name in spec.slices]
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert {id(parameter) for parameter in trainable} == {id(parameter) for parameter in chosen}
        values = np.concatenate([parameter.detach().numpy().ravel() for parameter in chosen])
        np.testing.assert_array_equal(values, model.read(groups).vector)


@pytest.mark.parametrize("groups", [[], ["body"], ["head", "head"]])
def test_groups_that_do_not_exist_are_refused(groups: list[str], tiny: ModelConfig) -> None:
    model = model_of(tiny)
    with pytest.raises(SpecMismatch):
        model.select(groups)
    with pytest.raises(SpecMismatch):
        model.read(groups)


@pytest.mark.parametrize("method", Method)
def test_a_rank_that_is_too_large_is_refused(method: Method, tiny: ModelConfig) -> None:
    assert model_of(tiny, AdapterConfig(method=method, rank=32)).spec.rank == 32
    with pytest.raises(ModelError, match="rank 33") as caught:
        model_of(tiny, AdapterConfig(method=method, rank=33))
    assert "32" in caught.value.hint


@pytest.mark.parametrize("targets", [("nothing",), ("query", "nothing"), ("attention",), ("uery",)])
def test_an_unknown_target_is_refused_and_the_known_are_listed(targets: tuple[str, ...], tiny: ModelConfig) -> None:
    with pytest.raises(ModelError, match="no linear layer") as caught:
        model_of(tiny, AdapterConfig(rank=4, target_modules=targets))
    assert "dense, key, query, value" in caught.value.hint


def test_every_linear_layer_can_be_a_target(tiny: ModelConfig) -> None:
    model = model_of(tiny, AdapterConfig(rank=4, target_modules=("query", "key", "value", "dense")))
    assert len(model.spec.groups["adapter"]) == 2 * 6 + 1  # and the pooler's
