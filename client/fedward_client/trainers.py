"""Who trains: the model that a plan names, on the data of those units that may take part.

``round.py`` asks in this order: do the tensors fit (public), who could take part (unit ids alone), and, once the round
is paid for and marked started, open the data. A simulation answers from what is in memory; ``SiteTrainers`` is a real
site's answer. This module reads data; it knows nothing of messages, budgets or what leaves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_client.data import Records, SiteData, load_records, read_unit_ids, split_validation
from fedward_client.training import LocalTrainer, SiteInputs
from fedward_common.adapter import AdapterSpec
from fedward_common.config import AdapterConfig, DataConfig, Method, ModelConfig, Pooling
from fedward_common.errors import FedwardError
from fedward_common.modeling.adapters import AdaptedModel, adapt
from fedward_common.modeling.base import Base, load_base
from fedward_common.privacy.randomness import Randomness
from fedward_common.round import RoundPlan

__all__ = ["FixedTrainer", "SiteTrainers", "Trainers", "config_of"]

Flags = npt.NDArray[np.bool_]


class Trainers(Protocol):
    """Opens models and data, in that order, and no earlier than it is asked to."""

    @property
    def nominal_units(self) -> int:
        """The round public number of units that the site declares."""
        ...

    @property
    def loss_cap(self) -> float:
        """Largest loss that counts in a metric, in nats: of guessing uniformly among the public labels."""
        ...

    @property
    def randomness(self) -> Randomness:
        """What every draw of training and metrics comes from."""
        ...

    def fits(self, spec: AdapterSpec, *, public_seed: int) -> bool:
        """Whether this site's model has exactly these tensors. Looks at public things only."""
        ...

    def units(self) -> tuple[Sequence[str] | None, int]:
        """The lasting ids of the units, or None where spending belongs to the source as a whole; and how many."""
        ...

    def open(self, plan: RoundPlan, spec: AdapterSpec, taking_part: Callable[[Sequence[str]], Flags]) -> LocalTrainer:
        """Open the data for one round, after it was paid for.

        Args:
          plan: an admitted plan whose round is marked started.
          spec: the adapter that came with it, which ``fits``.
          taking_part: which of some unit ids were charged for this run; all others stay out of training and metrics.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedTrainer:
    """One trainer that is there already, for one adapter: a virtual site's."""

    trainer: LocalTrainer

    @property
    def nominal_units(self) -> int:
        """As declared with the data."""
        return self.trainer.data.nominal_units

    @property
    def loss_cap(self) -> float:
        """Of the resident model's classes."""
        return self.trainer.loss_cap

    @property
    def randomness(self) -> Randomness:
        """The trainer's."""
        return self.trainer.randomness

    def fits(self, spec: AdapterSpec, *, public_seed: int) -> bool:
        """Whether the resident model has exactly these tensors."""
        return spec.digest == self.trainer.spec_digest

    def units(self) -> tuple[Sequence[str] | None, int]:
        """Spending belongs to the virtual site's data as a whole."""
        return None, self.trainer.data.records.unit_count

    def open(self, plan: RoundPlan, spec: AdapterSpec, taking_part: Callable[[Sequence[str]], Flags]) -> LocalTrainer:
        """The trainer."""
        return self.trainer


class SiteTrainers:
    """A real site's model and data.

    Guarantees:
      - A base model is loaded only from the site's own folder, by the fingerprint in the plan's spec.
      - ``units`` keeps the column of unit ids and no other; where there is none, the label column, to count its rows.
        It reads no other of a Parquet file. All of a CSV or JSON file passes through the parser, and a file that it
        cannot parse is refused, before anything is reserved.
      - Texts and labels are kept in ``open`` and nowhere else; ``close`` drops them.
    """

    def __init__(
        self,
        *,
        columns: DataConfig,
        labels: Sequence[str],
        nominal_units: int,
        models: Mapping[str, Path],
        pooling: Pooling,
        max_tokens: int,
        split_key: bytes,
        randomness: Randomness,
    ) -> None:
        """Keep names and numbers; nothing is read yet.

        Args:
          columns: file and columns; ``columns.unit`` is the column of unit ids, patients or records.
          labels: the public labels of the task.
          nominal_units: declared.
          models: folder of each allowed base model, by fingerprint.
          pooling: part of a model's fingerprint.
          max_tokens: longer texts are cut.
          split_key: the site's secret that splits validation units off, for the life of the data.
          randomness: of the training loop.
        """
        self._columns, self._labels, self._nominal = columns, tuple(labels), nominal_units
        self._models, self._pooling, self._max_tokens = models, pooling, max_tokens
        self._split_key, self._randomness = split_key, randomness
        self._model: tuple[tuple[str, AdapterConfig, int], Base, AdaptedModel] | None = None
        self._opened: tuple[str, LocalTrainer] | None = None
        self._units: tuple[object, tuple[str, ...] | None, int] | None = None

    @property
    def nominal_units(self) -> int:
        """As declared in the site file."""
        return self._nominal

    @property
    def loss_cap(self) -> float:
        """log(classes)."""
        return math.log(len(self._labels))

    @property
    def randomness(self) -> Randomness:
        """As given."""
        return self._randomness

    def fits(self, spec: AdapterSpec, *, public_seed: int) -> bool:
        """Whether the base model of this fingerprint, adapted as the spec says, has exactly these tensors."""
        if spec.base_fingerprint not in self._models:
            return False
        try:
            _, model = self._adapted(spec, public_seed)
        except (FedwardError, ValueError):  # names modules that the model lacks, or a rank that it cannot have
            return False
        return model.spec.digest == spec.digest

    def units(self) -> tuple[Sequence[str] | None, int]:
        """Ids and number of the units; without an id column the number of rows. Read anew when the file changed."""
        seen = _version(self._columns.train)
        if self._units is None or seen is None or self._units[0] != seen:
            self._units = (seen, *read_unit_ids(self._columns))
        return self._units[1], self._units[2]

    def open(self, plan: RoundPlan, spec: AdapterSpec, taking_part: Callable[[Sequence[str]], Flags]) -> LocalTrainer:
        """Read the data, once a run, and put it before the model."""
        base, model = self._adapted(spec, plan.public_seed)
        if self._opened is None or self._opened[0] != plan.run_id:
            self._opened = None
            records = load_records(self._columns, self._labels)
            data = self._data(records, plan, taking_part)
            inputs = SiteInputs(base, records)
            trainer = LocalTrainer(model=model, data=data, inputs=inputs, randomness=self._randomness)
            self._opened = (plan.run_id, trainer)
        return self._opened[1]

    def close(self) -> None:
        """Drop records, token ids, cached features and unit ids."""
        self._opened, self._units = None, None

    def _data(self, records: Records, plan: RoundPlan, taking_part: Callable[[Sequence[str]], Flags]) -> SiteData:
        fraction = plan.terms.metrics.validation_fraction
        # a row number would put a record on another side when rows are inserted or sorted anew
        lasting = records.unit_ids if self._columns.unit else [_content_id(records, row) for row in range(len(records))]
        return SiteData(
            records=records,
            nominal_units=self._nominal,
            validation=split_validation(lasting, key=self._split_key, fraction=fraction),
            left_out=~taking_part(records.unit_ids),
        )

    def _adapted(self, spec: AdapterSpec, public_seed: int) -> tuple[Base, AdaptedModel]:
        config = config_of(spec)
        seed = public_seed if config.method is Method.LORA else 0  # a core's A and B come from the weights alone
        key = (spec.base_fingerprint, config, seed)
        if self._model is None or self._model[0] != key:
            self._model, self._opened = None, None
            folder = self._models[spec.base_fingerprint]
            base = load_base(ModelConfig(base=str(folder), pooling=self._pooling, max_tokens=self._max_tokens))
            model = adapt(base, config, classes=len(self._labels), public_seed=seed)
            self._model = (key, base, model)
        return self._model[1], self._model[2]


def _content_id(records: Records, row: int) -> str:
    """What a record without an id is: its texts and label."""
    return json.dumps([*records.texts[row], int(records.labels[row])])


def _version(path: str) -> object:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def config_of(spec: AdapterSpec) -> AdapterConfig:
    """The adapter table that gives a spec.

    Raises:
      ValueError: no table does.
    """
    method = Method(spec.method)
    trains_a = any(name.endswith(".lora_A") for name in spec.tensors)
    return AdapterConfig(
        method=method,
        rank=spec.rank,
        alpha=spec.alpha,
        target_modules=spec.target_modules,
        freeze_a=method is Method.LORA and not trains_a,
    )
