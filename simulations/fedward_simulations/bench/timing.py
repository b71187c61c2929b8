"""How long work takes: CPU time of this process, or the time until an accelerator is done. Works are timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

__all__ = ["CPU", "Work", "in_turn", "seconds"]

Work: TypeAlias = Callable[[], object]

CPU = torch.device("cpu")


def seconds(work: Work, device: torch.device = CPU) -> float:
    """CPU seconds of this process; with an NVIDIA GPU, seconds by the clock until it has finished."""
    if device.type != "cuda":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_turn(works: Sequence[Work], repeats: int, device: torch.device = CPU) -> list[tuple[float, ...]]:
    """Seconds of each work, so many times, after one time that is not counted. None always finds the caches warm."""
    took = []
    for number in range(repeats + 1):
        order = range(len(works))[::-1] if number % 2 else range(len(works))
        found = {index: seconds(works[index], device) for index in order}
        took.append(tuple(found[index] for index in range(len(works))))
    return took[1:]
