"""How many records go through the model together, and how many sites are computed together: from measured memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

__all__ = ["Saved", "available_bytes", "batch_tokens", "is_out_of_memory", "sites_that_fit"]

SHARE = 0.5  # of the memory that is there
CPU_TOKENS, CPU_SITES = 2048, 64  # more gains nothing on a CPU: the matrices are large enough, and the caches are not
MOST_SITES = 1024
SITE_BYTES = 48  # a trained number of a site in the cohort: float64 sum, weight, gradient, optimiser, plan and reply
UNKNOWN = 2**31  # bytes, where the machine does not say


@dataclass(kw_only=True, eq=False)
class Saved:
    """Bytes that a forward pass keeps for its backward pass, each storage once."""

    seen: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self.seen.values())

    @contextmanager
    def counting(self, own: torch.nn.Module) -> Iterator[None]:
        """Count while this is open, all but the model's ``own`` tensors."""
        known = {value.untyped_storage().data_ptr() for value in (*own.parameters(), *own.buffers())}

        def pack(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in known:
                self.seen[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            yield


def available_bytes(device: torch.device) -> int:
    """Memory that is free for computing on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def batch_tokens(bytes_per_token: float, device: torch.device) -> int:
    """Tokens of a physical batch, padding included."""
    fits = max(1, int(SHARE * available_bytes(device) / max(bytes_per_token, 1.0)))
    return min(fits, CPU_TOKENS) if device.type == "cpu" else fits


def sites_that_fit(numbers: int, device: torch.device) -> int:
    """Sites that are computed together, with so many trained numbers each."""
    fits = int(SHARE * available_bytes(device)) // (SITE_BYTES * max(numbers, 1))
    return max(1, min(fits, CPU_SITES if device.type == "cpu" else MOST_SITES))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, however torch says so on this device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("enough memory", "out of memory"))
