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
from fedward_common.errors import PrivacyError
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

__all__ = [
    "LocalResult",
    "LocalTrainer",
    "LocalWork",
    "PhysicalBatch",
    "SiteInputs",
    "UnitOptimizer",
    "local_optimizer",
]

Indices = NDArray[np.int64]
_Read = Callable[[Indices], tuple[torch.Tensor, ...]]

SUM_BLOCK = 16  # rows summed in float32 before float64 takes over
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

    Raises:
      PrivacyError: gradients have not one row for each record; nothing of them is used.
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
        # Apple's GPUs have no float64
        wide = ["cpu" if p.device.type == "mps" else p.device for p in self.params]
        pairs = zip(self.params, wide, strict=True)
        self.totals = [torch.zeros(p.numel(), dtype=torch.float64, device=place) for p, place in pairs]
        self._open: list[torch.Tensor] | None = None

    def accumulate(self, batch: PhysicalBatch) -> None:
        """Reduce this batch's per-record gradients to units, clip them, and add them to the step's sum."""
        rows = [p.grad_sample.flatten(1).float() for p in self.params]
        self.zero_grad(set_to_none=True)
        if any(len(part) != len(batch.records) for part in rows):
            raise PrivacyError("gradients are not of one record each", hint="use another base model")
        if not np.all(batch.shares == 1):  # else every unit is one record, and the rows are the units
            rows = [_reduced(part, batch) for part in rows]
        if self._open is not None:  # the first unit of this batch began in the one before
            for part, begun in zip(rows, self._open, strict=True):
                part[0] += begun
            self._open = None
        if batch.open_unit == int(batch.units[-1]):
            rows, self._open = [part[:-1] for part in rows], [part[-1].clone() for part in rows]
        self._add(rows)

    def _add(self, units: list[torch.Tensor]) -> None:
        norms = torch.stack([part.norm(dim=1) for part in units]).norm(dim=0)
        factors = torch.from_numpy(self.mechanism.clip_factors(norms.cpu().numpy())).to(norms.device)
        silent = factors == 0
        for part, total in zip(units, self.totals, strict=True):
            if silent.any():  # a factor of zero does not silence NaN: the row itself must go
                part[silent] = 0.0
            total += _weighted_sum(factors.to(total.device), part.to(total.device))

    def release(self, stream: Stream) -> None:
        """Noise, divide, and hand the gradient to the wrapped optimiser; then take its step."""
        total = torch.cat(self.totals).cpu().numpy()
        noisy = torch.from_numpy(self.mechanism.release(total, stream))
        for parameter, part in zip(self.params, torch.split(noisy, [t.numel() for t in self.totals]), strict=True):
            parameter.grad = part.to(parameter.dtype).view_as(parameter).to(parameter.device)
        self.original_optimizer.step()
        for part in self.totals:
            part.zero_()


def _reduced(rows: torch.Tensor, batch: PhysicalBatch) -> torch.Tensor:
    # per-record gradients (n, d) to the (partial) mean gradient of each unit in the batch
    numbers, where = np.unique(batch.units, return_inverse=True)
    shares = torch.from_numpy(batch.shares).to(rows.device).unsqueeze(1)
    index = torch.from_numpy(where).to(rows.device)
    return torch.zeros(len(numbers), rows.shape[1], device=rows.device).index_add_(0, index, rows * shares)


def _weighted_sum(factors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    # sums of a few rows in float32, their sum in float64: the proof of the noise is about a real sum
    whole = len(rows) // SUM_BLOCK * SUM_BLOCK
    total = (factors[whole:].double() @ rows[whole:].double()) if whole < len(rows) else 0.0
    if whole:
        blocks = torch.bmm(factors[:whole].view(-1, 1, SUM_BLOCK), rows[:whole].view(-1, SUM_BLOCK, rows.shape[1]))
        total = total + blocks.sum(0, dtype=torch.float64).flatten()
    return torch.as_tensor(total)


class SiteInputs:
    """What the model reads of one site: token ids, and features while everything below the head stands still.

    Private: it lives in the trainer's memory and goes with it.
    """

    def __init__(self, base: Base, records: Records) -> None:
        """Texts are tokenised when first needed."""
        self._base, self._records = base, records
        self._texts: TokenisedTexts | None = None
        self._features: dict[str, torch.Tensor] = {}

    def forget(self) -> None:
        """Drop cached features: at the end of a run, or when the model below them changed."""
        self._features.clear()

    @property
    def texts(self) -> TokenisedTexts:
        """Token ids of every record."""
        if self._texts is None:
            self._texts = tokenise(self._base, self._records.texts)
        return self._texts

    @property
    def max_tokens(self) -> int:
        """Where the base model cuts a text."""
        return self._base.max_tokens

    def known_features(self, adapter: Adapter) -> torch.Tensor | None:
        """Features under this adapter's frozen part, if they were computed: ``(records, hidden)``."""
        return self._features.get(_frozen_key(adapter))

    def features(self, model: AdaptedModel, adapter: Adapter, progress: Progress | None) -> torch.Tensor:
        """Features under the adapter that ``model`` holds; those of the last two frozen parts are kept."""
        found = self.known_features(adapter)
        if found is None:
            found = features(model, self.texts, progress=progress)
            self._features[_frozen_key(adapter)] = found
            for oldest in list(self._features)[:-2]:
                del self._features[oldest]
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
        self._model, self.data, self._inputs, self.randomness = model, data, inputs, randomness
        self._batch_size = batch_size
        self._progress = progress

    @property
    def model(self) -> AdaptedModel:
        """The resident model."""
        return self._model

    @property
    def inputs(self) -> SiteInputs:
        """What the model reads of this site."""
        return self._inputs

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
        optimizer = UnitOptimizer(local_optimizer(parameters, training), mechanism=mechanism)
        with self._hooked(adapter, training) as (module, read, size):
            for step in range(training.local_steps):
                for batch in self._unit_batches(self.draw(round, step, mechanism), size=size):
                    losses(module(*read(batch.records)), self._labels(batch)).sum().backward()  # type: ignore[no-untyped-call]
                    optimizer.accumulate(batch)
                optimizer.release(self.randomness.stream(round=round, step=step, purpose=Purpose.NOISE))
        return self._model.read(training.groups) - adapter.subset(training.groups)

    def draw(self, round: int, step: int, mechanism: PrivateSum) -> list[Indices]:
        """The records of each unit that enters a local step: drawn, and at most so many a unit."""
        draw, choice = (
            self.randomness.stream(round=round, step=step, purpose=purpose)
            for purpose in (Purpose.SAMPLING, Purpose.RECORDS)
        )
        units = self.data.training_units
        return self._chosen(units[mechanism.draw_units(len(units), draw)], mechanism, choice)

    def evaluate(self, round: int, adapter: Adapter, metric: PrivateMetric, *, cap: PrivateSum) -> MetricSums:
        """Noisy sums over the validation units of how the received adapter does.

        Each unit contributes the mean of its records, at most as many as ``cap`` lets into a step.
        """
        self._model.load(adapter)
        chosen = self.validated(round, cap)
        means = np.zeros((len(chosen), 2))
        for batch in self._unit_batches(chosen, size=self._batch_size):
            with torch.no_grad():
                rows = scores(self._logits(adapter, batch.records), self._labels(batch))
            np.add.at(means, batch.units, rows * batch.shares[:, None])
        noise = self.randomness.stream(round=round, step=0, purpose=Purpose.METRICS)
        return metric.measure(means[:, 0], means[:, 1], noise)

    def features(self, adapter: Adapter) -> torch.Tensor:
        """Features of every record under the adapter that the model holds, computed once."""
        return self._inputs.features(self._model, adapter, self._progress)

    def validated(self, round: int, cap: PrivateSum) -> list[Indices]:
        """The records of each validation unit that count in a round's metrics."""
        choice = self.randomness.stream(round=round, step=0, purpose=Purpose.METRIC_RECORDS)
        return self._chosen(self.data.validation_units, cap, choice)

    def _chosen(self, units: Indices, mechanism: PrivateSum, choice: Stream) -> list[Indices]:
        return [self._choose(int(unit), mechanism, choice) for unit in units]

    def _unit_batches(self, chosen: list[Indices], *, size: int) -> Iterator[PhysicalBatch]:
        lengths = self._inputs.texts.lengths
        chosen = sorted(chosen, key=lambda records: int(lengths[records].max()))  # like lengths together: less padding
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
            cached = self.features(adapter)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalResult:
    """What the data work of a round gives, privatised: ``delta`` local minus global, and metrics where asked for."""

    delta: Adapter
    metrics: MetricSums | None


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalWork:
    """The data work of one round at one site, paid for and marked started: whoever computes it needs nothing else."""

    trainer: LocalTrainer
    round: int
    adapter: Adapter
    training: Training
    step: PrivateSum
    metric: PrivateMetric | None

    def done(self) -> LocalResult:
        """Compute it here and now, alone: training, then metrics of the received adapter.

        In this order features that training caches serve metrics in every round: the same bits, also after a restart.
        """
        trainer, metric = self.trainer, self.metric
        delta = trainer.train(self.round, self.adapter, self.training, self.step)
        metrics = trainer.evaluate(self.round, self.adapter, metric, cap=self.step) if metric else None
        return LocalResult(delta=delta, metrics=metrics)


def _frozen_key(adapter: Adapter) -> str:
    return hashlib.sha256(adapter.subset(("adapter",)).to_bytes()).hexdigest()


def local_optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimiser of a round's local steps, on noised gradients: post-processing."""
    if training.optimiser is LocalOptimiser.ADAM:
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.SGD(parameters, lr=training.learning_rate)
