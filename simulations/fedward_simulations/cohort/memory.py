"""How many records go through the model together, and how many sites are computed together: from measured memory.

The device's whole memory counts, not what is free at the moment: the same machine gives the same numbers, so the same
bits. Both numbers are powers of two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

__all__ = ["MOST_SITES", "Saved", "batch_tokens", "is_out_of_memory", "sites_that_fit", "whole_bytes"]

SHARE = 0.5  # of the memory that is there
CGROUP = Path("/sys/fs/cgroup/memory.max")
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


def whole_bytes(device: torch.device) -> int:
    """A device's memory; of the CPU's, what this process's control group may take."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        whole = UNKNOWN
    try:
        return min(whole, int(CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or "max"
        return whole


def batch_tokens(bytes_per_token: float, device: torch.device, *, share: float = 1.0) -> int:
    """Tokens of a physical batch, padding included; ``share`` of the memory is this process's."""
    fits = _power_of_two(share * SHARE * whole_bytes(device) / max(bytes_per_token, 1.0))
    return min(fits, CPU_TOKENS) if device.type == "cpu" else fits


def sites_that_fit(numbers: int, device: torch.device, *, share: float = 1.0) -> int:
    """Sites that are computed together, with so many trained numbers each."""
    fits = _power_of_two(share * SHARE * whole_bytes(device) / (SITE_BYTES * max(numbers, 1)))
    return min(fits, CPU_SITES if device.type == "cpu" else MOST_SITES)


def _power_of_two(value: float) -> int:
    return 1 << max(int(value).bit_length() - 1, 0)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, however torch says so on this device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("enough memory", "out of memory"))
