"""What a partition dealt to whom: sites by labels, sizes, and units that lie at several sites. Numbers, no pictures.

A simulator may look at all of this; no coordinator of real sites can. The picture of it is ``report.draw_deal``.

Example:
    >>> records = Records(texts=(("a",),) * 3, labels=[0, 1, 1], units=[0, 0, 1], unit_ids=("p", "q"), sites=None)
    >>> deal = Deal.of({"east": records, "west": records.select([0])}, labels=("yes", "no"), title="wards")
    >>> deal.counts.tolist(), deal.units.tolist(), deal.shared.tolist(), deal.at_several
    ([[1, 2], [1, 0]], [2, 1], [1, 1], 1)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from fedward_client.data import Records
from fedward_common.config import PartitionConfig, PartitionMethod, Placement

__all__ = ["Deal", "method_line"]

Ints = npt.NDArray[np.int64]

SKEW = {
    PartitionMethod.DIRICHLET: "alpha {0.alpha:g}",
    PartitionMethod.PATHOLOGICAL: "{0.labels_per_site} labels a site",
    PartitionMethod.QUANTITY: "sigma {0.sigma:g}",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Deal:
    """A partition in numbers.

    Attributes:
      title: how it was made.
      sites: names.
      labels: names, in the order of the task.
      counts: (sites, labels) records.
      units: (sites,) units at each.
      shared: (sites,) those of them that lie at another site too.
      at_several: units that lie at more than one site, each counted once.
    """

    title: str
    sites: tuple[str, ...]
    labels: tuple[str, ...]
    counts: Ints
    units: Ints
    shared: Ints
    at_several: int

    @classmethod
    def of(cls, sites: Mapping[str, Records], *, labels: tuple[str, ...], title: str) -> Deal:
        """Count what lies where."""
        homes = Counter(chain.from_iterable(records.unit_ids for records in sites.values()))
        several = {unit for unit, count in homes.items() if count > 1}
        rows = [np.bincount(records.labels, minlength=len(labels)) for records in sites.values()]
        shared = [sum(unit in several for unit in records.unit_ids) if several else 0 for records in sites.values()]
        return cls(
            title=title,
            sites=tuple(sites),
            labels=labels,
            counts=np.stack(rows).astype(np.int64),
            units=np.array([records.unit_count for records in sites.values()], np.int64),
            shared=np.array(shared, np.int64),
            at_several=len(several),
        )

    def lines(self) -> list[str]:
        """The partition in four sentences."""
        records, kinds = self.counts.sum(1), (self.counts > 0).sum(1)
        return [
            f"{self.title}: {len(self.sites)} sites, {records.sum():,} records",
            f"units at a site: {_spread(self.units)}",
            f"labels at a site: {_spread(kinds)} of {len(self.labels)}",
            f"units at several sites: {self.at_several:,}",
        ]


def method_line(partition: PartitionConfig) -> str:
    """How sites are made, in a few words: ``dirichlet, alpha 0.5``."""
    skew = SKEW.get(partition.method, "").format(partition)
    split = "units split" if partition.units is Placement.SPLIT else ""
    return ", ".join(filter(None, (partition.method.value, skew, split)))


def _spread(values: Ints) -> str:
    return f"{values.min():,} to {values.max():,}, median {np.median(values):,.0f}"
