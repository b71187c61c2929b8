"""``python -m fedward_simulations.bench [WHAT | data FILES]``: tables in Markdown; ``--help`` lists WHAT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from fedward_common.errors import FedwardError
from fedward_simulations.bench.table import Table, machine


def _step() -> Table:
    from fedward_simulations.bench.step import measure

    return measure()


def _overhead() -> Table:
    from fedward_simulations.bench.overhead import measure

    return measure()


def _bytes() -> Table:
    from fedward_simulations.bench.bytes import measure

    return measure()


def _startup() -> Table:
    from fedward_simulations.bench.startup import measure

    return measure()


def _noise() -> Table:
    from fedward_simulations.bench.noise import measure

    return measure()


def _books() -> Table:
    from fedward_simulations.bench.books import measure

    return measure()


def _transfer() -> Table:
    from fedward_simulations.bench.transfer import measure

    return measure()


def _federation() -> Table:
    from fedward_simulations.bench.federation import measure

    return measure()


def _cohort() -> Table:
    from fedward_simulations.bench.cohort import measure

    return measure()


def _ray() -> Table:
    from fedward_simulations.bench.ray import measure

    return measure()


def _memory() -> Table:
    from fedward_simulations.bench.memory import measure

    return measure()


WITHOUT_FILES: dict[str, Callable[[], Table]] = {
    "step": _step,
    "overhead": _overhead,
    "bytes": _bytes,
    "startup": _startup,
    "noise": _noise,
    "books": _books,
    "transfer": _transfer,
    "federation": _federation,
    "ray": _ray,
    "cohort": _cohort,
    "memory": _memory,
}


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
    return [WITHOUT_FILES[chosen.what]] if chosen.what else list(WITHOUT_FILES.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the machine, then each table as soon as it is known; the exit code."""
    chosen = _tables(sys.argv[1:] if arguments is None else arguments)
    _print(f"# fedward benchmarks\n\n{machine()}\n")
    try:
        for measure in chosen:
            _print(f"{measure().markdown()}\n")
    except FedwardError as error:
        sys.stderr.write(f"fedward: error: {error}\nhint: {error.hint}\n")
        return 2
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
