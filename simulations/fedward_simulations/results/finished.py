"""A finished run, loaded back: predict and evaluate with its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedward_client.data import Records
from fedward_common.adapter import Adapter
from fedward_common.config import DataConfig
from fedward_common.errors import DataError, OutputError
from fedward_server.bundle import Bundle
from fedward_server.checkpoint import Checkpoints
from fedward_simulations.results.folders import read_summary

__all__ = ["FinishedRun"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedRun:
    """Bundle and last adapter of a run directory; the model is loaded when first needed."""

    bundle: Bundle
    adapter: Adapter

    @classmethod
    def open(cls, directory: Path) -> FinishedRun:
        """Read a run directory.

        Raises:
          OutputError: no finished run there, or its adapter is not the one that the summary names.
        """
        summary = read_summary(directory)
        bundle = Bundle.load(directory / "bundle")
        adapter = Checkpoints(directory / "checkpoints").latest(bundle.spec).state.adapter
        if adapter.digest != summary.get("adapter_digest"):
            raise OutputError(f"the adapter in {directory} is not the one of its summary", hint="run it again")
        return cls(bundle=bundle, adapter=adapter)

    @property
    def labels(self) -> tuple[str, ...]:
        """The task's labels, in order."""
        return self.bundle.config.task.labels

    def data_columns(self) -> DataConfig:
        """The run's text and label columns, without its site and unit columns, which an evaluation does not need."""
        return self.bundle.config.data.model_copy(update={"site": None, "unit": None})

    def evaluate(self, records: Records) -> dict[str, Any]:
        """Accuracy, macro_f1, majority_accuracy and per-class figures as one JSON-able mapping."""
        from dataclasses import asdict

        from fedward_common.modeling.metrics import classification_metrics

        predicted = self._probabilities(records.texts).argmax(1)
        return {
            **asdict(classification_metrics(predicted, records.labels, labels=self.labels)),
            "records": len(records),
        }

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """For each text its likeliest label and that label's probability.

        Raises:
          DataError: the run was trained on pairs of texts.
        """
        if len(self.bundle.config.data.text) != 1:
            raise DataError("this run classifies pairs of texts", hint="use `fedward-sim eval` with a file of pairs")
        probabilities = self._probabilities([(text,) for text in texts])
        best = probabilities.argmax(1)
        return [
            {"text": text, "label": self.labels[label], "probability": float(row[label])}
            for text, label, row in zip(texts, best, probabilities, strict=True)
        ]

    def logits(self, texts: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
        """Logits of each text or pair: ``(n, classes)``."""
        from fedward_common.modeling.tasks.classification import predict, tokenise
        from fedward_simulations.prepare import prepare

        prepared = prepare(self.bundle.config, run_id=self.bundle.run_id)
        prepared.model.load(self.adapter)
        return predict(prepared.model, tokenise(prepared.base, texts)).double().cpu().numpy()

    def _probabilities(self, texts: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
        logits = self.logits(texts)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))
