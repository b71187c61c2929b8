"""One file becomes many virtual sites: a part held out for testing, the rest spread by flwr-datasets.

Whole units move, never single records, so that no unit lies at two sites; ``partition.units = "split"`` asks for the
contrary, and ``units_at_several`` says how many units it met. This module knows nothing of models, rounds or privacy.
The same seed gives the same sites, up to 10,000 of them in seconds.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_client.data import Records
from fedward_common.config import PartitionConfig, PartitionMethod, Placement
from fedward_common.errors import DataError

__all__ = ["Ints", "holdout", "moved_units", "partition", "units_at_several"]

NATURAL_HINT = "lower partition.minimum_units, or join small sites in a coarser data.site column"
SPLIT_HINT = ", or leave units at several sites: partition.units = 'split'"

Ints = npt.NDArray[np.int64]

# flwr-datasets gives up after 11 draws of one generator; so many generators are tried before we do
GENERATORS = 20
# beyond, a Dirichlet draw that leaves no site short is too rare to wait for, and short sites are filled up instead
MOST_DRAWN = 200
HOLDOUT, SHUFFLE, DIRICHLET, PATHOLOGICAL, QUANTITY = 1, 2, 3, 4, 5


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
      config: method, number of sites, skew, what moves, and the least number of units at a site.
      seed: decides the draw; a natural partition does not use it.

    Returns:
      Site name (``site-01``, or the value of the site column) to positions of its records; both ascending.

    Guarantees:
      - Every record lies at exactly one site.
      - No unit lies at two sites, unless ``units`` is ``split``; a natural partition brings it to its main site.
      - Every site has at least ``minimum_units`` units.

    Raises:
      DataError: a site would have fewer units than ``minimum_units``, some label or site could get nothing, or there
        is no site column to follow.
    """
    split = config.units is Placement.SPLIT
    sites = METHODS[config.method](_loose(records) if split else records, config, seed)
    if any(_short(records.units[indices], config.minimum_units) for indices in sites.values()):
        raise _too_few(config)
    return sites


def units_at_several(records: Records, sites: Mapping[str, Ints]) -> int:
    """How many units have records at more than one site: each site protects its part of such a unit separately."""
    held = np.concatenate([np.unique(records.units[indices]) for indices in sites.values()])
    return int((np.bincount(held, minlength=1) > 1).sum())


def moved_units(records: Records) -> int:
    """How many units have records under several values of the site column: a natural partition moves those whole."""
    if records.sites is None:
        return 0
    _, numbers = _numbered(records.sites)
    return int((np.bincount(_pairs(records.units, numbers)[0]) > 1).sum())


def _loose(records: Records) -> Records:
    """The same records, each a unit of its own."""
    count = len(records)
    return replace(records, units=np.arange(count), unit_ids=tuple(map(str, range(count))))


def _iid(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import IidPartitioner

    _check_room(records, config)
    shuffled = np.random.default_rng([seed, SHUFFLE]).permutation(records.unit_count)
    return _name(records, _parts(IidPartitioner(num_partitions=config.sites), {"row": shuffled}))


def _quantity(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import SizePartitioner

    _check_room(records, config)
    generator = np.random.default_rng([seed, QUANTITY])
    shuffled = generator.permutation(records.unit_count)
    weights = np.exp(config.sigma * generator.standard_normal(config.sites))
    # everyone has the minimum; what is left is shared in proportion, so that a small share never ends a run
    left = records.unit_count - config.sites * config.minimum_units
    edges = np.floor(left * np.cumsum(weights) / weights.sum() + 1e-9).astype(np.int64)
    edges[-1] = left
    sizes = config.minimum_units + np.diff(edges, prepend=0)
    return _name(records, _parts(SizePartitioner(sizes.tolist()), {"row": shuffled}))


def _dirichlet(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    _check_room(records, config)
    many = config.sites > MOST_DRAWN
    table = {"row": np.arange(records.unit_count), "label": _unit_labels(records)}
    for generator in np.random.SeedSequence([seed, DIRICHLET]).generate_state(GENERATORS):
        partitioner = _dirichlet_partitioner(config, int(generator), least=0 if many else config.minimum_units)
        with contextlib.suppress(ValueError):  # its 11 draws all left some site short
            parts = _parts(partitioner, table)
            return _name(records, _filled(parts, config.minimum_units) if many else parts)
    raise _too_few(config)


def _dirichlet_partitioner(config: PartitionConfig, seed: int, *, least: int) -> Any:
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        num_partitions=config.sites,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=least,
        self_balancing=False,
        seed=seed,
    )


def _filled(parts: list[Ints], least: int) -> list[Ints]:
    """Short parts get units of the largest, one of the largest after the other down to a size that all can have."""
    kept, mean = list(parts), sum(map(len, parts)) // len(parts)
    spare: list[int] = []
    short = [number for number, part in enumerate(parts) if len(part) < least]
    missing = sum(least - len(parts[number]) for number in short)
    for number in sorted(range(len(parts)), key=lambda number: -len(parts[number])):
        size = max(least, mean, len(parts[number]) - missing + len(spare))
        spare += kept[number][size:].tolist()
        kept[number] = kept[number][:size]
        if len(spare) == missing:
            break
    for number in short:
        wanted = least - len(kept[number])
        kept[number] = np.sort(np.concatenate([kept[number], np.array(spare[:wanted], np.int64)]))
        spare = spare[wanted:]
    return kept


def _pathological(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    _check_room(records, config)
    labels = _unit_labels(records)
    found = np.unique(labels)
    _check_labels(config, len(found))
    if config.sites < len(found):
        return _name(records, _label_by_label(labels, found, config, seed))
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_partitions=config.sites,
        partition_by="label",
        num_classes_per_partition=config.labels_per_site,
        class_assignment_mode="first-deterministic",  # the only one under which every label has a site
        seed=int(np.random.SeedSequence([seed, PATHOLOGICAL]).generate_state(1)[0]),
    )
    with contextlib.suppress(ValueError):  # a label has fewer units than sites want it
        return _name(records, _parts(partitioner, {"row": np.arange(records.unit_count), "label": labels}))
    raise _too_few(config)


def _label_by_label(labels: Ints, found: Ints, config: PartitionConfig, seed: int) -> list[Ints]:
    """Fewer sites than labels, where flwr-datasets would leave labels out: shuffled labels are dealt in turn."""
    generator = np.random.default_rng([seed, PATHOLOGICAL])
    turns = np.resize(generator.permutation(found), config.sites * config.labels_per_site)
    parts: list[list[int]] = [[] for _ in range(config.sites)]
    for label in found:
        takers = np.flatnonzero(turns == label) // config.labels_per_site
        units = generator.permutation(np.flatnonzero(labels == label))
        for taker, share in zip(takers, np.array_split(units, len(takers)), strict=True):
            parts[taker].extend(share.tolist())
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _check_labels(config: PartitionConfig, labels: int) -> None:
    if config.labels_per_site > labels:
        what = f"partition.labels_per_site is {config.labels_per_site}, but fewer labels occur in the data"
        raise DataError(what, hint="lower partition.labels_per_site")
    if config.sites * config.labels_per_site < labels:
        what = f"{config.sites} sites with partition.labels_per_site = {config.labels_per_site} leave out a label"
        raise DataError(what, hint="raise partition.labels_per_site or partition.sites")


def _natural(records: Records, config: PartitionConfig, seed: int) -> dict[str, Ints]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if records.sites is None:
        hint = "name the column in data.site, or choose 'dirichlet' or 'iid'"
        raise DataError("partition.method is 'natural' but the records have no site", hint=hint)
    names, numbers = _numbered(records.sites)
    homes = _commonest(records.units, numbers)[records.units]
    if len(np.unique(homes)) < len(names):  # some site has no unit for which it is the main one
        raise _too_few(config)
    parts = _parts(NaturalIdPartitioner(partition_by="site"), {"row": np.arange(len(records)), "site": homes})
    return dict(zip(names, parts, strict=True))


REMEDIES = {
    PartitionMethod.DIRICHLET: ", or raise partition.alpha",
    PartitionMethod.PATHOLOGICAL: ", or raise partition.labels_per_site",
}
METHODS: dict[PartitionMethod, Callable[[Records, PartitionConfig, int], dict[str, Ints]]] = {
    PartitionMethod.DIRICHLET: _dirichlet,
    PartitionMethod.IID: _iid,
    PartitionMethod.NATURAL: _natural,
    PartitionMethod.PATHOLOGICAL: _pathological,
    PartitionMethod.QUANTITY: _quantity,
}


def _parts(partitioner: Any, table: dict[str, Ints]) -> list[Ints]:
    """Let a partitioner divide a table of numbers; the ``row`` column of each part comes back, ascending."""
    with _quiet():
        partitioner.dataset = _rows(table)
        return [partitioner.load_partition(number) for number in range(partitioner.num_partitions)]


def _rows(table: dict[str, Ints]) -> Any:
    """A data set that gives the rows of a selection alone: building a data set for each of 10,000 sites takes 15 s."""
    import datasets

    class Rows(datasets.Dataset):  # type: ignore[misc]
        def select(self, indices: Iterable[int], **_: object) -> Any:
            return np.sort(table["row"][np.fromiter(indices, np.int64)])

    return Rows.from_dict(table)


def _name(records: Records, parts: list[Ints]) -> dict[str, Ints]:
    width = max(2, len(str(len(parts))))
    homes = np.empty(records.unit_count, np.int64)
    for number, units in enumerate(parts):
        homes[units] = number
    order = np.argsort(homes[records.units], kind="stable")
    ends = np.cumsum(np.bincount(homes[records.units], minlength=len(parts)))
    return {f"site-{number:0{width}}": rows for number, rows in enumerate(np.split(order, ends[:-1]), start=1)}


def _unit_labels(records: Records) -> Ints:
    """The most frequent label of each unit; of several equally frequent, the first of the task."""
    return _commonest(records.units, records.labels)


def _commonest(units: Ints, values: Ints) -> Ints:
    """The most frequent value of each unit; of several equally frequent, the smallest."""
    owners, found, counts = _pairs(units, values)
    order = np.lexsort((found, -counts, owners))
    _, first = np.unique(owners[order], return_index=True)
    chosen: Ints = found[order][first]
    return chosen


def _pairs(units: Ints, values: Ints) -> tuple[Ints, Ints, Ints]:
    """Each unit with each of its values, and how often the two meet."""
    width = int(values.max()) + 1
    codes, counts = np.unique(units * width + values, return_counts=True)
    return codes // width, codes % width, counts


def _numbered(names: Iterable[str]) -> tuple[list[str], Ints]:
    names = list(names)
    distinct = sorted(set(names))
    numbers = {name: number for number, name in enumerate(distinct)}
    return distinct, np.array([numbers[name] for name in names], np.int64)


def _short(units: Ints, least: int) -> bool:
    return len(np.unique(units)) < least


def _check_room(records: Records, config: PartitionConfig) -> None:
    if records.unit_count < config.sites * config.minimum_units:
        raise _too_few(config)


def _too_few(config: PartitionConfig) -> DataError:
    if config.method is PartitionMethod.NATURAL:
        what = f"a site has fewer units than partition.minimum_units = {config.minimum_units}"
        return DataError(what, hint=NATURAL_HINT + (SPLIT_HINT if config.units is Placement.WHOLE else ""))
    what = f"{config.sites} sites with partition.minimum_units = {config.minimum_units} cannot be drawn from this data"
    return DataError(what, hint=f"lower partition.sites or partition.minimum_units{REMEDIES.get(config.method, '')}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The partitioners warn at every new draw and show a bar that no setting turns off."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
