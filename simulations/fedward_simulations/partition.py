"""One file becomes many virtual sites: a part held out for testing, the rest spread by flwr-datasets.

Whole units move, never single records, so that no unit lies at two sites; only a natural partition may find a unit at
several, as in life. This module knows nothing of models, rounds or privacy. The same seed gives the same sites.

Example:
    >>> records = Records(texts=(("a",),) * 6, labels=[0] * 6, units=[0, 0, 1, 2, 3, 3],
    ...                   unit_ids=("p0", "p1", "p2", "p3"), sites=("east",) * 4 + ("west",) * 2)
    >>> natural = PartitionConfig(method=PartitionMethod.NATURAL, minimum_units=1)
    >>> {site: indices.tolist() for site, indices in partition(records, natural, seed=0).items()}
    {'east': [0, 1, 2, 3], 'west': [4, 5]}
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_client.data import Records
from fedward_common.config import PartitionConfig, PartitionMethod
from fedward_common.errors import DataError

__all__ = ["holdout", "partition"]

Ints = npt.NDArray[np.int64]

# flwr-datasets gives up after 11 draws of one generator; so many generators are tried before we do
GENERATORS = 20
HOLDOUT, SHUFFLE, DIRICHLET = 1, 2, 3


def holdout(records: Records, *, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Set units aside for testing, before any site exists.

    Args:
      records: all records.
      fraction: share of the units, rounded to whole units; above 0 it is at least one unit.
      seed: decides which.

    Returns:
      Positions of the records for training and for testing, each ascending.

    Guarantees:
      - No unit has records on both sides.
      - At least one unit is left for training.

    Raises:
      DataError: too few units to give both sides one.
    """
    count = max(1, round(fraction * records.unit_count)) if fraction else 0
    if count and count >= records.unit_count:
        hint = "lower data.test_fraction or name a file with data.test"
        raise DataError("data.test_fraction leaves no unit for training", hint=hint)
    held = np.random.default_rng([seed, HOLDOUT]).permutation(records.unit_count)[:count]
    test = np.isin(records.units, held)
    return np.flatnonzero(~test), np.flatnonzero(test)


def partition(records: Records, config: PartitionConfig, *, seed: int) -> dict[str, Ints]:
    """Spread records over virtual sites.

    Args:
      records: what is left after ``holdout``.
      config: method, number of sites, label skew and the least number of units at a site.
      seed: decides the draw; a natural partition does not use it.

    Returns:
      Site name (``site-01``, or the value of the site column) to positions of its records; both ascending.

    Guarantees:
      - Every record lies at exactly one site.
      - No unit lies at two sites, except under the natural method, where it becomes a unit at each.
      - Every site has at least ``minimum_units`` units.

    Raises:
      DataError: a site would have fewer units than ``minimum_units``, or there is no site column to follow.
    """
    sites = METHODS[config.method](records, config, seed)
    if any(len(np.unique(records.units[indices])) < config.minimum_units for indices in sites.values()):
        raise _too_few(config)
    return sites


def _iid(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import IidPartitioner

    _check_room(records, config)
    shuffled = np.random.default_rng([seed, SHUFFLE]).permutation(records.unit_count)
    parts = _parts(IidPartitioner(num_partitions=config.sites), {"row": shuffled})
    return _name(records, parts)


def _dirichlet(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import DirichletPartitioner

    _check_room(records, config)
    table = {"row": np.arange(records.unit_count), "label": _unit_labels(records)}
    for generator in np.random.SeedSequence([seed, DIRICHLET]).generate_state(GENERATORS):
        partitioner = DirichletPartitioner(
            num_partitions=config.sites,
            partition_by="label",
            alpha=config.alpha,
            min_partition_size=config.minimum_units,
            self_balancing=False,
            seed=int(generator),
        )
        with contextlib.suppress(ValueError):  # its 11 draws all left some site short
            return _name(records, _parts(partitioner, table))
    raise _too_few(config)


def _natural(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if records.sites is None:
        hint = "name the column in data.site, or choose 'dirichlet' or 'iid'"
        raise DataError("partition.method is 'natural' but the records have no site", hint=hint)
    names, numbers = np.unique(np.array(records.sites, dtype=object), return_inverse=True)
    parts = _parts(NaturalIdPartitioner(partition_by="site"), {"row": np.arange(len(records)), "site": numbers})
    return {str(name): rows for name, rows in zip(names, parts, strict=True)}


METHODS: dict[PartitionMethod, Callable[[Records, PartitionConfig, int], dict[str, Ints]]] = {
    PartitionMethod.DIRICHLET: _dirichlet,
    PartitionMethod.IID: _iid,
    PartitionMethod.NATURAL: _natural,
}


def _parts(partitioner: Any, table: dict[str, Ints]) -> list[Ints]:
    """Let a partitioner divide a table of numbers; the ``row`` column of each part comes back, ascending."""
    import datasets

    with _quiet():
        partitioner.dataset = datasets.Dataset.from_dict(table)
        parts = [partitioner.load_partition(number)["row"][:] for number in range(partitioner.num_partitions)]
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def _name(records: Records, parts: list[Ints]) -> dict[str, Ints]:
    width = max(2, len(str(len(parts))))
    return {
        f"site-{number:0{width}}": np.flatnonzero(np.isin(records.units, units))
        for number, units in enumerate(parts, start=1)
    }


def _unit_labels(records: Records) -> Ints:
    """The most frequent label of each unit; of several equally frequent, the first of the task."""
    pairs, counts = np.unique(np.stack([records.units, records.labels]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    _, first = np.unique(pairs[0][order], return_index=True)
    labels: Ints = pairs[1][order][first]
    return labels


def _check_room(records: Records, config: PartitionConfig) -> None:
    if records.unit_count < config.sites * config.minimum_units:
        raise _too_few(config)


def _too_few(config: PartitionConfig) -> DataError:
    if config.method is PartitionMethod.NATURAL:
        what = f"a site has fewer units than partition.minimum_units = {config.minimum_units}"
        return DataError(what, hint="lower partition.minimum_units, or join small sites in a coarser data.site column")
    what = f"{config.sites} sites with partition.minimum_units = {config.minimum_units} cannot be drawn from this data"
    skew = ", or raise partition.alpha" if config.method is PartitionMethod.DIRICHLET else ""
    return DataError(what, hint=f"lower partition.sites or partition.minimum_units{skew}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The partitioners warn at every new draw and show a bar that no setting turns off."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
