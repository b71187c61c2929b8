"""Exact metrics over the coordinator's own evaluation data; never over a site's.

Example:
    >>> metrics = classification_metrics(np.array([0, 1, 1]), np.array([0, 1, 0]), labels=("no", "yes"))
    >>> round(metrics.accuracy, 3), round(metrics.majority_accuracy, 3)
    (0.667, 0.667)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassificationMetrics", "classification_metrics"]


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """Shares in [0, 1]. ``per_class`` holds precision, recall, f1 and support for each label in the data."""

    accuracy: float
    macro_f1: float
    majority_accuracy: float
    per_class: Mapping[str, Mapping[str, float]]


def classification_metrics(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], *, labels: Sequence[str]
) -> ClassificationMetrics:
    """Accuracy, macro F1 over the labels that occur, and what always guessing the commonest label would reach.

    Args:
      predicted: label numbers, shape ``(n,)``, n >= 1.
      truth: label numbers, shape ``(n,)``.
      labels: the task's labels, in order.
    """
    from sklearn.metrics import precision_recall_fscore_support

    present = np.unique(truth)
    columns = precision_recall_fscore_support(truth, predicted, labels=present, zero_division=0)
    per_class = {
        labels[int(label)]: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in zip(present, *columns, strict=True)
    }
    return ClassificationMetrics(
        accuracy=float(np.mean(predicted == truth)),
        macro_f1=float(np.mean([row["f1"] for row in per_class.values()])),
        majority_accuracy=float(np.bincount(truth).max() / len(truth)),
        per_class=per_class,
    )
