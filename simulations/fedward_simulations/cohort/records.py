"""The drawn records of many sites in one flat order, cut into physical batches of like lengths.

A physical batch holds whole units, of whatever sites; a unit that is larger than a batch goes on in the next. This
module knows nothing of models or gradients.

Example:
    >>> drawn = [[np.array([4, 5])], [], [np.array([7]), np.array([2])]]  # two records of one unit; nothing; two units
    >>> flat = FlatRecords.of(drawn, lengths=[np.full(9, 3), np.full(0, 3), np.full(9, 3)])
    >>> flat.owners.tolist(), flat.records.tolist(), flat.units.tolist(), flat.shares.tolist()
    ([0, 0, 2, 2], [4, 5, 7, 2], [0, 0, 1, 2], [0.5, 0.5, 1.0, 1.0])
    >>> [batch.stop - batch.start for batch in flat.cuts(tokens=9, records=64)]
    [3, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FlatRecords"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatRecords:
    """One entry a record, records of a unit side by side.

    ``owners``: number of the site. ``records``: number of the record at that site. ``places``: its number among all
    records of all sites, one site after the other. ``units``: number of the unit among
    all units that were drawn, in the order in which they were given. ``shares``: 1 / records of that unit. ``widths``:
    tokens of the unit's longest record, never falling.
    """

    owners: Ints
    records: Ints
    places: Ints
    units: Ints
    shares: NDArray[np.float32]
    widths: Ints

    @classmethod
    def of(cls, drawn: Sequence[Sequence[Ints]], *, lengths: Sequence[Ints]) -> FlatRecords:
        """Lay out what each site drew, shortest first.

        Args:
          drawn: for each site the records of each of its units; no unit is without records.
          lengths: for each site the tokens of all its records.
        """
        sizes = np.array([len(unit) for own in drawn for unit in own], np.int64)
        records = np.concatenate([np.zeros(0, np.int64), *(unit for own in drawn for unit in own)])
        owners = np.repeat(np.repeat(np.arange(len(drawn)), [len(own) for own in drawn]), sizes)
        places = _offsets(lengths)[owners] + records
        longest = _longest(np.concatenate([np.zeros(0, np.int64), *lengths])[places], sizes)
        order = np.argsort(np.repeat(_ranks(longest), sizes), kind="stable")
        return cls(
            owners=owners[order],
            records=records[order],
            places=places[order],
            units=np.repeat(np.arange(len(sizes)), sizes)[order],
            shares=np.repeat((1.0 / sizes).astype(np.float32), sizes)[order],
            widths=np.repeat(longest, sizes)[order],
        )

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def cuts(self, *, tokens: int, records: int) -> Iterator[slice]:
        """Physical batches of at most so many tokens, padding included, and records; at least one record each."""
        start = 0
        while start < len(self):
            ahead = self.widths[start : start + records]
            fits = np.arange(1, len(ahead) + 1) * np.maximum(ahead, 1) <= tokens
            end = start + max(1, int(fits.sum()))
            yield slice(start, end := self._whole(start, end))
            start = end

    def goes_on(self, part: slice) -> bool:
        """Whether the last unit of a batch goes on in the next."""
        return part.stop < len(self) and bool(self.units[part.stop] == self.units[part.stop - 1])

    def _whole(self, start: int, end: int) -> int:
        # back to where the unit that would be cut begins, unless it fills the batch
        if end == len(self) or self.units[end] != self.units[end - 1]:
            return end
        begin = start + int(np.argmax(self.units[start:end] == self.units[end]))
        return begin if begin > start else end


def _offsets(lengths: Sequence[Ints]) -> Ints:
    return np.cumsum([0, *(len(own) for own in lengths)])[:-1].astype(np.int64)


def _longest(lengths: Ints, sizes: Ints) -> Ints:
    starts = np.cumsum(sizes) - sizes
    return np.maximum.reduceat(lengths, starts) if len(sizes) else np.zeros(0, np.int64)


def _ranks(values: Ints) -> Ints:
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
