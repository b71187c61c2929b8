"""Low-rank adapters on a frozen encoder (peft), and the head on top: spec, initial values, in and out of the model.

Two methods share peft's LoRA layers, y = W x + (alpha / r) B A x. ``lora`` trains A and B, or B alone. ``core`` puts an
r x r matrix R between an A and a B taken from the SVD of W and trains R alone, so the update B R A is linear in what is
trained: averaging R over sites is exact, messages are tiny, and the result is still an ordinary LoRA (A, B R).

Source: LoRA arXiv:2106.09685; LoRA-XS arXiv:2405.17604; Fed-SB arXiv:2502.15436; FFA-LoRA arXiv:2403.12313.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedward_common.adapter import Adapter, AdapterSpec, Vector
from fedward_common.config import AdapterConfig, Method, Pooling
from fedward_common.errors import ModelError, SpecMismatch
from fedward_common.modeling.apart import check_records_apart
from fedward_common.modeling.base import Base
from fedward_common.privacy.randomness import public_gaussian

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["AdaptedModel", "CoreProjection", "TrainedLayer", "adapt", "one_thread"]

_SLOT = "default"  # peft's name of the one adapter


class CoreProjection(nn.Module):
    """A frozen A followed by the trained core R, standing where peft keeps ``lora_A``.

    Maps ``(..., in_features)`` to ``(..., rank)`` as ``R (A x)``. R is a bias-free linear layer, so Opacus's ordinary
    hook gives its per-record gradients.
    """

    def __init__(self, frozen_a: torch.Tensor) -> None:
        """Take A of shape ``(rank, in_features)``; R starts at zero, so the adapted model starts as the base."""
        super().__init__()
        rank = frozen_a.shape[0]
        self.register_buffer("frozen_a", frozen_a)
        self.core = nn.Linear(rank, rank, bias=False)
        nn.init.zeros_(self.core.weight)

    @property
    def weight(self) -> torch.Tensor:
        """What peft looks at to learn the type of its ``lora_A``."""
        return self.core.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project: ``(..., in_features) -> (..., rank)``."""
        frozen_a: Any = self.frozen_a
        projected: torch.Tensor = self.core(functional.linear(x, frozen_a))
        return projected


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedLayer:
    """A linear layer with trained tensors, and their public names; ``bias`` is None where it has none."""

    linear: nn.Linear
    weight: str
    bias: str | None

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Its parameters by public name."""
        parameters = dict(self.linear.named_parameters())
        names = {"weight": self.weight, "bias": self.bias}
        return {public: parameters[own] for own, public in names.items() if public is not None}


class AdaptedModel(nn.Module):
    """Encoder, adapter and linear head: from token ids to logits.

    ``spec`` names the trained tensors; ``frozen`` holds A (and B), which an export needs but no update carries.
    """

    def __init__(self, base: Base, encoder: PeftModel, head: nn.Linear, config: AdapterConfig) -> None:
        """Collect the trained parameters under their public names."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = base.pooling
        layers = _adapted_layers(encoder)
        self._trained = (TrainedLayer(linear=head, weight="head.weight", bias="head.bias"), *_trained(layers, config))
        self._parameters_by_name = {name: value for layer in self._trained for name, value in layer.tensors.items()}
        self.frozen = _frozen(layers, config)
        self.spec = _spec(base, config, self._parameters_by_name)

    @property
    def device(self) -> torch.device:
        """Where the model's numbers are."""
        return self.head.weight.device

    def features(self, input_ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        """Pool the encoder's last layer: ``(n, tokens)`` ids, mask and text types to ``(n, hidden)``."""
        pair = {} if types is None else {"token_type_ids": types}
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=mask, **pair).last_hidden_state
        if self.pooling is Pooling.CLS:
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)  # a text may have no token at all

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        """Logits: ``(n, tokens)`` to ``(n, classes)``."""
        logits: torch.Tensor = self.head(self.features(input_ids, mask, types))
        return logits

    def select(self, groups: Iterable[str]) -> list[nn.Parameter]:
        """Make exactly the named groups trainable and return their parameters in canonical order."""
        names = self.spec.subset(groups).slices
        for name, parameter in self._parameters_by_name.items():
            parameter.requires_grad_(name in names)
        return [self._parameters_by_name[name] for name in names]

    def trained_layers(self, groups: Iterable[str]) -> list[TrainedLayer]:
        """The layers that hold the named groups' tensors: nothing else of the model is trained with them."""
        names = self.spec.subset(groups).tensors
        return [layer for layer in self._trained if layer.weight in names]

    def load(self, adapter: Adapter) -> None:
        """Copy an adapter, or a subset of one, into the model.

        Raises:
          SpecMismatch: it is of another spec.
        """
        if self.spec.subset(adapter.spec.groups).digest != adapter.spec.digest:
            raise SpecMismatch("the adapter is not of this model's spec", hint="compare base model and adapter table")
        with torch.no_grad():
            for name, value in adapter.tensors.items():
                self._parameters_by_name[name].copy_(torch.tensor(value))

    def read(self, groups: Iterable[str]) -> Adapter:
        """The named groups' present values."""
        spec = self.spec.subset(groups)
        tensors = {name: self._parameters_by_name[name].detach().cpu().numpy() for name in spec.tensors}
        return Adapter.from_tensors(spec, {name: value.copy() for name, value in tensors.items()})


def adapt(base: Base, config: AdapterConfig, *, classes: int, public_seed: int) -> AdaptedModel:
    """Put an adapter and a zero head on a base model.

    Args:
      base: frozen encoder; it is changed in place and belongs to the result.
      config: method, rank, alpha, target modules.
      classes: number of labels.
      public_seed: seeds A of method ``lora`` through a counter generator that needs no torch.

    Guarantees:
      - The adapted model starts as the base: B (or R) is zero.
      - The same base, config, classes and seed give the same tensors, at every site.
      - Wherever a trained layer is called, each record has a row of its own: see ``apart``.

    Raises:
      ModelError: no module of the encoder has a target's name, the rank is too large, or records are mixed.
    """
    encoder = _wrap(base, config)
    for name, layer in _adapted_layers(encoder).items():
        _initialise(name, layer, config, public_seed)
    head = nn.Linear(base.hidden_size, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = AdaptedModel(base, encoder, head, config).train()
    layers = [layer.linear for layer in model.trained_layers(("adapter",))]
    pad_id = base.tokenizer.pad_token_id or 0
    check_records_apart(encoder, layers, pad_id=pad_id, most_tokens=base.max_tokens)
    return model


def _wrap(base: Base, config: AdapterConfig) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    names = [name for name, module in base.encoder.named_modules() if isinstance(module, nn.Linear)]
    missing = [t for t in config.target_modules if not any(n == t or n.endswith("." + t) for n in names)]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ModelError(f"the base model has no linear layer named {missing[0]!r}", hint=f"known: {', '.join(known)}")
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules), bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder: PeftModel = get_peft_model(base.encoder, lora, autocast_adapter_dtype=False)
    return encoder


def _adapted_layers(encoder: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    return {n.removeprefix(prefix): m for n, m in encoder.named_modules() if isinstance(m, LoraLayer)}


def _initialise(name: str, layer: Any, config: AdapterConfig, seed: int) -> None:
    weight: torch.Tensor = layer.base_layer.weight
    if config.rank > min(weight.shape):
        raise ModelError(f"rank {config.rank} exceeds layer {name}", hint=f"choose at most {min(weight.shape)}")
    with torch.no_grad():
        if config.method is Method.CORE:
            a, b = _principal_factors(weight.numpy(), config.rank)
            layer.lora_A[_SLOT] = CoreProjection(torch.from_numpy(a))
            layer.lora_B[_SLOT].weight.copy_(torch.from_numpy(b))
            layer.lora_B[_SLOT].weight.requires_grad_(False)
        else:
            a = public_gaussian(seed, f"{name}.lora_A", (config.rank, weight.shape[1]))
            layer.lora_A[_SLOT].weight.copy_(torch.from_numpy(a / np.sqrt(np.float32(weight.shape[1]))))
            layer.lora_A[_SLOT].weight.requires_grad_(not config.freeze_a)
            layer.lora_B[_SLOT].weight.zero_()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread while this is open.

    On a busy machine threads that wait for each other at every step of a small decomposition take a hundredfold.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _principal_factors(weight: NDArray[np.floating], rank: int) -> tuple[Vector, Vector]:
    # W ~ U S V^T; A = S^(1/2) V^T, B = U S^(1/2). In float64 and with the sign of each pair fixed by its largest entry,
    # so that every site derives the same factors from the same weights, also on another number of cores
    with one_thread():
        parts = torch.linalg.svd(torch.from_numpy(weight).double(), full_matrices=False)
    u, s, vt = (part.numpy() for part in parts)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    signs = np.sign(vt[np.arange(rank), np.abs(vt).argmax(1)])
    root = np.sqrt(s)
    return (vt * (signs * root)[:, None]).astype(np.float32), (u * (signs * root)).astype(np.float32)


def _trained(layers: Mapping[str, Any], config: AdapterConfig) -> list[TrainedLayer]:
    trained: dict[str, nn.Linear] = {}
    for name, layer in layers.items():
        if config.method is Method.CORE:
            trained[f"{name}.core"] = layer.lora_A[_SLOT].core
        else:
            trained[f"{name}.lora_B"] = layer.lora_B[_SLOT]
            if not config.freeze_a:
                trained[f"{name}.lora_A"] = layer.lora_A[_SLOT]
    return [TrainedLayer(linear=linear, weight=name, bias=None) for name, linear in trained.items()]


def _frozen(layers: Mapping[str, Any], config: AdapterConfig) -> dict[str, Vector]:
    frozen: dict[str, Vector] = {}
    for name, layer in layers.items():
        if config.method is Method.CORE:
            frozen[f"{name}.lora_A"] = layer.lora_A[_SLOT].frozen_a.numpy().copy()
            frozen[f"{name}.lora_B"] = layer.lora_B[_SLOT].weight.detach().numpy().copy()
        elif config.freeze_a:
            frozen[f"{name}.lora_A"] = layer.lora_A[_SLOT].weight.detach().numpy().copy()
    return frozen


def _spec(base: Base, config: AdapterConfig, parameters: Mapping[str, nn.Parameter]) -> AdapterSpec:
    head = tuple(sorted(name for name in parameters if name.startswith("head.")))
    return AdapterSpec(
        base_fingerprint=base.fingerprint,
        method=config.method.value,
        rank=config.rank,
        alpha=config.alpha,
        target_modules=config.target_modules,
        groups={"head": head, "adapter": tuple(sorted(set(parameters) - set(head)))},
        tensors={name: tuple(parameter.shape) for name, parameter in parameters.items()},
    )
