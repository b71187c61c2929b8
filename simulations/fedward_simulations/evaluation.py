"""The coordinator's evaluator with a model: accuracy, macro F1 and loss on the coordinator's own data.

The data is ``data.test``, or what ``test_fraction`` set aside before partitioning; it is outside every guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedward_client.data import Records
from fedward_client.training import SiteInputs
from fedward_common.adapter import Adapter
from fedward_common.config import RunConfig
from fedward_common.modeling.adapters import AdaptedModel
from fedward_common.modeling.metrics import ClassificationMetrics, classification_metrics
from fedward_common.modeling.tasks.classification import losses, predict
from fedward_server.loop import stage_of
from fedward_simulations.profiling import span

__all__ = ["TestEvaluator"]

EVERY = 6  # rounds between evaluations in a stage whose every evaluation needs a full forward pass


@dataclass(frozen=True, kw_only=True, eq=False)
class TestEvaluator:
    """Measures the global adapter: each round while only the head trains, else every sixth and each stage's last.

    ``inputs`` keeps token ids and features, as a site's does.
    """

    __test__ = False  # not a pytest class

    config: RunConfig
    model: AdaptedModel
    records: Records
    inputs: SiteInputs

    def evaluate(self, adapter: Adapter, *, round: int) -> dict[str, float] | None:
        """Accuracy and mean loss (nats) after a round, or None where this round is not measured."""
        index, within = stage_of(self.config, round)
        stage = self.config.stages[index]
        if stage.train != ("head",) and within % EVERY and within < stage.rounds:
            return None
        with span("coordinator: evaluation"):
            self.model.load(adapter)
            logits = self._quick_logits(adapter) if stage.train == ("head",) else predict(self.model, self.inputs.texts)
            truth = torch.tensor(self.records.labels, device=logits.device)
            return {
                "accuracy": float((logits.argmax(1) == truth).float().mean()),
                "loss": float(losses(logits, truth).mean()),
            }

    def final(self, adapter: Adapter) -> ClassificationMetrics:
        """All metrics of a finished adapter."""
        self.model.load(adapter)
        predicted = predict(self.model, self.inputs.texts).argmax(1).cpu().numpy().astype(np.int64)
        return classification_metrics(predicted, self.records.labels, labels=self.config.task.labels)

    def _quick_logits(self, adapter: Adapter) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model.head(self.inputs.features(self.model, adapter, None))
        return logits
