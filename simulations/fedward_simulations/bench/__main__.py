"""``python -m fedward_simulations.bench [WHAT | data FILES]``: tables in Markdown; ``--help`` lists WHAT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from fedward_common.errors import FedwardError
from fedward_common.report import complain
from fedward_simulations.bench.table import Table, machine

WITHOUT_FILES = (
    "step",
    "overhead",
    "bytes",
    "startup",
    "noise",
    "books",
    "transfer",
    "federation",
    "ray",
    "cohort",
    "rate",
    "memory",
)


def _measure(what: str) -> Callable[[], Table]:
    # imported when it is its turn: --help needs no torch
    return lambda: cast(Table, import_module(f"fedward_simulations.bench.{what}").measure())


def _tables(arguments: Sequence[str]) -> list[Callable[[], Table]]:
    parser = argparse.ArgumentParser(prog="python -m fedward_simulations.bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=[*WITHOUT_FILES, "data"], help="default: all but data")
    parser.add_argument("files", nargs="*", metavar="FILE", help="for data: data files or run files")
    chosen = parser.parse_args(arguments)
    if (chosen.what == "data") != bool(chosen.files):
        parser.error("data takes files, the others take none")
    if chosen.what == "data":
        from fedward_simulations.bench.data import measure

        return [lambda: measure(chosen.files)]
    return [_measure(what) for what in ([chosen.what] if chosen.what else WITHOUT_FILES)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the machine, then each table as soon as it is known; the exit code."""
    chosen = _tables(sys.argv[1:] if arguments is None else arguments)
    _print(f"# fedward benchmarks\n\n{machine()}\n")
    try:
        for measure in chosen:
            _print(f"{measure().markdown()}\n")
    except FedwardError as error:
        complain(str(error), error.hint)
        return 2
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
