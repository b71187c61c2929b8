"""The data work of many sites at once: groups of it, their metrics, their local steps.

What may differ between the sites of a group is their data, their randomness and their public numbers; adapter, training
and clip norm are one. A group that runs out of memory is tried again in smaller pieces; whatever else goes wrong for a
whole group, its sites are computed one by one, so that one site's fault stays its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedward_client.training import HEAD_BATCH_NUMBERS, LocalResult, LocalTrainer, LocalWork, local_optimizer
from fedward_common.adapter import Adapter
from fedward_common.modeling.tasks.classification import losses, scores
from fedward_common.privacy.mechanism import MetricSums
from fedward_common.privacy.randomness import Purpose
from fedward_simulations.cohort.memory import MOST_SITES, Saved, batch_tokens, is_out_of_memory
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.cohort.source import Source
from fedward_simulations.cohort.stacking import NotStackable, Stack
from fedward_simulations.cohort.sums import ClippedSums
from fedward_simulations.engines import Precision
from fedward_simulations.profiling import span

__all__ = ["Cohort", "Outcome"]

Outcome: TypeAlias = LocalResult | Exception
Ints = NDArray[np.int64]
Drawn: TypeAlias = list[Ints]

FEWEST_TOKENS = 64  # of a physical batch; below that the cohort is cut instead
MOST_RECORDS = 4096  # of a physical batch


@dataclass(kw_only=True, eq=False)
class Cohort:
    """Computes the work of many sites together.

    Args:
      note: hears one line when work is computed in smaller pieces, or one by one.
      precision: of the frozen base.
      sites: computed together, at most; fewer from where memory ran out.
      tokens: of a physical batch, padding included; 0 measures once what fits. The same number gives the same bits.
      share: of the device's memory that this process may count on.

    Guarantees:
      - Each result is what ``work.done()`` gives, within rounding; the same works give bit-identical results.
      - One site's fault is one site's outcome.
      - A unit whose gradient is not finite contributes zero, and changes no other site.
    """

    note: Callable[[str], None]
    precision: Precision = Precision.FLOAT32
    sites: int = MOST_SITES
    tokens: int = 0
    share: float = 1.0
    _said: set[str] = field(default_factory=set)

    def compute(self, works: Sequence[LocalWork]) -> list[Outcome]:
        """The outcome of each work, in order."""
        outcomes: dict[int, Outcome] = {}
        groups: dict[Hashable, list[int]] = {}
        for number, work in enumerate(works):
            groups.setdefault(_kind(work), []).append(number)
        for kind, numbers in groups.items():
            chosen = [works[number] for number in numbers]
            found = [_alone(work) for work in chosen] if kind is None else self._parts(chosen)
            outcomes.update(zip(numbers, found, strict=True))
        return [outcomes[number] for number in range(len(works))]

    def _parts(self, works: list[LocalWork]) -> list[Outcome]:
        found: list[Outcome] = []
        while len(found) < len(works):
            part = works[len(found) :][: self.sites]
            outcomes = self._group(part)
            if outcomes is None and not self._smaller(part):
                outcomes = [_alone(work) for work in part]
            found += outcomes or []
        return found

    def _group(self, works: list[LocalWork]) -> list[Outcome] | None:
        # None: memory ran out. What the failed attempt held is free again when the next one begins
        try:
            return _Together(works=works, cohort=self).outcomes()
        except NotStackable as error:
            self._say(f"{error}: sites are computed one by one")
        except Exception as error:
            if is_out_of_memory(error):
                return None
            self._say(f"the cohort failed ({type(error).__name__}): its sites are computed one by one")
        return [_alone(work) for work in works]

    def _smaller(self, works: list[LocalWork]) -> bool:
        # features that are cached have one token a record: there only fewer sites help
        if self.tokens > FEWEST_TOKENS and works[0].training.groups != ("head",):
            self.tokens //= 2
            self._say(f"out of memory: physical batches of {self.tokens} tokens from here on")
            return True
        if len(works) == 1:
            return False
        self.sites = len(works) // 2
        self._say(f"out of memory: {self.sites} clients at a time from here on")
        return True

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.note(line)


def _kind(work: LocalWork) -> Hashable:
    if not isinstance(work.trainer, LocalTrainer):  # a stand-in that answers by itself
        return None
    return id(work.trainer.model), work.adapter.digest, work.training, work.step.clip_norm


def _alone(work: LocalWork) -> Outcome:
    try:
        return work.done()
    except Exception as error:
        return error


def _source(works: Sequence[LocalWork], features: list[torch.Tensor] | None) -> Source:
    return Source(trainers=[work.trainer for work in works], features=features)


@dataclass(kw_only=True, eq=False)
class _Together:
    """One group's round."""

    works: list[LocalWork]
    cohort: Cohort
    faults: dict[int, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What all of them share."""
        first = self.works[0]
        self.model, self.adapter, self.training, self.mechanism = (
            first.trainer.model,
            first.adapter,
            first.training,
            first.step,
        )

    def outcomes(self) -> list[Outcome]:
        """Metrics of the received adapter first, then training."""
        self.model.load(self.adapter)
        source = self._training_source()  # features before metrics, which are then of the same bits in every round
        with span("cohort: metrics of the received adapter"):
            metrics = self._metrics()
        deltas = self._deltas(source)
        return [
            self.faults.get(number) or LocalResult(delta=deltas[number], metrics=metrics[number])
            for number in range(len(self.works))
        ]

    # ---- metrics ------------------------------------------------------------------------
    def _metrics(self) -> list[MetricSums | None]:
        asked = [number for number, work in enumerate(self.works) if work.metric is not None]
        means = self._means([self.works[number] for number in asked]) if asked else []
        found: list[MetricSums | None] = [None] * len(self.works)
        for number, own in zip(asked, means, strict=True):
            with self._faults_of(number):
                work = self.works[number]
                noise = work.trainer.randomness.stream(round=work.round, step=0, purpose=Purpose.METRICS)
                found[number] = work.metric.measure(own[:, 0], own[:, 1], noise) if work.metric else None
        return found

    def _means(self, works: list[LocalWork]) -> list[NDArray[np.float64]]:
        known = [work.trainer.inputs.known_features(self.adapter) for work in works]
        cached = [found for found in known if found is not None]
        source = _source(works, cached if len(cached) == len(works) else None)
        chosen = [work.trainer.validated(work.round, work.step) for work in works]
        flat = FlatRecords.of(chosen, lengths=source.lengths)
        means = np.zeros((sum(len(own) for own in chosen), 2))
        for batch in flat.cuts(tokens=self._tokens(source, flat), records=MOST_RECORDS):
            with torch.no_grad(), self._autocast():
                rows = scores(source.logits(flat, batch), source.labels(flat, batch))
            np.add.at(means, flat.units[batch], rows * flat.shares[batch, None])
        return np.split(means, np.cumsum([len(own) for own in chosen])[:-1])

    # ---- training -----------------------------------------------------------------------
    def _deltas(self, source: Source) -> list[Adapter]:
        stack = Stack(model=self.model, groups=self.training.groups)
        start = torch.from_numpy(self.adapter.subset(self.training.groups).vector.copy()).to(self.model.device)
        weights = torch.nn.Parameter(start.expand(len(self.works), -1).clone())
        optimizer = local_optimizer([weights], self.training)
        with stack.in_place():
            for step in range(self.training.local_steps):
                totals = self._totals(stack, source, step)
                with span("cohort: noise"):
                    weights.grad = self._released(totals, step).to(weights.device)
                with span("cohort: optimiser step"):
                    optimizer.step()
                    stack.stacked = weights.detach()
        moved = (weights.detach() - start).cpu().numpy()
        return [Adapter(spec=stack.spec, vector=row.copy()) for row in moved]

    def _training_source(self) -> Source:
        if self.training.groups != ("head",):
            return _source(self.works, None)
        return _source(self.works, [work.trainer.features(self.adapter) for work in self.works])

    def _totals(self, stack: Stack, source: Source, step: int) -> torch.Tensor:
        with span("cohort: draw of units and records"):
            drawn = [self._draw(number, step) for number in range(len(self.works))]
            flat = FlatRecords.of(drawn, lengths=source.lengths)
        sums = ClippedSums(
            sites=len(self.works),
            slices=list(stack.spec.slices.values()),
            mechanism=self.mechanism,
            device=self.model.device,
        )
        for batch in flat.cuts(tokens=self._tokens(source, flat, stack), records=self._rows(stack)):
            with span("cohort: forward"):
                loss = self._pass(stack, source, flat, batch)
            with span("cohort: backward and gradients of records"):
                loss.backward()  # type: ignore[no-untyped-call]
            with span("cohort: clipping and sums"):
                sums.add(stack.gradients(), flat, batch)
        return sums.totals

    def _pass(self, stack: Stack, source: Source, flat: FlatRecords, batch: slice) -> torch.Tensor:
        stack.expect(flat.owners[batch])
        with self._autocast():
            return losses(source.logits(flat, batch), source.labels(flat, batch)).sum()

    def _draw(self, number: int, step: int) -> Drawn:
        with self._faults_of(number):
            work = self.works[number]
            return work.trainer.draw(work.round, step, work.step)
        return []

    def _released(self, totals: torch.Tensor, step: int) -> torch.Tensor:
        wide = totals.cpu().numpy()
        noisy = torch.zeros(wide.shape)
        for number, work in enumerate(self.works):  # each from its own stream
            with self._faults_of(number):
                noise = work.trainer.randomness.stream(round=work.round, step=step, purpose=Purpose.NOISE)
                noisy[number] = torch.from_numpy(work.step.release(wide[number], noise))
        return noisy

    # ---- sizes --------------------------------------------------------------------------
    def _rows(self, stack: Stack) -> int:
        return max(1, min(MOST_RECORDS, 4 * HEAD_BATCH_NUMBERS // stack.spec.size))

    def _tokens(self, source: Source, flat: FlatRecords, stack: Stack | None = None) -> int:
        if source.features is not None:
            return MOST_RECORDS
        if self.cohort.tokens == 0 and len(flat) and stack is not None:
            self.cohort.tokens = self._measured(stack, source, flat)
        return self.cohort.tokens or 64 * int(flat.widths.max(initial=1))

    def _measured(self, stack: Stack, source: Source, flat: FlatRecords) -> int:
        # a dry pass of as long a text as the base reads: what it keeps for the way back, and its gradients. Neither the
        # round nor its draw has a part in it
        saved, width = Saved(), source.most_tokens
        stack.expect(flat.owners[:1])
        with saved.counting(self.model), self._autocast():
            self.model(*source.longest())
        bytes_per_token = (saved.bytes + 8 * stack.spec.size) / width
        return max(FEWEST_TOKENS, batch_tokens(bytes_per_token, self.model.device, share=self.cohort.share))

    @contextlib.contextmanager
    def _faults_of(self, number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.faults.setdefault(number, error)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.cohort.precision is Precision.BFLOAT16 and self.model.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()
