"""Open a site from its folder: policy, keys, books, models and data become one ``Site`` that answers plans.

Used by the trainer's process and by nobody with a network. Nothing is trained here, and nothing of the data is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward_client.installation.folder import Folder
from fedward_client.installation.hardening import without_core_dumps
from fedward_client.installation.keys import SiteKeys
from fedward_client.installation.noted import check_named
from fedward_client.installation.scratch import scratch
from fedward_client.installation.shelf import Books, lines_beyond, uncounted_runs
from fedward_client.installation.site_file import SiteFile
from fedward_client.release import Gate
from fedward_client.round import Site
from fedward_client.trainers import SiteTrainers, Trainers
from fedward_common.errors import BudgetError
from fedward_common.privacy.randomness import SecureRandom

__all__ = ["check_books_agree", "open_site", "site_for", "trainers_for"]


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
    with folder.lock(), scratch(folder.root), folder.open_books(file, keys) as books:
        check_books_agree(books)
        check_named(file, used=bool(books.register.digest))
        trainers = trainers_for(folder, file, keys)
        site = site_for(file, keys, books, trainers)
        try:
            yield site
        finally:
            trainers.close()


def trainers_for(folder: Folder, file: SiteFile, keys: SiteKeys) -> SiteTrainers:
    """The models that lie in a site's folder and the data that its site file names; nothing is read yet."""
    return SiteTrainers(
        columns=file.columns(folder.root),
        labels=file.task.labels,
        nominal_units=file.data.nominal_units,
        models=folder.base_models(file.policy().base_fingerprints),
        pooling=file.model.pooling,
        max_tokens=file.model.max_tokens,
        split_key=keys.units,
        randomness=SecureRandom(),
    )


def site_for(file: SiteFile, keys: SiteKeys, books: Books, trainers: Trainers) -> Site:
    """The site whose site file, keys and open books these are."""
    policy = file.policy()
    gate = Gate(
        key=keys.signing,
        nominal_units=file.data.nominal_units,
        max_update_bytes=policy.max_update_bytes,
        ledger=books.ledger,
    )
    return Site(
        policy=policy,
        operator=file.operator(),
        ledger=books.ledger,
        trainers=trainers,
        gate=gate,
        outbox=books.outbox,
        audit=books.audit,
    )


def check_books_agree(books: Books) -> None:
    """Refuse a ledger that is older than the audit log beside it.

    Raises:
      BudgetError: it is.
    """
    lines = books.audit.lines()
    if lines_beyond(books.ledger, lines) or uncounted_runs(books.ledger, lines):
        raise BudgetError(
            "the audit log knows of ledger entries that the ledger does not: the ledger was set back",
            hint="restore both together, or count what the coordinators know: fedward-client ledger reconcile",
        )
