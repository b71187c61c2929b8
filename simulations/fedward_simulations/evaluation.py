"""The coordinator's evaluator with a model: accuracy, macro F1 and loss on the coordinator's own data.

The data is ``data.test``, or what ``test_fraction`` set aside before partitioning; it is outside every guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedward_client.data import Records
from fedward_common.adapter import Adapter
from fedward_common.config import RunConfig
from fedward_common.modeling.metrics import ClassificationMetrics, classification_metrics
from fedward_common.modeling.tasks.classification import TokenisedTexts, features, losses, predict, tokenise
from fedward_simulations.prepare import Prepared

__all__ = ["TestEvaluator"]

EVERY = 6  # rounds between evaluations in a stage whose every evaluation needs a full forward pass


class TestEvaluator:
    """Measures the global adapter: each round while only the head trains, else every sixth and each stage's last."""

    __test__ = False  # not a pytest class

    def __init__(self, prepared: Prepared, test: Records) -> None:
        """Keep the data; tokenise when first needed."""
        self._prepared, self._test = prepared, test
        self._truth = torch.tensor(test.labels)
        self._texts: TokenisedTexts | None = None
        self._features: torch.Tensor | None = None
        self._due = _due_rounds(prepared.bundle.config)

    def for_config(self, config: RunConfig) -> TestEvaluator:
        """The same data and caches under another run file."""
        other = TestEvaluator(self._prepared, self._test)
        other._texts, other._features, other._due = self._texts, self._features, _due_rounds(config)
        return other

    def evaluate(self, adapter: Adapter, *, round: int) -> dict[str, float] | None:
        """Accuracy and mean loss (nats) after a round, or None where this round is not measured."""
        if round not in self._due:
            return None
        logits = self._logits(adapter, round=round)
        return {
            "accuracy": float((logits.argmax(1) == self._truth).float().mean()),
            "loss": float(losses(logits, self._truth).mean()),
        }

    def data(self) -> tuple[Sequence[NDArray[np.int64]], NDArray[np.int64]]:
        """Token ids and label numbers of the coordinator's data."""
        return self._tokens().tokens, self._test.labels

    def final(self, adapter: Adapter, *, labels: Sequence[str]) -> ClassificationMetrics:
        """All metrics of a finished adapter."""
        self._prepared.model.load(adapter)
        predicted = predict(self._prepared.model, self._tokens()).argmax(1).cpu().numpy().astype(np.int64)
        return classification_metrics(predicted, self._test.labels, labels=labels)

    def _logits(self, adapter: Adapter, *, round: int) -> torch.Tensor:
        model = self._prepared.model
        model.load(adapter)
        if not self._due[round]:
            return predict(model, self._tokens()).cpu()
        if self._features is None:
            self._features = features(model, self._tokens())
        with torch.no_grad():
            logits: torch.Tensor = model.head(self._features)
        return logits.cpu()

    def _tokens(self) -> TokenisedTexts:
        if self._texts is None:
            self._texts = tokenise(self._prepared.base, self._test.texts)
        return self._texts


def _due_rounds(config: RunConfig) -> dict[int, bool]:
    # round -> whether features of the untouched encoder serve (the adapter has not moved yet)
    due: dict[int, bool] = {}
    number, untouched = 0, True
    for stage in config.stages:
        untouched = untouched and stage.train == ("head",)
        for within in range(1, stage.rounds + 1):
            number += 1
            if untouched or within % EVERY == 0 or within == stage.rounds:
                due[number] = untouched
    return due
