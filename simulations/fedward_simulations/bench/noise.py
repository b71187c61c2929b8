"""How long the noise of a large update takes: secure, on the grid, from the key to the finished values. One core."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fedward_common.privacy.noise import add_noise
from fedward_common.privacy.randomness import Purpose, SecureRandom, Stream
from fedward_simulations.bench.table import Table, middle

__all__ = ["measure"]

AIM_MS = 200.0


def measure(*, times: int = 20, size: int = 1_000_000) -> Table:
    """Time each part ``times`` times, after one that is not counted.

    Args:
      times: how often.
      size: of the vector.
    """
    total = np.random.default_rng(0).normal(size=size)
    parts: tuple[tuple[str, Callable[[Stream], object]], ...] = (
        ("keystream", lambda stream: stream.uint64(size)),
        ("Gaussian numbers, keystream included", lambda stream: stream.gaussian(size)),
        (
            "finished values: key, keystream, Gaussian, grid, sum",
            lambda stream: add_noise(total, sensitivity=1.0, noise_multiplier=1.0, stream=stream),
        ),
    )
    return Table(
        title=f"Noise, {size:,} numbers",
        head=("part", "ms, median (range)", "CPU ms, median (range)"),
        rows=tuple(_row(what, [_once(work) for _ in range(times + 1)][1:]) for what, work in parts),
        note=f"{times} times each, one thread, a fresh key each time; aim for finished values: at most {AIM_MS:g} ms.",
    )


def _once(work: Callable[[Stream], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work(SecureRandom().stream(round=0, step=0, purpose=Purpose.NOISE))
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def _row(what: str, took: list[tuple[float, float]]) -> tuple[str, ...]:
    return (what, *(middle(column, digits=1) for column in map(list, zip(*took, strict=True))))
