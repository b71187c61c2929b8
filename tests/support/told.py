"""What a run tells a view, made up: records, a summary, a whole run in a few calls.

Example:
    view = LineView(stream=stream)
    tell(view, rounds=3)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedward_common.config import DataConfig, RunConfig, StageConfig, TaskConfig
from fedward_common.round import RoundRecord
from fedward_simulations.watching.events import RunView

SITES = {"site-1": 100, "site-2": 80}
STAGES = (
    StageConfig(name="head", train=("head",), rounds=4),
    StageConfig(name="adapter", train=("adapter",), rounds=2, sampling_rate=0.1),
)
SUMMARY: dict[str, Any] = {
    "name": "wards",
    "accuracy": 0.7025,
    "macro_f1": 0.61,
    "majority_accuracy": 0.25,
    "epsilon": 7.99,
    "delta": 1e-5,
    "unit": "record",
    "rounds": 6,
    "sites": 2,
    "bytes_up": 314_497,
    "bytes_down": 563_508,
    "fedavg_bytes_per_site_round": 622_164,
    "seconds": 72.4,
    "adapter_digest": "d7b83cdeff3ccb01" * 4,
    "seed": 0,
    "epsilon_by_site": {"site-1": 7.99, "site-2": 7.98},
    "out": "runs/wards",
}


def config(**changes: Any) -> RunConfig:
    """A run of six rounds in two stages."""
    fields: dict[str, Any] = {
        "name": "wards",
        "task": TaskConfig(labels=("no", "yes")),
        "data": DataConfig(train="notes.csv"),
        "stages": STAGES,
    }
    return RunConfig(**(fields | changes))


def record(round: int, **changes: Any) -> RoundRecord:
    """A finished round whose accuracy is its number in hundredths."""
    fields: dict[str, Any] = {
        "round": round,
        "stage": "head" if round <= 4 else "adapter",
        "attempt": 1,
        "cohort": 2,
        "replied": 2,
        "refused": {},
        "dropped": {},
        "bytes_down": 46_900,
        "bytes_up": 32_800,
        "seconds": 1.5,
        "update_norm": 0.8,
        "adapter_digest": "0" * 64,
        "evaluation": {"accuracy": round / 100, "loss": 3.0 - round / 10},
        "epsilon": 7.99,
    }
    return RoundRecord(**(fields | changes))


def tell(view: RunView, *, rounds: int, out: Path = Path("runs/wards")) -> None:
    """The first rounds of a run, without its end."""
    view.preparing("reading data")
    view.started(config=config(), sites=SITES, records=SITES, out=out)
    for number in range(1, rounds + 1):
        done = record(number)
        view.round_started(round=number, stage=done.stage, attempt=1, cohort=2)
        for site, units in SITES.items():
            if number == 1:
                view.caching(site, units // 2, units)
                view.caching(site, units, units)
            view.answered(site, "update")
        view.round_finished(done)
