"""When a reply may be handed over: at the end of a slot, because the time that work takes tracks the data.

A batch is drawn at random from the units, so a step's time says how many were drawn, and a refusal's time says how far
the site got. Under ``slot`` every answer, refusals and re-sent replies too, leaves one slot after its plan arrived, or
two, four, eight. Work that stays below a slot then shows nothing; longer work shows only the power of two below its
time, because a coordinator that chooses the work could else count units by it. That hides times from whoever sees
replies, not from a program on this machine that watches how busy it is.

Example:
    >>> release_time(100.0, 101.5, 30.0), release_time(100.0, 131.0, 30.0), release_time(100.0, 200.0, 30.0)
    (130.0, 160.0, 220.0)
"""

from __future__ import annotations

from dataclasses import dataclass

from fedward_client.installation.site_file import NetworkTable, ReleaseAt
from fedward_common.checks import positive

__all__ = ["Slots", "release_time"]


def release_time(arrived: float, done: float, slot_s: float) -> float:
    """One, two, four, eight ... slots after the plan arrived: the first of these times at which the work is done.

    Guarantees:
      - At least one slot after the arrival, a power of two of slots, and not before the work is done.
      - At most twice the time that the work took, unless that is the first slot.
      - All work that ends between two of these times is released at the same time.
    """
    slots = 1
    while arrived + slots * slot_s < done:
        slots *= 2
    return arrived + slots * slot_s


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The rule of one site."""

    release_at: ReleaseAt
    slot_s: float

    def __post_init__(self) -> None:
        """Check the length."""
        positive("slot_s", self.slot_s)

    @classmethod
    def of(cls, table: NetworkTable) -> Slots:
        """The rule that a site file states."""
        return cls(release_at=table.release_at, slot_s=float(table.slot_s))

    def due(self, arrived: float, done: float) -> float:
        """When a reply is handed over. Times are of one clock that never goes back."""
        return done if self.release_at is ReleaseAt.READY else release_time(arrived, done, self.slot_s)
