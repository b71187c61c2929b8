"""What the model reads of many sites: token ids, or cached features of what lies below the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from fedward_client.training import LocalTrainer
from fedward_common.modeling.tasks.classification import TokenisedTexts
from fedward_simulations.cohort.records import FlatRecords
from fedward_simulations.device import onto

__all__ = ["Source"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The data of some sites that share one model.

    Args:
      trainers: one a site.
      features: of every record of each site, where they are cached.
    """

    trainers: Sequence[LocalTrainer]
    features: list[torch.Tensor] | None

    @cached_property
    def lengths(self) -> list[Ints]:
        """Tokens of every record of each site; 1 where features are cached."""
        if self.features is not None:
            return [np.ones(len(own), np.int64) for own in self.features]
        return [trainer.inputs.texts.lengths for trainer in self.trainers]

    def logits(self, flat: FlatRecords, batch: slice) -> torch.Tensor:
        """Of a batch's records: ``(n, classes)``."""
        model = self.trainers[0].model
        owners, records = flat.owners[batch], flat.records[batch]
        if self.features is None:
            inputs = self._placed(self._texts(owners, records))
        found: torch.Tensor = model(*inputs) if self.features is None else model.head(self._rows(owners, records))
        return found

    @property
    def most_tokens(self) -> int:
        """The longest text that the base reads."""
        return self.trainers[0].inputs.max_tokens

    def longest(self) -> tuple[torch.Tensor, ...]:
        """One text of that length as the model reads it, of nobody."""
        texts = self.trainers[0].inputs.texts
        blank = (np.full(self.most_tokens, texts.pad_id, np.int64),)
        kinds = (np.zeros(self.most_tokens, np.int64),) if texts.types else None
        return self._placed(TokenisedTexts(tokens=blank, pad_id=texts.pad_id, types=kinds))

    def _placed(self, texts: TokenisedTexts) -> tuple[torch.Tensor, ...]:
        made = texts.batch(np.arange(len(texts)), device=torch.device("cpu")).inputs
        return tuple(onto(values.numpy(), self.trainers[0].model.device) for values in made)

    def labels(self, flat: FlatRecords, batch: slice) -> torch.Tensor:
        """Of a batch's records: ``(n,)``."""
        return onto(self._labels[flat.places[batch]], self.trainers[0].model.device)

    @cached_property
    def _labels(self) -> Ints:
        return np.concatenate([trainer.data.records.labels for trainer in self.trainers])

    def _texts(self, owners: Ints, records: Ints) -> TokenisedTexts:
        held = [self.trainers[owner].inputs.texts for owner in owners]
        tokens = tuple(texts.tokens[record] for texts, record in zip(held, records, strict=True))
        types = tuple(texts.types[record] for texts, record in zip(held, records, strict=True) if texts.types)
        return TokenisedTexts(tokens=tokens, pad_id=held[0].pad_id, types=types or None)

    def _rows(self, owners: Ints, records: Ints) -> torch.Tensor:
        # site by site, as the flat order has them: cached features are of one length
        features = self.features or []
        cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
        own = [(int(owners[start]), torch.from_numpy(records[start:end])) for start, end in pairwise(cuts)]
        return torch.cat([features[owner][places] for owner, places in own])
