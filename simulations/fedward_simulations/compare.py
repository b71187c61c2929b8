"""What ``--compare`` adds: the same data with a private head alone, and the same run without privacy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedward_client.data import SiteData
from fedward_client.training import SiteInputs
from fedward_common.modeling.base import load_base
from fedward_simulations.demo import head_only
from fedward_simulations.engines import BY_DEFAULT, Computing
from fedward_simulations.reference import Logits, ReferenceSite, reference_run
from fedward_simulations.results.folders import write_summary
from fedward_simulations.run import Workbench, run
from fedward_simulations.watching.events import RunView

__all__ = ["reference_sites", "with_comparison", "without_privacy"]


def with_comparison(
    bench: Workbench, summary: dict[str, Any], *, out: Path, view: RunView, computing: Computing = BY_DEFAULT
) -> dict[str, Any]:
    """Run both baselines and add their accuracies to the summary, on disk too.

    'head only' is a run of its own, in ``compare/head-only``, at the same total epsilon. 'no privacy' is the flat twin
    with neither clipping nor noise; it knows no weather, so it is left out, with a note, where ``[simulation]`` is.
    """
    config = bench.prepared.bundle.config
    comparison: dict[str, float] = {}
    if any(stage.train == ("head",) for stage in config.stages) and len(config.stages) > 1:
        view.note("comparison: a private head alone, at the same total epsilon")
        own = bench.with_config(head_only(config))
        alone = run(own, out=out / "compare" / "head-only", view=view, computing=computing)
        comparison["head only"] = alone["accuracy"]
    if config.simulation is None:
        view.note("comparison: the same run without privacy")
        comparison["no privacy"] = without_privacy(bench)
    else:
        view.note("no comparison with 'no privacy': that baseline knows no [simulation], so it would be another run")
    extended = {**summary, "comparison": comparison}
    write_summary(out, extended)
    return extended


def without_privacy(bench: Workbench) -> float:
    """Accuracy on the coordinator's data of the same cohorts and stages without clipping and noise."""
    config = bench.prepared.bundle.config
    texts, truth = bench.evaluator.inputs.texts, bench.evaluator.records.labels
    accuracy = 0.0

    def measure(number: int, logits: Logits) -> None:
        nonlocal accuracy
        if number == config.total_rounds:
            accuracy = float((logits(texts.tokens, texts.types).argmax(1).numpy() == truth).mean())

    sites = reference_sites(bench.data, bench.inputs)
    reference_run(config, load_base(config.model).encoder, sites, noise_scale=None, after_round=measure)
    return accuracy


def reference_sites(data: Mapping[str, SiteData], inputs: Mapping[str, SiteInputs]) -> list[ReferenceSite]:
    """The workbench's sites as the flat twin takes them."""
    return [
        ReferenceSite(
            name=name,
            tokens=inputs[name].texts.tokens,
            types=inputs[name].texts.types,
            labels=np.asarray(held.records.labels),
            units=[held.records_of(int(unit)) for unit in held.training_units],
            nominal_units=held.nominal_units,
        )
        for name, held in data.items()
    ]
