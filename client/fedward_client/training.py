"""Local training under differential privacy: the DP-SGD loop of one round at one site.

Opacus gives per-record gradients and the optimiser's frame; the mechanism (who is drawn, clip, noise, divisor) comes
from one ``PrivateSum``, so that it cannot disagree with what the ledger records. This module sees data and a model; it
knows nothing of messages, keys or ledgers.

Source: DP-SGD arXiv:1607.00133, Algorithm 1; user-level averaging arXiv:1710.06963; Opacus arXiv:2109.12298.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from fedward_client.data import Records, SiteData
from fedward_common.adapter import Adapter
from fedward_common.config import LocalOptimiser
from fedward_common.modeling.adapters import AdaptedModel
from fedward_common.modeling.base import Base
from fedward_common.modeling.tasks.classification import (
    Progress,
    TokenisedTexts,
    features,
    losses,
    scores,
    tokenise,
)
from fedward_common.privacy.mechanism import MetricSums, PrivateMetric, PrivateSum
from fedward_common.privacy.randomness import Purpose, Randomness, Stream
from fedward_common.round import Training

__all__ = ["LocalTrainer", "PhysicalBatch", "SiteInputs", "UnitOptimizer"]

Indices = NDArray[np.int64]
_Read = Callable[[Indices], tuple[torch.Tensor, ...]]

HEAD_BATCH_NUMBERS = 4_000_000  # per-record gradients of the head in memory at once: 16 MB


@dataclass(frozen=True, kw_only=True)
class PhysicalBatch:
    """Records that go through the model together.

    ``records``: record numbers, shape ``(n,)``. ``units``: which drawn unit each belongs to, shape ``(n,)``, rising.
    ``shares``: 1 / records of that unit in this step. ``open_unit``: a unit that goes on in the next batch, or -1.
    """

    records: Indices
    units: Indices
    shares: NDArray[np.float32]
    open_unit: int


class UnitOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's private optimiser, with units in place of records and our mechanism in place of its noise.

    Guarantees:
      - Each unit's mean gradient enters the sum with joint L2 norm at most C, however its records were batched.
      - A unit whose gradient is not finite contributes zero, silently.
      - One NaN record changes nothing else: not the other units, not the noise, not the divisor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, mechanism: PrivateSum) -> None:
        """Wrap an optimiser over the trained parameters, in canonical order."""
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.mechanism = mechanism
        size = sum(p.numel() for p in self.params)
        self.total = torch.zeros(size, dtype=torch.float64, device=self.params[0].device)
        self._open: torch.Tensor | None = None

    def accumulate(self, batch: PhysicalBatch) -> None:
        """Reduce this batch's per-record gradients to units, clip them, and add them to the step's sum."""
        rows = torch.cat([p.grad_sample.flatten(1).float() for p in self.params], dim=1)
        self.zero_grad(set_to_none=True)
        numbers, where = np.unique(batch.units, return_inverse=True)
        if not np.all(batch.shares == 1):  # else every unit is one record, and the rows are the units
            shares = torch.from_numpy(batch.shares).to(rows.device).unsqueeze(1)
            index = torch.from_numpy(where).to(rows.device)
            rows = torch.zeros(len(numbers), rows.shape[1], device=rows.device).index_add_(0, index, rows * shares)
        self._add_units(rows, goes_on=batch.open_unit == int(numbers[-1]))

    def _add_units(self, units: torch.Tensor, *, goes_on: bool) -> None:
        if self._open is not None:  # the first unit of this batch began in the one before
            units[0] += self._open
            self._open = None
        if goes_on:
            units, self._open = units[:-1], units[-1].clone()
        norms = units.norm(dim=1)
        factors = torch.from_numpy(self.mechanism.clip_factors(norms.cpu().numpy())).to(units.device)
        if not torch.all(factors > 0):  # a factor of zero does not silence NaN: the row itself must go
            units = torch.where(factors.unsqueeze(1) > 0, units, 0.0)
        self.total += factors.double() @ units.double()  # float64: the proof of the noise is about a real sum

    def release(self, stream: Stream) -> None:
        """Noise, divide, and hand the gradient to the wrapped optimiser; then take its step."""
        noisy = torch.from_numpy(self.mechanism.release(self.total.cpu().numpy(), stream))
        start = 0
        for parameter in self.params:
            part = noisy[start : start + parameter.numel()]
            parameter.grad = part.to(parameter.dtype).view_as(parameter).to(parameter.device)
            start += parameter.numel()
        self.original_optimizer.step()
        self.total.zero_()


class SiteInputs:
    """What the model reads of one site: token ids, and features while everything below the head stands still.

    Private: it lives in the trainer's memory and goes with it.
    """

    def __init__(self, base: Base, records: Records) -> None:
        """Texts are tokenised when first needed."""
        self._base, self._records = base, records
        self._texts: TokenisedTexts | None = None
        self._features: tuple[str, torch.Tensor] | None = None

    def forget(self) -> None:
        """Drop cached features: at the end of a run, or when the model below them changed."""
        self._features = None

    @property
    def texts(self) -> TokenisedTexts:
        """Token ids of every record."""
        if self._texts is None:
            self._texts = tokenise(self._base, self._records.texts)
        return self._texts

    def known_features(self, adapter: Adapter) -> torch.Tensor | None:
        """Features under this adapter's frozen part, if they were computed: ``(records, hidden)``."""
        if self._features is None or self._features[0] != _frozen_key(adapter):
            return None
        return self._features[1]

    def features(self, model: AdaptedModel, adapter: Adapter, progress: Progress | None) -> torch.Tensor:
        """Features under the adapter that ``model`` holds, computed at most once for each frozen part."""
        found = self.known_features(adapter)
        if found is None:
            found = features(model, self.texts, progress=progress)
            self._features = (_frozen_key(adapter), found)
        return found


class LocalTrainer:
    """One site's data and the resident model: everything of a round that touches records.

    In a simulation many trainers share one ``model``; each loads the plan's adapter before it computes anything.
    """

    def __init__(
        self,
        *,
        model: AdaptedModel,
        data: SiteData,
        inputs: SiteInputs,
        randomness: Randomness,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        """Keep references. ``batch_size`` bounds the records in memory at once and has no effect on results."""
        self._model, self.data, self._inputs, self._randomness = model, data, inputs, randomness
        self._batch_size = batch_size
        self._progress = progress

    @property
    def spec_digest(self) -> str:
        """Digest of the adapter that this site's model has."""
        return self._model.spec.digest

    @property
    def loss_cap(self) -> float:
        """Largest loss that counts in a metric: of guessing uniformly, log(classes) nats."""
        return math.log(self._model.head.out_features)

    def train(self, round: int, adapter: Adapter, training: Training, mechanism: PrivateSum) -> Adapter:
        """Take the round's local steps and return local minus global over the trained groups.

        Guarantees:
          - Data enters the result only through ``mechanism``: drawn, clipped and noised by it.
          - An empty draw still takes a step, of noise alone.
        """
        self._model.load(adapter)
        parameters = self._model.select(training.groups)
        optimizer = UnitOptimizer(_local_optimizer(parameters, training), mechanism=mechanism)
        with self._hooked(adapter, training) as (module, read, size):
            for step in range(training.local_steps):
                draw, choice, noise = (
                    self._randomness.stream(round=round, step=step, purpose=purpose)
                    for purpose in (Purpose.SAMPLING, Purpose.RECORDS, Purpose.NOISE)
                )
                units = self.data.training_units
                drawn = units[mechanism.draw_units(len(units), draw)]
                for batch in self._unit_batches(drawn, mechanism, choice, size=size):
                    losses(module(*read(batch.records)), self._labels(batch)).sum().backward()  # type: ignore[no-untyped-call]
                    optimizer.accumulate(batch)
                optimizer.release(noise)
        return self._model.read(training.groups) - adapter.subset(training.groups)

    def evaluate(self, round: int, adapter: Adapter, metric: PrivateMetric, *, cap: PrivateSum) -> MetricSums:
        """Noisy sums over the validation units of how the received adapter does.

        Each unit contributes the mean of its records, at most as many as ``cap`` lets into a step.
        """
        self._model.load(adapter)
        choice, noise = (
            self._randomness.stream(round=round, step=0, purpose=purpose)
            for purpose in (Purpose.METRIC_RECORDS, Purpose.METRICS)
        )
        means = np.zeros((len(self.data.validation_units), 2))
        for batch in self._unit_batches(self.data.validation_units, cap, choice, size=self._batch_size):
            with torch.no_grad():
                rows = scores(self._logits(adapter, batch.records), self._labels(batch))
            np.add.at(means, batch.units, rows * batch.shares[:, None])
        return metric.measure(means[:, 0], means[:, 1], noise)

    def _unit_batches(
        self, units: Indices, mechanism: PrivateSum, choice: Stream, *, size: int
    ) -> Iterator[PhysicalBatch]:
        lengths = self._inputs.texts.lengths
        chosen = [self._choose(int(unit), mechanism, choice) for unit in units]
        chosen.sort(key=lambda records: int(lengths[records].max()))  # like lengths together: little padding
        if not chosen:
            return
        records = np.concatenate(chosen)
        sizes = np.array([len(own) for own in chosen])
        numbers = np.repeat(np.arange(len(chosen)), sizes)
        for start in range(0, len(records), size):
            end = min(start + size, len(records))
            part = numbers[start:end]
            goes_on = end < len(records) and numbers[end] == part[-1]
            yield PhysicalBatch(
                records=records[start:end],
                units=part,
                shares=(1.0 / sizes[part]).astype(np.float32),
                open_unit=int(part[-1]) if goes_on else -1,
            )

    def _choose(self, unit: int, mechanism: PrivateSum, choice: Stream) -> Indices:
        records = self.data.records_of(unit)
        return records if len(records) <= mechanism.max_records_per_unit else mechanism.choose_records(records, choice)

    @contextmanager
    def _hooked(self, adapter: Adapter, training: Training) -> Iterator[tuple[GradSampleModule, _Read, int]]:
        # the module that learns, under Opacus's hooks; how it reads records; how many of them at once
        module: nn.Module = self._model
        read: _Read = self._padded
        size = self._batch_size
        if training.groups == ("head",):
            cached = self._inputs.features(self._model, adapter, self._progress)
            module, read = self._model.head, lambda records: (cached[torch.from_numpy(records)],)
            size = max(size, HEAD_BATCH_NUMBERS // self._model.head.weight.numel())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and Opacus warn about hooks below which nothing is trained
            hooked = GradSampleModule(module, batch_first=True, loss_reduction="sum", strict=False)
            try:
                yield hooked, read, size
            finally:
                hooked.remove_hooks()

    def _padded(self, records: Indices) -> tuple[torch.Tensor, ...]:
        return self._inputs.texts.batch(records, device=self._model.device).inputs

    def _labels(self, batch: PhysicalBatch) -> torch.Tensor:
        return torch.from_numpy(self.data.records.labels[batch.records]).to(self._model.device)

    def _logits(self, adapter: Adapter, records: Indices) -> torch.Tensor:
        cached = self._inputs.known_features(adapter)
        logits: torch.Tensor = (
            self._model(*self._padded(records))
            if cached is None
            else self._model.head(cached[torch.from_numpy(records)])
        )
        return logits


def _frozen_key(adapter: Adapter) -> str:
    return hashlib.sha256(adapter.subset(("adapter",)).to_bytes()).hexdigest()


def _local_optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    if training.optimiser is LocalOptimiser.ADAM:
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.SGD(parameters, lr=training.learning_rate)
