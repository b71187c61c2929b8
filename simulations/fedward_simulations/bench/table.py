"""One table of a benchmark as Markdown, and a line that says on what machine it was made.

Example:
    >>> print(Table(title="Bytes", head=("what", "bytes"), rows=(("plan", "46,959"),), note="Per site.").markdown())
    ## Bytes
    <BLANKLINE>
    | what | bytes |
    |---|---:|
    | plan | 46,959 |
    <BLANKLINE>
    Per site.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Table", "machine", "middle"]

PACKAGES = ("fedward", "torch", "opacus", "transformers", "peft", "flwr", "numpy")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column names a row, the others hold its figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str

    def markdown(self) -> str:
        """As Markdown, with a heading."""
        lines = [_row(self.head), "|---|" + "---:|" * (len(self.head) - 1), *(_row(row) for row in self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, "", self.note])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def middle(values: Sequence[float], *, digits: int = 2) -> str:
    """The median, and the range that it was taken from.

    Example:
        >>> middle([3.0, 1.0, 2.0])
        '2.00 (1.00 to 3.00)'
    """
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine() -> str:
    """Date, CPU, load and versions, on three lines."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    known = [f"{name} {_version(name)}" for name in PACKAGES]
    return "\n".join(
        [
            f"{when}, load average {load} over {os.cpu_count()} cores  ",
            f"{_cpu()}, {platform.system()} {platform.release()}  ",
            f"Python {platform.python_version()}, {', '.join(known)}",
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
