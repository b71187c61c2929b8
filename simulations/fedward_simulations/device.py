"""Which processor a run computes on, and what memory it takes. Light until a device is asked for: torch then.

Example:
    >>> chosen("cpu")
    device(type='cpu')
    >>> 0 < held_bytes()["host"] <= peak_bytes()["host"]
    True
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedward_common.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["check_name", "chosen", "held_bytes", "onto", "peak_bytes"]

NAMES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
PAGE, KIB = resource.getpagesize(), 1024


def check_name(name: str) -> str:
    """Return the name if devices are called so.

    Raises:
      InputError: they are not.
    """
    if not NAMES.fullmatch(name):
        raise InputError(f"no device is called {name!r}", hint="auto, cpu, cuda, cuda:N or mps")
    return name


def chosen(name: str, *, turn: int = 0) -> torch.device:
    """The device of that name; ``auto`` is an NVIDIA GPU where there is one, else the CPU.

    Args:
      name: auto, cpu, cuda, cuda:N or mps.
      turn: number of this process among those of one job: with ``auto`` they take the GPUs in turn.

    Raises:
      InputError: it is not there.
    """
    import torch

    check_name(name)
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", turn % count) if count else torch.device("cpu")
    there = {"cpu", *(["mps"] if torch.backends.mps.is_available() else [])}
    there |= {f"cuda:{number}" for number in range(count)}
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        raise InputError(f"there is no device {name} here", hint=f"there is {', '.join(sorted(there))}; or auto")
    return torch.device(wanted)


def onto(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device; the CPU does not wait until it is there."""
    import torch

    here = torch.from_numpy(values)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def held_bytes() -> dict[str, int]:
    """Memory that this process holds now: ``host``, and ``device``: what tensors take on NVIDIA GPUs.

    Where the system does not say, ``host`` is the most that it ever held.
    """
    return {"host": _resident(), "device": _on_gpus("memory_allocated")}


def peak_bytes() -> dict[str, int]:
    """The most that this process held at once since its beginning: ``host``, and ``device`` (0 without a GPU)."""
    return {"host": _most_resident(), "device": _on_gpus("max_memory_allocated")}


def _resident() -> int:
    try:
        return PAGE * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return _most_resident()


def _most_resident() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(KIB * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        most = resource.getrusage(
            resource.RUSAGE_SELF
        ).ru_maxrss  # elsewhere; on Linux a child begins with its parent's
        return most if sys.platform == "darwin" else KIB * most


def _on_gpus(what: str) -> int:
    if "torch" not in sys.modules:
        return 0
    cuda: Any = sys.modules["torch"].cuda
    return sum(getattr(cuda, what)(number) for number in range(cuda.device_count())) if cuda.is_initialized() else 0
