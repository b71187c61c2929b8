"""Where a simulation's records come from: the user's files, a Hugging Face name, or the built-in quickstart data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedward_client.data import Records, load_records
from fedward_common.config import PartitionMethod, Placement, RunConfig
from fedward_common.errors import ConfigError, DataError
from fedward_simulations.dealing.partition import Ints, holdout, moved_units, partition, units_at_several
from fedward_simulations.dealing.quickstart import icd_phrases

__all__ = ["BUILT_IN", "Source", "built_in", "is_built_in", "read_source"]

BUILT_IN = "icd10cm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What a run starts from: each site's records, the coordinator's test records, and a digest of all of them.

    Labels are as the data has them, also where ``[simulation]`` has a site train on wrong ones. ``notes`` are sentences
    for whoever simulates: units that lie, or would have lain, at several sites.
    """

    sites: dict[str, Records]
    test: Records
    digest: str
    notes: tuple[str, ...] = ()


def read_source(config: RunConfig) -> Source:
    """Read, hold out, partition.

    Raises:
      DataError: a file, column, label or record is wrong, or a site would have too few units.
    """
    records = _records(config, config.data.train)
    if config.data.test is not None:
        if is_built_in(config.data.test):
            raise ConfigError("data.test is built-in data", hint="leave it out: test_fraction sets records aside")
        # the coordinator's own data has no sites, and its units are nobody's here
        data = config.data.model_copy(update={"site": None, "unit": None})
        train, test = records, load_records(data, config.task.labels, source=config.data.test)
    elif config.data.test_fraction > 0:
        kept, aside = holdout(records, fraction=config.data.test_fraction, seed=config.seed)
        train, test = records.select(kept), records.select(aside)
    else:
        raise DataError("there is no data to evaluate on", hint="set data.test, or data.test_fraction above 0")
    parts = partition(train, config.partition, seed=config.seed)
    sites = {name: train.select(indices) for name, indices in parts.items()}
    return Source(sites=sites, test=test, digest=_digest(records, test), notes=_notes(config, train, parts))


def _notes(config: RunConfig, records: Records, sites: Mapping[str, Ints]) -> tuple[str, ...]:
    if config.partition.units is Placement.SPLIT:
        count = units_at_several(records, sites)
        what = "lie at several sites, each of which protects its part of them: the epsilons of those sites add up"
    else:
        count = moved_units(records) if config.partition.method is PartitionMethod.NATURAL else 0
        what = "have records under several values of data.site; each lies wholly where it has most of them"
    return (f"{count} of {records.unit_count} units {what}",) if count else ()


def is_built_in(source: str) -> bool:
    """Whether this names built-in data, and no file."""
    return source.partition(":")[0] == BUILT_IN


def built_in(source: str) -> tuple[list[str], list[str]]:
    """Texts and labels of ``icd10cm``, or of a prefix of it: ``icd10cm:300``.

    Raises:
      DataError: the prefix is no number, or the package with the data is missing.
    """
    limit = source.partition(":")[2]
    if limit and not limit.isdecimal():
        raise DataError(f"data source {source!r} is not understood", hint=f"write {BUILT_IN} or {BUILT_IN}:300")
    return icd_phrases(int(limit) if limit else None)


def _records(config: RunConfig, source: str) -> Records:
    if not is_built_in(source):
        return load_records(config.data, config.task.labels, source=source)
    if config.data.site or config.data.unit:
        raise ConfigError(f"{BUILT_IN} has neither sites nor units", hint="leave data.site and data.unit out")
    texts, labels = built_in(source)
    numbers = {label: number for number, label in enumerate(config.task.labels)}
    if not set(labels) <= set(numbers):
        raise DataError("task.labels are not the chapters of ICD-10-CM", hint="`fedward-sim demo` writes a run file")
    return Records(
        texts=tuple((text,) for text in texts),
        labels=np.array([numbers[label] for label in labels], np.int64),
        units=np.arange(len(texts), dtype=np.int64),
        unit_ids=tuple(str(row) for row in range(len(texts))),
        sites=None,
    )


def _digest(*parts: Records) -> str:
    digest = hashlib.sha256()
    for records in parts:
        digest.update(records.labels.tobytes() + records.units.tobytes())
        for name in (*records.unit_ids, *(records.sites or ())):
            digest.update(hashlib.sha256(name.encode()).digest())
        for texts in records.texts:
            for text in texts:
                digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()
