"""``check``: is this site ready, what would be guaranteed, and what does this machine not protect?

Reads the data and names wrong cells by row and column, never by content. Counts of units are shown to the person who
typed the command; they are the true ones and must not leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedward_client.commands.init import budget_line
from fedward_client.commands.machine import Weakness, weaknesses
from fedward_client.commands.survey import Survey, survey
from fedward_client.installation.folder import Folder, check_budget
from fedward_client.installation.hardening import without_core_dumps
from fedward_client.installation.keys import SiteKeys
from fedward_client.installation.noted import check_column
from fedward_client.installation.scratch import scratch_beside
from fedward_client.installation.site_file import SiteFile
from fedward_common.codec import key_fingerprint
from fedward_common.errors import DataError, FedwardError
from fedward_common.report import Report, counted, rows

__all__ = ["check"]

SHOWN_ROWS = 20
NO_WITNESS = Weakness(
    name="witness",
    text="no coordinator holds a head of this ledger yet: an older copy of this folder would go unnoticed",
)
WARNING = "This output is derived from the data: treat it as you treat the data."


def check(folder: Folder) -> Report:
    """Check everything that can be checked before a plan arrives.

    Returns:
      A report; its ``problem`` says that the site is not ready.

    Raises:
      ConfigError: the site file is wrong.
      DataError: the data cannot be read at all.
      PrivacyError: keys or folders are missing, damaged or open to other accounts.
    """
    without_core_dumps()
    site, keys = folder.load_site(), folder.load_keys()
    with scratch_beside(folder.root):
        seen = survey(site, folder.root)
    books, unwitnessed = _books(folder, site, keys)
    found = (*map(str, seen.problems), *_unit_problems(site, seen), *_model_problems(folder, site), *books)
    open_to = (*weaknesses(folder.root, site.source(folder.root)), *unwitnessed)
    budget, table = site.budget(), site.policy_table
    lines = (
        *rows(
            [
                ("site", f"{site.name}, fingerprint {keys.fingerprint}"),
                ("operator", f"fingerprint {key_fingerprint(site.operator())}"),
                (
                    "data",
                    f"{counted(seen.records, 'record', 'records')} of {counted(seen.units, 'unit', 'units')}; "
                    f"declared: {site.data.nominal_units}",
                ),
                (
                    "one run",
                    f"at most epsilon {table.run_epsilon:g} at delta {table.run_delta:g} for each {table.unit}",
                ),
                ("all runs", budget_line(budget)),
            ]
        ),
        *_section("problems", found[:SHOWN_ROWS], more=len(found) - SHOWN_ROWS),
        *_section("worth a look", tuple(_notes(site, seen))),
        *_section("not protected on this machine", tuple(weakness.text for weakness in open_to)),
        WARNING,
    )
    facts = _facts(site, seen, found, open_to) | {"command": "check", "site": site.name}
    return Report(facts=facts, lines=lines, details=found[SHOWN_ROWS:], problem=_verdict(found, folder.root))


def _unit_problems(site: SiteFile, seen: Survey) -> Iterator[str]:
    table = site.policy_table
    if seen.units < table.minimum_units:
        yield f"the data has fewer units than policy.minimum_units = {table.minimum_units}: this site would not train"
    for key, delta in (("run_delta", table.run_delta), ("life_delta", table.life_delta)):
        if delta * seen.units >= 1:
            yield f"policy.{key} = {delta:g} is not below 1 / units: that would permit publishing whole units"


def _model_problems(folder: Folder, site: SiteFile) -> Iterator[str]:
    from fedward_common.modeling.base import fingerprint

    if not site.policy_table.models:
        yield "policy.models is empty: no plan will be admitted; `fedward-client fetch-model` prints fingerprints"
    for known in site.policy_table.models:
        if not folder.model(known).is_dir():
            yield f"base model {known} is not in models/: bring it in with `fedward-client fetch-model`"
            continue
        try:
            whole = fingerprint(folder.model(known), pooling=site.model.pooling) == known
        except FedwardError:
            whole = False
        if not whole:
            yield f"models/{known} does not hold that model with {site.model.pooling} pooling: fetch it again"


def _books(folder: Folder, site: SiteFile, keys: SiteKeys) -> tuple[tuple[str, ...], tuple[Weakness, ...]]:
    """What is wrong with the books; and whether anybody could notice that an old copy of them was put back."""
    if not folder.has_books:
        return ("the ledger is not open yet: `fedward-client init` opens it with the budget of site.toml",), ()
    try:
        books = folder.read_books(keys)
        check_budget(site.budget(), books.ledger.budget)
        check_column(site, keys, books.audit, used=bool(books.register.digest))
    except FedwardError as error:
        return (f"{error}: {error.hint}",), ()
    stopped = () if folder.in_use else books.ledger.held()  # of a site at work it cannot be told from outside
    held = tuple(f"run {run} is held: see `fedward-client clear`" for run in stopped)
    seen = any(written.line.update_digest for written in books.audit)
    return held, () if seen else (NO_WITNESS,)


def _notes(site: SiteFile, seen: Survey) -> Iterator[str]:
    table, declared = site.policy_table, site.data.nominal_units
    if not declared / 2 <= max(seen.units, 1) <= declared * 2:
        yield "data.nominal_units is far from the true number: updates are scaled by the declared one"
    if table.minimum_units <= seen.units < 2 * table.minimum_units:
        yield "the number of units is near policy.minimum_units: whether this site answers may tell that it is"
    if table.unit == "record" and site.data.record_id is None:
        yield "without data.record_id spending belongs to the data as a whole: new rows share it from the start"
    if seen.largest_unit > table.max_records_per_unit:
        yield "some units have more records than policy.max_records_per_unit: a step draws from them at random"


def _section(title: str, texts: tuple[str, ...], *, more: int = 0) -> tuple[str, ...]:
    rest = (f"  - and {more} more: see -v",) if more > 0 else ()
    return (f"{title}:", *(f"  - {text}" for text in texts), *rest) if texts else ()


def _facts(site: SiteFile, seen: Survey, found: tuple[str, ...], open_to: tuple[Weakness, ...]) -> dict[str, Any]:
    return {
        "budget": site.budget().to_json(),
        "not_protected": {weakness.name: weakness.text for weakness in open_to},
        "notes": list(_notes(site, seen)),
        "problems": list(found),
        "ready": not found,
        "records": seen.records,
        "rows": [{"column": p.column, "row": p.row, "what": p.what} for p in seen.problems],
        "units": seen.units,
    }


def _verdict(found: tuple[str, ...], root: Path) -> DataError | None:
    if not found:
        return None
    return DataError(
        f"the site in {root} is not ready: {counted(len(found), 'problem', 'problems')}",
        hint="mend what is listed, then run `fedward-client check` again",
    )
