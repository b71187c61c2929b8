"""The trained layers of the resident model, for records of many sites at once: a weight for each site.

While a :class:`Stack` is in place, each trained linear layer reads the weight of the site that a record belongs to, and
keeps the gradient of each record as the backward pass comes by. Nothing else of the model changes. It knows nothing of
units, clipping or noise.

Per-record gradients are float32 also where the model computes in bfloat16. Where a layer reads one row a record, as a
head does, they stay the two factors that they are the product of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedward_common.adapter import AdapterSpec
from fedward_common.errors import FedwardError
from fedward_common.modeling.adapters import AdaptedModel, TrainedLayer
from fedward_simulations.cohort.gradients import (
    Gradients,
    Groups,
    Outer,
    numbers_within,
    rows_at_once,
    written_out,
)
from fedward_simulations.device import onto

__all__ = ["NotStackable", "Stack"]

Ints = NDArray[np.int64]


class NotStackable(FedwardError):
    """The base model hands a trained layer something else than a row of tokens for each record."""


class _Owners:
    """Whose each record of a batch is: numbers of sites."""

    def __init__(self, owners: Ints, device: torch.device) -> None:
        """``(n,)`` of them."""
        self.sites = onto(owners, device)
        self._owners, self._device = owners, device

    def applied(self, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Of ``(sites, out, in)`` its own site's, on the one row of each record: ``(n, in)`` to ``(n, out)``."""
        groups, sites = self._blocks
        return groups.gathered(torch.bmm(groups.spread(rows), weight[sites].transpose(1, 2).float())).to(rows.dtype)

    @cached_property
    def _blocks(self) -> tuple[Groups, torch.Tensor]:
        # some rows of one site each, so that its weight is read once for all of them
        numbered = numbers_within(self._owners) // rows_at_once(self._owners)
        pairs, where = np.unique(np.stack([self._owners, numbered]), axis=1, return_inverse=True)
        return Groups(where.reshape(-1), device=self._device), onto(pairs[0].copy(), self._device)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """One layer's tensors: one for all sites, or stacked along a first axis that ``owners`` points into."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    owners: _Owners | None

    def applied(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for ``(n, tokens, in)``."""
        if self.owners is None:
            return functional.linear(x, self.weight, self.bias)
        if x.shape[1] == 1:
            product = self.owners.applied(self.weight, x.squeeze(1)).unsqueeze(1)
        else:
            product = torch.bmm(x, self.weight[self.owners.sites].transpose(1, 2).to(x.dtype))
        return product if self.bias is None else product + self.bias[self.owners.sites].unsqueeze(1).to(x.dtype)

    def applied_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the layer's input."""
        weight = self.weight.to(gradient.dtype)
        return gradient @ weight if self.owners is None else torch.bmm(gradient, weight[self.owners.sites])


class _RecordLinear(torch.autograd.Function):
    """A linear layer whose backward pass hands over each record's gradient of weight and bias, and not their sum."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, weights: _Weights, keep: Callable[..., None]
    ) -> torch.Tensor:
        """Apply the layer to ``(n, tokens, in)``; ``anchor`` is there to require a gradient."""
        ctx.save_for_backward(x)
        ctx.weights, ctx.keep = weights, keep
        return weights.applied(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Keep the records' gradients; pass on that of the input."""
        (x,) = ctx.saved_tensors
        ctx.keep(x, gradient)
        return (ctx.weights.applied_back(gradient) if ctx.needs_input_grad[0] else None), None, None, None


@dataclass(kw_only=True, eq=False)
class Stack:
    """The trained tensors of K sites, and the per-record gradients of the batch that passed last.

    Args:
      model: the resident model, which holds the tensors that all sites start from.
      groups: what is trained.

    ``stacked`` is None while all sites' tensors are still equal, and the model's own serve them all; later it holds
    ``(sites, numbers)`` in canonical order.
    """

    model: AdaptedModel
    groups: tuple[str, ...]
    stacked: torch.Tensor | None = None
    _parts: dict[str, Gradients] = field(default_factory=dict)
    _owners: _Owners | None = None
    _records: int = 0

    def __post_init__(self) -> None:
        """Find the layers, and make their tensors the trained ones."""
        self.spec: AdapterSpec = self.model.spec.subset(self.groups)
        self.layers: Sequence[TrainedLayer] = self.model.trained_layers(self.groups)
        self.model.select(self.groups)
        self._anchor = torch.zeros((), device=self.model.device, requires_grad=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lead what passes the model's trained layers through this stack."""
        try:
            for layer in self.layers:
                vars(layer.linear)["forward"] = partial(self._forward, layer)
            yield
        finally:
            for layer in self.layers:
                vars(layer.linear).pop("forward", None)

    def expect(self, owners: Ints) -> None:
        """Say whose the records of the next batch are: ``(n,)`` numbers of sites."""
        self._owners, self._records = _Owners(owners, self.model.device), len(owners)
        self._parts.clear()

    def gradients(self) -> list[Gradients]:
        """The last batch's gradients, once: for each tensor in canonical order, float32."""
        return [self._taken(name, part.stop - part.start) for name, part in self.spec.slices.items()]

    def _taken(self, name: str, size: int) -> Gradients:
        found = self._parts.pop(name, None)  # a tensor that the loss does not depend on has none
        return torch.zeros(self._records, size, device=self.model.device) if found is None else found

    def _forward(self, layer: TrainedLayer, x: torch.Tensor) -> torch.Tensor:
        if x.ndim not in (2, 3) or x.shape[0] != self._records:
            raise NotStackable(
                "the base model mixes the records of a batch before a trained layer", hint="use --engine sequential"
            )
        rows = x if x.ndim == 3 else x.unsqueeze(1)
        out: torch.Tensor = _RecordLinear.apply(rows, self._anchor, self._weights(layer), partial(self._keep, layer))  # type: ignore[no-untyped-call]
        return out if x.ndim == 3 else out.squeeze(1)

    def _weights(self, layer: TrainedLayer) -> _Weights:
        if self.stacked is None:
            return _Weights(weight=layer.linear.weight.detach(), bias=self._own_bias(layer), owners=None)
        bias = None if layer.bias is None else self._of_all(layer.bias)
        return _Weights(weight=self._of_all(layer.weight), bias=bias, owners=self._owners)

    @staticmethod
    def _own_bias(layer: TrainedLayer) -> torch.Tensor | None:
        return None if layer.bias is None else layer.linear.bias.detach()

    def _of_all(self, name: str) -> torch.Tensor:
        stacked: Any = self.stacked
        view: torch.Tensor = stacked[:, self.spec.slices[name]].unflatten(1, self.spec.tensors[name])
        return view

    def _keep(self, layer: TrainedLayer, x: torch.Tensor, gradient: torch.Tensor) -> None:
        wide, read = gradient.detach().float(), x.detach().float()
        if x.shape[1] == 1:
            left = wide.squeeze(1)
            self._add(layer.weight, Outer(left=left, right=read.squeeze(1)))
            biases: Gradients = Outer(left=left, right=left.new_ones(len(left), 1))
        else:
            self._add(layer.weight, torch.bmm(wide.transpose(1, 2), read).flatten(1))
            biases = wide.sum(1)
        if layer.bias is not None:
            self._add(layer.bias, biases)

    def _add(self, name: str, gradients: Gradients) -> None:
        found = self._parts.get(name)  # some models pass through one layer several times
        self._parts[name] = gradients if found is None else written_out(found) + written_out(gradients)
