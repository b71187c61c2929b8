"""From per-record gradients of many sites to one clipped sum for each: units, norms, factors, float64 totals.

The clip factors are the mechanism's own. This module knows nothing of models, and adds no noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedward_client.training import SUM_BLOCK
from fedward_common.privacy.mechanism import MARGIN, PrivateSum
from fedward_simulations.cohort.gradients import (
    Gradients,
    Groups,
    Outer,
    norms_of,
    numbers_within,
    rows_at_once,
    silenced,
)
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.device import onto

__all__ = ["ClippedSums", "clip_factors"]

Ints = NDArray[np.int64]


def clip_factors(norms: torch.Tensor, mechanism: PrivateSum) -> torch.Tensor:
    """``mechanism.clip_factors`` where the norms are: on an accelerator without waiting for it.

    Guarantees:
      - The factors are bit by bit the mechanism's.
    """
    if norms.device.type != "cuda":  # MPS has no float64
        return torch.from_numpy(mechanism.clip_factors(norms.cpu().numpy())).to(norms.device)
    return _factors_there(norms, mechanism)


def _factors_there(norms: torch.Tensor, mechanism: PrivateSum) -> torch.Tensor:
    wide, clip_norm = norms.double(), mechanism.clip_norm
    finite = torch.isfinite(wide)
    scaled = clip_norm / (torch.where(finite, wide, 0.0) * MARGIN).clamp(min=clip_norm)
    usable = finite & (scaled >= torch.finfo(torch.float32).tiny)
    return torch.where(usable, scaled, 0.0).float()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Units:
    """One row a unit for each tensor; ``broken`` says which units have a record that is not finite."""

    parts: list[torch.Tensor]
    broken: torch.Tensor
    owners: Ints

    def sliced(self, part: slice) -> _Units:
        return _Units(parts=[p[part] for p in self.parts], broken=self.broken[part], owners=self.owners[part])

    def plus(self, begun: _Units | None) -> _Units:
        """With the first unit's part from the batch before added."""
        if begun is None:
            return self
        for part, before in zip(self.parts, begun.parts, strict=True):
            part[:1] += before
        self.broken[:1] |= begun.broken
        return self


class ClippedSums:
    """One step's sum of clipped units for each of K sites: ``totals`` is ``(sites, numbers)`` in float64.

    Guarantees:
      - Each unit's mean gradient enters its own site's sum with joint L2 norm at most C, however records were batched.
      - A unit whose gradient is not finite contributes zero, and changes nothing else: no other unit, no other site.
      - Gradients are summed in float32 by at most 16 of a site, then in float64; products of vectors in float64 alone.
      - The same batches give bit-identical totals.
    """

    def __init__(self, *, sites: int, slices: Sequence[slice], mechanism: PrivateSum, device: torch.device) -> None:
        """Start at zero. ``slices`` says where each tensor lies in the flat vector."""
        self._slices, self._mechanism, self._device = list(slices), mechanism, device
        wide = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self.totals = torch.zeros(sites, self._slices[-1].stop, dtype=torch.float64, device=wide)
        self._open: _Units | None = None

    def add(self, gradients: Sequence[Gradients], flat: FlatRecords, batch: slice) -> None:
        """Take in a batch's per-record gradients, for each tensor; they may be changed."""
        owners = flat.owners[batch]
        if self._open is None and bool(np.all(flat.shares[batch] == 1)):  # every unit is one record
            return self._clip_and_add(gradients, owners)
        rows = self._units(gradients, owners, flat.units[batch], flat.shares[batch]).plus(self._open)
        self._open = None
        if flat.goes_on(batch):
            rows, self._open = rows.sliced(slice(-1)), rows.sliced(slice(-1, None))
        return self._clip_and_add(rows.parts, rows.owners, rows.broken)

    def _units(self, gradients: Sequence[Gradients], owners: Ints, units: Ints, shares: NDArray[np.float32]) -> _Units:
        broken = ~torch.isfinite(_norms(gradients))
        gradients = self._silenced(gradients, broken)  # in a sum with others 0 x NaN is NaN
        _, first, where = np.unique(units, return_index=True, return_inverse=True)
        groups = Groups(np.argsort(np.argsort(first))[where], device=self._device)  # in the order of the batch
        weights = onto(shares, self._device)
        return _Units(
            parts=[groups.sums(part, weights) for part in gradients],
            broken=groups.sums(broken.float().unsqueeze(1), torch.ones_like(weights)).squeeze(1) > 0,
            owners=owners[np.sort(first)],
        )

    def _clip_and_add(self, parts: Sequence[Gradients], owners: Ints, broken: torch.Tensor | None = None) -> None:
        factors = clip_factors(_norms(parts), self._mechanism)
        if broken is not None:
            factors = factors.masked_fill(broken, 0.0)
        placed = list(zip(self._silenced(parts, factors == 0), self._slices, strict=True))
        self._add_rows([(part, at) for part, at in placed if isinstance(part, torch.Tensor)], factors, owners)
        self._add_outer([(part, at) for part, at in placed if isinstance(part, Outer)], factors, owners)

    def _add_rows(self, parts: list[tuple[torch.Tensor, slice]], factors: torch.Tensor, owners: Ints) -> None:
        for chosen in _blocks(owners, SUM_BLOCK) if parts else ():
            places = onto(chosen, self._device)
            sites, where = np.unique(owners[chosen], return_inverse=True)
            weights = Groups(where, device=self._device).matrix(factors[places])
            every = len(chosen) == len(owners)
            for part, at in parts:
                self._add_to(sites, at, weights @ (part if every else part[places]))

    def _add_outer(self, parts: list[tuple[Outer, slice]], factors: torch.Tensor, owners: Ints) -> None:
        for chosen in _blocks(owners, rows_at_once(owners)) if parts else ():
            sites, where = np.unique(owners[chosen], return_inverse=True)
            rows = onto(chosen, self._device)
            groups = Groups(where, device=self.totals.device, dtype=torch.float64)
            for part, at in parts:
                own = Outer(left=part.left[rows], right=part.right[rows])
                self._add_to(sites, at, groups.sums(own, factors[rows]))

    def _add_to(self, sites: Ints, at: slice, summed: torch.Tensor) -> None:
        own, wide = self.totals[:, at], summed.to(self.totals.device)
        if sites[-1] - sites[0] == len(sites) - 1:  # neighbours: one pass, without the detour by an index
            own[int(sites[0]) : int(sites[-1]) + 1] += wide
        else:
            own.index_add_(0, onto(sites, own.device), wide.double())

    def _silenced(self, parts: Sequence[Gradients], records: torch.Tensor) -> Sequence[Gradients]:
        if self._device.type == "cuda" or bool(records.any()):  # on CUDA asking would wait for the device
            return [silenced(part, records) for part in parts]
        return parts


def _norms(parts: Sequence[Gradients]) -> torch.Tensor:
    found = [norms_of(part) for part in parts]
    wide = torch.float64 if any(norms.dtype is torch.float64 for norms in found) else torch.float32
    joint: torch.Tensor = torch.linalg.vector_norm(torch.stack([norms.to(wide) for norms in found]), dim=0)
    return joint


def _blocks(owners: Ints, most: int) -> Iterator[Ints]:
    # rows in sets that hold at most so many of each site
    within = numbers_within(owners)
    for block in range(int(within.max(initial=-1)) // most + 1):
        yield np.flatnonzero(within // most == block)
