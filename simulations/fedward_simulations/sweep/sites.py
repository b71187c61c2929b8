"""What a finished adapter is worth at each virtual site: exact figures on the site's validation units.

A simulator's privilege, asked for by ``per_site = true``: at a real site such figures would leave as noisy sums or not
at all. No guarantee covers them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedward_client.training import SiteInputs
from fedward_server.checkpoint import Checkpoints
from fedward_simulations.run import Workbench

__all__ = ["site_scores"]


def site_scores(bench: Workbench, out: Path) -> list[dict[str, Any]]:
    """Accuracy and macro F1 at each site that has validation records.

    Args:
      bench: of the run.
      out: its finished directory.

    Guarantees:
      - No record that a site trained on is scored.
      - Labels are those of the data, also at a poisoned site.
    """
    adapter = Checkpoints(out / "checkpoints").latest(bench.prepared.bundle.spec).state.adapter
    rows = []
    for name, held in bench.data.items():
        units = held.validation_units
        if not len(units):
            continue
        # from the source: a poisoned site's own have other labels than the data
        records = bench.source.sites[name].select(np.concatenate([held.records_of(int(unit)) for unit in units]))
        evaluator = replace(bench.evaluator, records=records, inputs=SiteInputs(bench.prepared.base, records))
        metrics = evaluator.final(adapter)
        rows.append({"site": name, "accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "records": len(records)})
    return rows
