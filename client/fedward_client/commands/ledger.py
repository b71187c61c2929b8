"""``ledger show|verify|head|forecast|reconcile`` and ``clear RUN``: what was spent, what is left, what is held.

Epsilon is computed from the ledger's events each time it is shown. All but ``reconcile`` and ``clear`` take no lock, so
they run beside a site that is training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward_client.books.audit import Kind
from fedward_client.commands.init import budget_line
from fedward_client.installation.folder import Folder
from fedward_client.installation.shelf import BooksRead, lines_beyond, uncounted_runs
from fedward_common.checks import hex_digest
from fedward_common.codec import key_fingerprint
from fedward_common.config import RunConfig
from fedward_common.errors import BudgetError, ConfigError, DataError, FedwardError, InputError
from fedward_common.privacy import checks
from fedward_common.privacy.facts import Granted, Reconciled, fact_of
from fedward_common.privacy.grants import Budget, Grant, Quote
from fedward_common.privacy.guarantee import MetricTerms, PrivacyTerms, StageTerms, Unit
from fedward_common.privacy.ledger import LIFETIME, Ledger
from fedward_common.report import Report, brief, counted, rounded_up, rows, stamp

__all__ = ["clear", "find_run", "forecast_life", "head", "load_run", "reconcile", "show", "verify"]

MOST_RUNS = 1000
WITNESS = "ask the operator for the witness.json of the run"
WITNESS_SCHEMA = 1


def show(folder: Folder) -> Report:
    """Every grant with its cost, and what all of them cost together."""
    books = folder.read_books(folder.load_keys())
    ledger = books.ledger
    stopped = "a round is under way, or was cut off" if folder.in_use else "held: see `fedward-client clear`"
    witnessed = _witnessed(books)
    states = {grant.run_id: "granted" for grant in ledger.grants()}
    states |= dict.fromkeys(ledger.held(), stopped) | dict.fromkeys(witnessed.closed, "closed by a witness")
    grants = [_grant_facts(grant, ledger, states[grant.run_id]) for grant in ledger.grants()]
    grants += [_grant_facts(grant, ledger, "counted for a witness") for grant in witnessed.grants]
    spent = _spent(ledger)
    table = [
        f"{brief(one['run_id'])}  epsilon {one['epsilon']:.4g} at delta {one['delta']:g}  "
        f"{one['steps']} of {one['granted']} noisy sums  {one['state']}"
        for one in grants
    ]
    lines = (
        *rows(
            [
                ("budget", budget_line(ledger.budget)),
                ("spent", f"{_spent_line(spent, ledger.budget)}, by the unit that bore most"),
                ("head", _head_line(ledger)),
            ]
        ),
        *(("runs:", *table) if table else ("no run was granted yet",)),
    )
    facts = {
        "budget": ledger.budget.to_json(),
        "command": "ledger show",
        "head": ledger.head,
        "runs": grants,
        "sequence": ledger.sequence,
        "spent_epsilon": spent,
    }
    return Report(facts=facts, lines=lines, details=tuple(map(_entry_line, books.ledger_rows)))


def verify(folder: Folder) -> Report:
    """Check every signature, link, budget and number of both journals, and that they tell the same story."""
    books = folder.read_books(folder.load_keys())
    ledger = books.ledger
    strange = [
        f"audit line {written.entry.sequence} names a ledger head that the ledger never had"
        for written in lines_beyond(ledger, books.audit)
    ]
    strange += [f"the audit log names run {run}, which no entry counts" for run in uncounted_runs(ledger, books.audit)]
    facts = {
        "audit_lines": len(books.audit),
        "command": "ledger verify",
        "entries": ledger.sequence,
        "head": ledger.head,
        "problems": strange,
    }
    ours, theirs = counted(ledger.sequence, "entry", "entries"), counted(len(books.audit), "audit line", "audit lines")
    holds = f"{ours} and {theirs}, each signed by this site and chained"
    told = "an older copy of the whole folder would look as whole: only a coordinator's head can tell"
    problem = BudgetError("audit log and ledger do not agree", hint="restore both from one backup, then reconcile")
    return Report(facts=facts, lines=(*strange, holds, told), problem=problem if strange else None)


def head(folder: Folder) -> Report:
    """The digest of the last entry: whoever notes it can later show that the ledger was set back."""
    ledger = folder.read_books(folder.load_keys()).ledger
    facts = {"command": "ledger head", "head": ledger.head, "sequence": ledger.sequence}
    return Report(facts=facts, lines=(_head_line(ledger),))


def forecast_life(folder: Folder, run_file: Path | None) -> Report:
    """How many more runs every unit could bear: of a run file's kind, or of the largest that the budget allows.

    Raises:
      ConfigError: the run file is wrong.
      InputError: without a run file under the filter ``rdp``, where a run's cost depends on its events.
    """
    ledger = folder.read_books(folder.load_keys()).ledger
    budget = ledger.budget
    if run_file is None and budget.renyi_order is not None:
        raise InputError("under the filter rdp the cost of a run depends on its events", hint="add --run RUN.toml")
    terms = _largest_terms(budget) if run_file is None else load_run(run_file).terms
    spent, runs = _spent(ledger), _count(ledger, Quote.of(terms))
    facts = {"budget": budget.to_json(), "command": "ledger forecast", "runs": runs, "spent_epsilon": spent}
    more = f"{runs}" if runs < MOST_RUNS else f"at least {MOST_RUNS}"
    kind = f"runs like {run_file.name}" if run_file else f"runs of epsilon {terms.epsilon:g} at delta {terms.delta:g}"
    lines = rows(
        [
            ("budget", budget_line(budget)),
            ("spent", _spent_line(spent, budget)),
            ("left", f"{more} {kind}, for the units that bore most"),
        ]
    )
    return Report(facts=facts, lines=lines)


def clear(folder: Folder, run: str) -> Report:
    """Let a held run go on within its grant. What was begun stays spent.

    Args:
      folder: of the site.
      run: a run id, or enough of its beginning.

    Raises:
      BudgetError: the run is not held.
      InputError: no run, or several, begin like this.
    """
    site, keys = folder.load_site(), folder.load_keys()
    with folder.lock(), folder.open_books(site, keys) as books:
        run_id = find_run(books.ledger, run)
        if run_id not in books.ledger.held():
            shown = ", ".join(brief(known) for known in books.ledger.held()) or "none"
            raise BudgetError(f"run {brief(run_id)} is not held at this site", hint=f"held runs: {shown}")
        books.note(Kind.CLEAR, run_id=run_id, reason="the site's operator is about to clear the run")
        books.ledger.clear(run_id)
    facts = {"command": "clear", "run_id": run_id}
    said = "it may go on within its grant; what was begun stays spent, and a plan that failed never starts again"
    return Report(facts=facts, lines=(f"cleared {run_id}", said))


def reconcile(folder: Folder, witness: Path) -> Report:
    """Count as spent every grant that a witness knows and this ledger, being older than the truth, does not.

    Args:
      folder: of the site.
      witness: a JSON file from a coordinator: run ids with their terms, and the ledger heads that it holds.

    Returns:
      A report; its ``problem`` names the runs that the audit log knows of and that are counted nowhere yet.

    Guarantees:
      - It can only add spending, never take any away.
      - No head that only the audit log explains is taken as known before every run in that log is counted: until then
        the site does not open.

    Raises:
      DataError: the file is no witness, or of another site.
    """
    site, keys = folder.load_site(), folder.load_keys()
    (run_id, terms), heads = _read_witness(witness, {key_fingerprint(key) for key in keys.public_keys})
    with folder.lock(), folder.open_books(site, keys) as books:
        before, lines = books.ledger.sequence, books.audit.lines()
        uncounted = uncounted_runs(books.ledger, lines)
        if not heads and run_id not in uncounted:  # a run that was held before it ever answered has no head
            what = f"{witness} knows nothing of this site"
            raise DataError(what, hint="this site never answered in that run; " + WITNESS)
        books.note(Kind.RECONCILE, run_id=run_id, reason="a witness of this run is about to be heard")
        missing = tuple(run for run in uncounted if run != run_id)
        lost = {each.line.ledger_head for each in lines_beyond(books.ledger, lines)}
        known = set(heads) - lost if missing else {*heads, *lost}
        added = books.ledger.reconcile([(run_id, terms)], sorted(known))
        changed = books.ledger.sequence > before
        spent = _spent(books.ledger)
    facts = {
        "added": list(added),
        "changed": changed,
        "command": "ledger reconcile",
        "missing": list(missing),
        "spent_epsilon": spent,
    }
    return Report(facts=facts, lines=_reconciled_lines(added, changed=changed), problem=_still_missing(missing))


def load_run(path: Path) -> RunConfig:
    """The run file that a coordinator sent.

    Raises:
      ConfigError: it cannot be read, or a key or value of it is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"there is no run file {path}", hint="ask the operator for the run.toml of the run")
    return RunConfig.load(path)


def find_run(ledger: Ledger, run: str) -> str:
    """The run id that begins like this.

    Raises:
      InputError: none does, or several do.
    """
    found = [grant.run_id for grant in ledger.grants() if grant.run_id.startswith(run)]
    if run in found:
        return run
    if not run or len(found) != 1:
        what = f"several runs begin with {run!r}" if run and found else f"the ledger knows no run {run!r}"
        raise InputError(what, hint="`fedward-client ledger show` lists the runs; enough of the beginning will do")
    return found[0]


# ---- within ------------------------------------------------------------------------
def _reconciled_lines(added: tuple[str, ...], *, changed: bool) -> tuple[str, ...]:
    if not changed:
        return ("the witness knows nothing that this ledger does not",)
    counted_now = (f"counted run {run_id}, which this ledger had lost: every unit bears it" for run_id in added)
    return (*counted_now, "runs that were known until now are closed: ask the operator for new ones")


def _still_missing(runs: tuple[str, ...]) -> BudgetError | None:
    if not runs:
        return None
    names = ", ".join(map(brief, runs))
    return BudgetError(
        f"the audit log knows of {counted(len(runs), 'run', 'runs')} that this ledger does not count: {names}",
        hint="the site stays closed until each is counted: ask the operator for its witness.json, and reconcile again",
    )


def _grant_facts(grant: Grant, ledger: Ledger, state: str) -> dict[str, Any]:
    return {
        "delta": grant.quote.terms.delta,
        "epsilon": grant.quote.epsilon,
        "granted": sum(event.count for event in grant.quote.events),
        "run_id": grant.run_id,
        "state": state,
        "steps": sum(event.count for event in ledger.events(grant.run_id)),
        "unit": grant.quote.terms.unit.value,
    }


@dataclass(frozen=True, kw_only=True)
class _Witnessed:
    """What witnesses brought: the grants that they added, and the runs that they closed."""

    grants: tuple[Grant, ...]
    closed: frozenset[str]


def _witnessed(books: BooksRead) -> _Witnessed:
    known: list[str] = []
    grants: list[Grant] = []
    closed: set[str] = set()
    for fact in (fact_of(row["body"]) for row in books.ledger_rows):
        if isinstance(fact, Granted):
            known.append(fact.grant.run_id)
        elif isinstance(fact, Reconciled):
            grants += fact.grants
            closed.update(known)
    return _Witnessed(grants=tuple(grants), closed=frozenset(closed))


def _entry_line(row: Mapping[str, Any]) -> str:
    body = row["body"]
    about = " ".join(brief(str(body[key])) for key in ("run_id", "plan_id", "outcome") if key in body)
    return f"{row['sequence']:>6}  {stamp(row['at'])}  {body.get('entry')}  {about}"


def _head_line(ledger: Ledger) -> str:
    return f"{ledger.head} after {counted(ledger.sequence, 'entry', 'entries')}"


def _spent(ledger: Ledger) -> float | None:
    """For life, by the unit that bore most; None where a witness brought it beyond the budget's delta."""
    try:
        return ledger.spent(LIFETIME, delta=ledger.budget.delta)
    except BudgetError:
        return None


def _spent_line(spent: float | None, budget: Budget) -> str:
    return "beyond the budget" if spent is None else f"epsilon {rounded_up(spent, digits=3)} at delta {budget.delta:g}"


def _largest_terms(budget: Budget) -> PrivacyTerms:
    """Terms that promise as much as one run may; under sums nothing else of them counts."""
    return PrivacyTerms(
        epsilon=budget.run_epsilon or budget.epsilon,
        delta=min(budget.run_delta or budget.delta, 0.5),
        unit=budget.unit or Unit.RECORD,
        clip_norm=1.0,
        max_records_per_unit=1,
        stages=(StageTerms(name="forecast", sampling_rate=1.0, rounds=1, local_steps=1, noise_ratio=1.0),),
        metrics=MetricTerms(evaluations=0, share=1.0, validation_fraction=0.0),
    )


def _count(ledger: Ledger, quote: Quote) -> int:
    """How often the ledger would grant this, tried on a copy that was read and goes nowhere."""
    for number in range(MOST_RUNS):
        try:
            ledger.reserve(quote, run_id=f"forecast {number}")
        except BudgetError:
            return number
    return MOST_RUNS


def _read_witness(path: Path, sites: set[str]) -> tuple[tuple[str, PrivacyTerms], list[str]]:
    try:
        row = checks.table(json.loads(path.read_bytes()), ("heads", "run_id", "schema", "terms"), where="a witness")
        if row["schema"] != WITNESS_SCHEMA or not isinstance(row["heads"], dict):
            raise ValueError
        run_id, terms = hex_digest("run_id", row["run_id"]), PrivacyTerms.from_json(row["terms"])
        heads = [hex_digest("a head", head) for site, head in row["heads"].items() if site in sites]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=WITNESS) from None
    except (ValueError, TypeError, RecursionError, FedwardError):
        raise DataError(f"{path} is no witness", hint=WITNESS) from None
    return (run_id, terms), heads
