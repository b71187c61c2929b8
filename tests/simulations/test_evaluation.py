from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedward_common.adapter import Adapter
from support.federation import small_bench


def test_head_rounds_are_measured_from_cached_features_and_agree_with_a_full_pass(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    spec = bench.prepared.bundle.spec
    adapter = Adapter(spec=spec, vector=np.random.default_rng(0).normal(0, 0.2, spec.size).astype(np.float32))
    quick = bench.evaluator.evaluate(adapter, round=1)  # a head round
    full = bench.evaluator.evaluate(adapter, round=4)  # the last adapter round
    assert quick is not None
    assert full is not None
    assert quick["accuracy"] == full["accuracy"]
    assert quick["loss"] == pytest.approx(full["loss"], rel=1e-5)
    assert bench.evaluator.final(adapter).accuracy == pytest.approx(full["accuracy"])


def test_in_adapter_stages_only_every_sixth_and_the_last_round_are_measured(tmp_path: Path) -> None:
    stages = [{"name": "adapter", "train": ["adapter"], "rounds": 14, "sampling_rate": 0.5}]
    bench = small_bench(tmp_path, stages=stages)
    initial = bench.prepared.bundle.initial
    measured = [round for round in range(1, 15) if bench.evaluator.evaluate(initial, round=round)]
    assert measured == [6, 12, 14]
