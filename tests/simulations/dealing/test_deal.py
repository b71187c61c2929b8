from __future__ import annotations

import numpy as np

from fedward_client.data import Records
from fedward_common.config import PartitionConfig, PartitionMethod, Placement
from fedward_simulations.dealing.deal import Deal, method_line

RECORDS = Records(
    texts=(("x",),) * 6,
    labels=np.array([0, 1, 1, 2, 2, 2]),
    units=np.array([0, 0, 1, 2, 3, 3]),
    unit_ids=("a", "b", "c", "d"),
    sites=None,
)


def test_records_units_and_shared_units_are_counted() -> None:
    sites = {"east": RECORDS.select([0, 2, 3]), "west": RECORDS.select([1, 4]), "south": RECORDS.select([5])}
    deal = Deal.of(sites, labels=("yes", "no", "maybe", "never"), title="iid")
    assert deal.counts.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert deal.units.tolist() == [3, 2, 1]
    assert deal.shared.tolist() == [1, 2, 1] and deal.at_several == 2
    assert deal.lines() == [
        "iid: 3 sites, 6 records",
        "units at a site: 1 to 3, median 2",
        "labels at a site: 1 to 3, median 2 of 4",
        "units at several sites: 2",
    ]


def test_a_method_in_a_few_words() -> None:
    assert method_line(PartitionConfig()) == "dirichlet, alpha 0.5"
    assert method_line(PartitionConfig(method=PartitionMethod.IID)) == "iid"
    assert method_line(PartitionConfig(method=PartitionMethod.PATHOLOGICAL)) == "pathological, 2 labels a site"
    natural = PartitionConfig(method=PartitionMethod.NATURAL, units=Placement.SPLIT)
    assert method_line(natural) == "natural, units split"
    assert method_line(PartitionConfig(method=PartitionMethod.QUANTITY, sigma=0.9)) == "quantity, sigma 0.9"
