"""Bytes of a site and round, down and up, in each stage of a run, beside plain FedAvg of the same LoRA."""

from __future__ import annotations

from dataclasses import replace

from fedward_common.config import RunConfig
from fedward_server.state import State
from fedward_simulations.bench.ready import ReadySite
from fedward_simulations.bench.table import Table
from fedward_simulations.demo import demo_config
from fedward_simulations.prepare import prepare
from fedward_simulations.run import fedavg_bytes

__all__ = ["measure"]


def measure(config: RunConfig | None = None) -> Table:
    """Measure the messages of each stage's last round, which evaluates where the stage ever does.

    Args:
      config: a run file; the demo's without one.
    """
    config = config or demo_config()
    bundle = prepare(config).bundle
    bench, plain = ReadySite.build(bundle), fedavg_bytes(bundle)
    rows, last, whole = [], 0, 0
    for stage in config.stages:
        last += stage.rounds
        down, up = _exchange(bench, last - 1)
        whole += stage.rounds * (down + up)
        rows.append(_row(f"{stage.name}, {stage.rounds} rounds", down, up, plain))
    rows.append(("FedAvg of LoRA, fp32", f"{plain:,}", f"{plain:,}", "1.0"))
    return Table(
        title=f"Bytes of a site and round, run file {config.name}",
        head=("stage", "down", "up", "times less up than FedAvg"),
        rows=tuple(rows),
        note=f"Rank {config.adapter.rank}, {len(config.task.labels)} labels. The whole run: {whole:,} bytes a site, "
        f"FedAvg {2 * plain * config.total_rounds:,}.",
    )


def _row(stage: str, down: int, up: int, plain: int) -> tuple[str, ...]:
    return stage, f"{down:,}", f"{up:,}", f"{plain / up:.1f}"


def _exchange(bench: ReadySite, finished: int) -> tuple[int, int]:
    state = replace(State.initial(bench.bundle.initial), finished=finished)
    data = bench.signed(bench.plan(state), state)
    return len(data), len(bench.site.answer(data))
