"""What a run tells whoever watches.

A view knows nothing of models, data, messages or how a round works, and a run gives the same result whichever view
watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

    from fedward_common.config import RunConfig
    from fedward_common.round import RoundRecord

__all__ = ["RunView"]


class RunView:
    """Shows nothing; a view shows what it likes. Methods return at once and never fail for what they are told."""

    def __enter__(self) -> Self:
        """Begin to watch."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was, also after an error or Ctrl-C."""

    def preparing(self, what: str) -> None:
        """Something long begins, for example ``reading data``."""

    def started(self, *, config: RunConfig, sites: Mapping[str, int], records: Mapping[str, int], out: Path) -> None:
        """The run is prepared.

        Args:
          config: its run file.
          sites: declared, public nominal units by name.
          records: what a pass over all training units reads of each; known in a simulation alone.
          out: the result folder.
        """

    def caching(self, site: str, done: int, total: int) -> None:
        """A site has computed ``done`` of ``total`` features. May be called many times a second."""

    def round_started(self, *, round: int, stage: str, attempt: int, cohort: int) -> None:
        """A round (counted from 1) was sent to ``cohort`` sites; ``attempt`` counts from 1."""

    def answered(self, site: str, outcome: str) -> None:
        """A site's reply: ``update``, a refusal's code, or the coordinator's reason to drop it."""

    def round_finished(self, record: RoundRecord) -> None:
        """The round is over, or abandoned."""

    def note(self, text: str) -> None:
        """One sentence that the person should read."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is over; called at most once, last."""
