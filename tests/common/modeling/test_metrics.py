from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fedward_common.modeling.metrics import classification_metrics

LABELS = ("lung", "skin", "bone")


def test_metrics_by_hand() -> None:
    metrics = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), labels=LABELS)
    assert metrics.accuracy == 0.75
    assert metrics.majority_accuracy == 0.75
    assert set(metrics.per_class) == {"lung", "skin"}
    assert metrics.per_class["lung"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert metrics.per_class["skin"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3})
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)


def test_a_label_that_is_predicted_but_does_not_occur_has_no_row() -> None:
    metrics = classification_metrics(np.array([2, 2]), np.array([0, 0]), labels=LABELS)
    assert set(metrics.per_class) == {"lung"}
    assert (metrics.accuracy, metrics.macro_f1, metrics.majority_accuracy) == (0.0, 0.0, 1.0)


def test_macro_f1_is_scikit_learns_where_every_label_occurs() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, 90), generator.integers(0, 3, 90)
    metrics = classification_metrics(predicted, truth, labels=LABELS)
    assert metrics.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert sum(row["support"] for row in metrics.per_class.values()) == 90
