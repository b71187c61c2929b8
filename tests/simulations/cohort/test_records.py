from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedward_simulations.cohort.records import FlatRecords

SITES = st.lists(st.lists(st.integers(1, 4), max_size=5), max_size=4)  # records of each unit of each site


def drawn(sites: list[list[int]]) -> tuple[list[list[NDArray[np.int64]]], list[NDArray[np.int64]]]:
    generator = np.random.default_rng(len(sites))
    units, lengths = [], []
    for sizes in sites:
        order = generator.permutation(sum(sizes)).astype(np.int64)
        units.append(np.split(order, np.cumsum(sizes)[:-1]) if sizes else [])
        lengths.append(generator.integers(0, 9, sum(sizes)).astype(np.int64))
    return units, lengths


@given(sites=SITES, tokens=st.integers(1, 40), records=st.integers(1, 8))
def test_every_record_is_in_one_batch_and_units_stay_together(
    sites: list[list[int]], tokens: int, records: int
) -> None:
    units, lengths = drawn(sites)
    flat = FlatRecords.of(units, lengths=lengths)
    cuts = list(flat.cuts(tokens=tokens, records=records))
    assert [at for cut in cuts for at in range(cut.start, cut.stop)] == list(range(len(flat)))
    seen = {(int(owner), int(record)) for owner, record in zip(flat.owners, flat.records, strict=True)}
    assert seen == {(owner, int(record)) for owner, own in enumerate(units) for unit in own for record in unit}
    assert len(seen) == len(flat)
    for cut in cuts:
        size, width = cut.stop - cut.start, int(max(flat.widths[cut].max(), 1))
        assert size == 1 or (size * width <= tokens and size <= records)
        whole = len(set(flat.units[cut].tolist())) > 1
        assert not (flat.goes_on(cut) and whole)  # a unit is cut only where it fills a batch


@given(sites=SITES)
def test_shares_places_and_widths_are_those_of_the_unit(sites: list[list[int]]) -> None:
    units, lengths = drawn(sites)
    flat = FlatRecords.of(units, lengths=lengths)
    every = np.concatenate([np.zeros(0, np.int64), *lengths])
    named = [own for site in units for own in site]
    owners = [owner for owner, site in enumerate(units) for _ in site]
    for at in range(len(flat)):
        unit, owner = int(flat.units[at]), int(flat.owners[at])
        assert owners[unit] == owner
        assert flat.records[at] in named[unit]
        assert flat.shares[at] == np.float32(1 / len(named[unit]))
        assert flat.widths[at] == lengths[owner][named[unit]].max()
        assert every[flat.places[at]] == lengths[owner][flat.records[at]]
    assert np.all(np.diff(flat.widths) >= 0)
