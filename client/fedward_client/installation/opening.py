"""Open a site from its folder: policy, keys, books, models and data become one ``Site`` that answers plans.

Used by the trainer's process and by nobody with a network. Nothing is trained here, and nothing of the data is read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward_client.installation.folder import Folder
from fedward_client.installation.hardening import without_core_dumps
from fedward_client.installation.keys import make_private_folder
from fedward_client.installation.shelf import Books
from fedward_client.release import Gate
from fedward_client.round import Site
from fedward_client.trainers import SiteTrainers
from fedward_common.errors import BudgetError
from fedward_common.privacy.randomness import SecureRandom

__all__ = ["check_books_agree", "open_site"]

SCRATCH = "scratch"


@contextmanager
def open_site(root: Path) -> Iterator[Site]:
    """The site in a folder, locked against every other process that writes there.

    Args:
      root: a folder that ``fedward-client init`` made and whose site file is filled in.

    Guarantees:
      - Core dumps of this process are off before anything of the data can be in its memory.
      - Temporary files lie in the site's own folder and are gone afterwards, also those of a process that was killed.
      - Plans that a crash cut off are settled by what is stored: as released where the whole reply is there. Every
        other such run is held until the site's own operator clears it.

    Raises:
      FedwardError: what is wrong with the site file, a key, the ledger or the audit log, and how to mend it.
    """
    without_core_dumps()
    folder = Folder.open(root)
    file = folder.load_site()
    keys = folder.load_keys()
    policy = file.policy()
    with folder.lock(), _scratch(folder.root / SCRATCH), folder.open_books(file, keys) as books:
        check_books_agree(books)
        randomness = SecureRandom()
        trainers = SiteTrainers(
            columns=file.columns(folder.root),
            labels=file.task.labels,
            nominal_units=file.data.nominal_units,
            models=folder.base_models(policy.base_fingerprints),
            pooling=file.model.pooling,
            max_tokens=file.model.max_tokens,
            split_key=keys.units,
            randomness=randomness,
        )
        gate = Gate(
            key=keys.signing,
            nominal_units=file.data.nominal_units,
            max_update_bytes=policy.max_update_bytes,
            ledger=books.ledger,
        )
        site = Site(
            policy=policy,
            operator=file.operator(),
            ledger=books.ledger,
            trainers=trainers,
            gate=gate,
            outbox=books.outbox,
            audit=books.audit,
            randomness=randomness,
        )
        try:
            yield site
        finally:
            trainers.close()


@contextmanager
def _scratch(place: Path) -> Iterator[None]:
    """Temporary files lie in the site's own folder, private; what a killed process left there goes first."""
    before = tempfile.tempdir
    shutil.rmtree(place, ignore_errors=True)
    make_private_folder(place)
    tempfile.tempdir = str(place)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(place, ignore_errors=True)


def check_books_agree(books: Books) -> None:
    """Refuse a ledger that is older than the audit log beside it.

    Every audit line names the ledger's head, which was on disk before the line was written. So a head that the ledger
    does not know means that it was set back, or cut off by whoever holds an earlier key.

    Raises:
      BudgetError: it was.
    """
    for written in books.audit.lines():
        if written.line.ledger_head and not books.ledger.knows(written.line.ledger_head):
            raise BudgetError(
                "the audit log knows of ledger entries that the ledger does not: the ledger was set back",
                hint="restore both together, or count what the coordinators know: fedward-client ledger reconcile",
            )
