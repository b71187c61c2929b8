from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.modeling.base import load_base
from fedward_common.privacy.grants import Quote
from fedward_server.checkpoint import Checkpoints
from fedward_simulations.compare import reference_sites
from fedward_simulations.reference import reference_run
from fedward_simulations.run import run
from support.federation import in_pairs, small_bench
from support.watch import Recorder

CASES: dict[str, dict[str, Any]] = {
    "core, records": {},
    "core, patients": {
        "per_unit": 4,
        "data": {"train": "memory", "unit": "patient"},
        "privacy": {"unit": "patient", "validation_fraction": 0.2, "delta": 1e-3, "max_records_per_unit": 2},
    },
    "lora, two local steps, equal weights": {
        "adapter": {"method": "lora", "rank": 2, "alpha": 4.0},
        "server": {"optimiser": "sgd", "learning_rate": 0.5, "weights": "equal"},
        "stages": [{"name": "both", "train": ["head", "adapter"], "rounds": 2, "local_steps": 2, "sampling_rate": 0.4}],
    },
    "frozen A": {"adapter": {"method": "lora", "rank": 2, "alpha": 4.0, "freeze_a": True}},
    "pairs": {"pairs": True, "data": {"train": "memory", "text": ["text", "other"]}},
    "a cohort, of which the goal is waited for": {"sites": 4, "rounds": {"cohort": 3, "goal": 2}},
    "several local steps of Adam": {
        "stages": [
            {"name": "head", "train": ["head"], "rounds": 2, "local_steps": 3, "optimiser": "adam"},
            {"name": "adapter", "train": ["adapter"], "rounds": 2, "local_steps": 2, "optimiser": "adam",
             "learning_rate": 0.01},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_flat_twin_gives_the_same_adapter(tmp_path: Path, case: str) -> None:
    changes = {"privacy": {"validation_fraction": 0.2, "delta": 1e-3}, **CASES[case]}
    changes.setdefault("stages", [
        {"name": "head", "train": ["head"], "rounds": 2},
        {"name": "adapter", "train": ["adapter"], "rounds": 2, "sampling_rate": 0.5, "noise_ratio": 0.5},
    ])  # fmt: skip
    pairs = changes.pop("pairs", False)
    bench = small_bench(tmp_path, units=20, **changes)
    bench = in_pairs(bench) if pairs else bench
    bundle = bench.prepared.bundle
    run(bench, out=tmp_path / "run", view=Recorder())
    adapter = Checkpoints(tmp_path / "run" / "checkpoints").latest(bundle.spec).state.adapter
    twin = reference_run(
        bundle.config,
        load_base(bundle.config.model).encoder,
        reference_sites(bench.data, bench.inputs),
        noise_scale=Quote.of(bundle.config.terms).calibration.noise_scale,
    )
    assert set(twin) == set(adapter.tensors)
    moved = (adapter - bundle.initial).l2_norm()
    assert moved > 0
    for name, value in twin.items():
        assert np.linalg.norm(adapter.tensors[name] - value) <= 1e-5 * moved


def test_without_noise_scale_it_neither_clips_nor_adds_noise(tmp_path: Path) -> None:
    bench = small_bench(tmp_path, units=20)
    config = bench.prepared.bundle.config
    sites = reference_sites(bench.data, bench.inputs)
    first, second = (
        reference_run(changed, load_base(config.model).encoder, sites, noise_scale=None)
        for changed in (
            config,
            config.model_copy(update={"privacy": config.privacy.model_copy(update={"clip_norm": 1e-6})}),
        )
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
