"""Gradients of records over one tensor, written out or as the two vectors they are products of; and sums of them.

A linear layer that reads one row of a record has the gradient ``left right^T`` for that record. Its norm is the product
of two norms, and the weighted sum of many is one matrix product, so nobody has to write ``out x in`` numbers a record.
This module knows nothing of models, units or clipping.

Example:
    >>> outer = Outer(left=torch.tensor([[1.0, 2.0]]), right=torch.tensor([[3.0, 4.0]]))
    >>> written_out(outer).tolist(), round(norms_of(outer).item(), 6)
    ([[3.0, 4.0, 6.0, 8.0]], 11.18034)
    >>> groups = Groups(np.array([0, 1, 0]), device=torch.device("cpu"))
    >>> groups.sums(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 1.0, 0.5])).tolist()
    [[2.5], [2.0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedward_simulations.device import onto

__all__ = ["Gradients", "Groups", "Outer", "norms_of", "numbers_within", "rows_at_once", "silenced", "written_out"]

Ints = NDArray[np.int64]

FEW_ROWS = 64  # of a group in one matrix product, where groups are so uneven that more would pad the others


@dataclass(frozen=True, kw_only=True, eq=False)
class Outer:
    """``left right^T`` for each record: ``(n, out)`` and ``(n, in)``, float32; maybe the model's own: read only."""

    left: torch.Tensor
    right: torch.Tensor


Gradients: TypeAlias = torch.Tensor | Outer  # (n, numbers) where written out


def written_out(gradients: Gradients) -> torch.Tensor:
    """``(n, numbers)``."""
    if isinstance(gradients, torch.Tensor):
        return gradients
    return torch.bmm(gradients.left.unsqueeze(2), gradients.right.unsqueeze(1)).flatten(1)


def silenced(gradients: Gradients, records: torch.Tensor) -> Gradients:
    """Zeros for the records that ``(n,)`` booleans name; what is written out is changed in place."""
    if isinstance(gradients, torch.Tensor):
        return gradients.masked_fill_(records.unsqueeze(1), 0.0)
    both = (part.masked_fill(records.unsqueeze(1), 0.0) for part in (gradients.left, gradients.right))
    return Outer(left=next(both), right=next(both))  # with NaN in one of them 0 x NaN would be NaN


def norms_of(gradients: Gradients) -> torch.Tensor:
    """The L2 norm of each record's gradient: ``(n,)``; of products in float64 where the device has it."""
    norms: torch.Tensor
    if isinstance(gradients, torch.Tensor):
        norms = torch.linalg.vector_norm(gradients, dim=1)
        return norms
    # one factor's squares may leave float32's range where the products of both do not; Apple's GPUs have nothing wider
    wide = torch.float32 if gradients.left.device.type == "mps" else torch.float64
    left, right = (torch.linalg.vector_norm(part, dim=1, dtype=wide) for part in (gradients.left, gradients.right))
    norms = left * right
    return norms


class Groups:
    """Records in groups, each of which is summed.

    Guarantees:
      - Sums are formed in one fixed order on every device: equal inputs give equal bits.
    """

    def __init__(self, groups: Ints, *, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """``groups`` numbers each record's group from 0, ``(n,)``; sums are of ``dtype``, on ``device``."""
        self._groups, self._device, self._dtype = groups, device, dtype
        self._count = int(groups.max()) + 1

    def sums(self, gradients: Gradients, weights: torch.Tensor) -> torch.Tensor:
        """The sum of each group's records times their ``(n,)`` weights: ``(groups, numbers)``."""
        if isinstance(gradients, Outer) and self._spread_is_smaller(gradients):
            left = self.spread(gradients.left) * self.spread(weights.unsqueeze(1))
            return torch.bmm(left.transpose(1, 2), self.spread(gradients.right)).flatten(1)
        rows = self._wide(written_out(gradients))
        if self._device.type == "cuda":  # its index_add_ adds in any order
            return self.matrix(weights) @ rows
        found = rows.new_zeros(self._count, rows.shape[1])
        return found.index_add_(0, self._where, rows * self._wide(weights.unsqueeze(1)))

    def matrix(self, weights: torch.Tensor) -> torch.Tensor:
        """``(groups, n)`` whose product with records gives their weighted sums."""
        wide = self._wide(weights)
        matrix = wide.new_zeros(self._count, len(wide))
        matrix[self._where, torch.arange(len(wide), device=self._device)] = wide
        return matrix

    def _spread_is_smaller(self, outer: Outer) -> bool:
        # one large group gives all others as many slots
        rows, columns = outer.left.shape[1], outer.right.shape[1]
        return self._count * self._most * (rows + columns) <= len(self._groups) * rows * columns

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """``(n, numbers)`` as ``(groups, most records, numbers)``: zeros where a group has fewer."""
        wide = self._wide(rows)
        return wide.new_zeros(self._count, self._most, wide.shape[1]).index_put_(self._places, wide)

    def gathered(self, spread: torch.Tensor) -> torch.Tensor:
        """``spread`` back: ``(n, numbers)``."""
        return spread[self._places]

    def _wide(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device).to(self._dtype)  # in this order: Apple's GPUs have no float64

    @cached_property
    def _within(self) -> Ints:
        return numbers_within(self._groups)

    @cached_property
    def _most(self) -> int:
        return int(self._within.max()) + 1

    @cached_property
    def _where(self) -> torch.Tensor:
        return onto(self._groups, self._device)

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._where, onto(self._within, self._device)


def rows_at_once(groups: Ints) -> int:
    """How many records of a group go into one matrix product: all, unless that would more than double them."""
    _, counts = np.unique(groups, return_counts=True)
    most = int(counts.max(initial=1))
    return most if most * len(counts) <= 2 * len(groups) else FEW_ROWS


def numbers_within(groups: Ints) -> Ints:
    """The number of each record among those of its group."""
    order = np.argsort(groups, kind="stable")
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    within = np.empty(len(groups), np.int64)
    within[order] = np.arange(len(groups)) - np.repeat(starts, counts)
    return within
