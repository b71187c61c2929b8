"""What a site's durable books cost: quoting and reserving a run, starting and settling a round, a million units."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedward_client.books.units import UnitRegister, unit_digests
from fedward_client.installation.keys import SiteKeys, create_keys
from fedward_client.installation.shelf import Books, make_books, open_books
from fedward_common.config import DEFAULT_STAGES, DataConfig, RunConfig, TaskConfig
from fedward_common.privacy.facts import Outcome
from fedward_common.privacy.grants import Budget
from fedward_common.privacy.guarantee import PrivacyTerms
from fedward_common.privacy.ledger import Ledger
from fedward_server.state import State
from fedward_simulations.bench.overhead import bundle_for
from fedward_simulations.bench.ready import ReadySite
from fedward_simulations.bench.table import Table, middle

__all__ = ["measure"]

AIM_QUOTE_MS, AIM_ROUND_MS, AIM_KNOWN_S, AIM_FIRST_S = 50.0, 5.0, 2.0, 5.0
KEY = bytes(range(32))


def measure(*, rounds: int = 200, units: int = 1_000_000) -> Table:
    """Time each part on the disk that holds the system's temporary folder.

    Args:
      rounds: how many are started and settled.
      units: how many a large site has.
    """
    terms = RunConfig(task=TaskConfig(labels=("no", "yes")), data=DataConfig(train="none"), stages=DEFAULT_STAGES).terms
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as place:
        keys = create_keys(Path(place) / "keys")
        make_books(Path(place) / "books", Budget(epsilon=1e3, delta=0.5), keys)
        with _opened(place, keys) as ledger:
            rows.append(("quote and reserve a run of new terms", *_ms([_reserve(ledger, terms, "0")])))
        with _opened(place, keys) as ledger:  # as after a restart: nothing is remembered but what lies in the books
            known = [_reserve(ledger, terms, str(number)) for number in range(1, 22)]
            rows.append(("the same for terms that the ledger knows", *_ms(known)))
            rows.append(("start and settle a round, fsynced", *_ms(_rounds(ledger, terms, rounds))))
        with open_books(Path(place) / "books", keys) as books:
            rows.append(("a whole round but the training, 100,000 numbers", *_ms(_answers(books, keys, rounds // 2))))
        rows += _units(Path(place), units)
    return Table(
        title="A site's books on disk",
        head=("what", "median (range)", "unit"),
        rows=tuple(rows),
        note=f"Aims: a known run is quoted in {AIM_QUOTE_MS:g} ms, a round started and settled in {AIM_ROUND_MS:g} ms, "
        f"{units:,} units looked up in {AIM_KNOWN_S:g} s and first enrolled in {AIM_FIRST_S:g} s.",
    )


@contextmanager
def _opened(place: str, keys: SiteKeys) -> Iterator[Ledger]:
    with open_books(Path(place) / "books", keys) as books:
        yield books.ledger


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ms(seconds: list[float]) -> tuple[str, str]:
    return middle([1e3 * one for one in seconds], digits=2), "ms"


def _reserve(ledger: Ledger, terms: PrivacyTerms, run_id: str) -> float:
    return _seconds(lambda: ledger.reserve(ledger.quote(terms), run_id=run_id))


def _rounds(ledger: Ledger, terms: PrivacyTerms, rounds: int) -> list[float]:
    stages = (replace(terms.stages[0], rounds=rounds),)
    grant = ledger.reserve(ledger.quote(replace(terms, stages=stages)), run_id="rounds")
    event = grant.quote.calibration.stage_event(grant.quote.terms, 0, 1)

    def one(number: int) -> None:
        plan_id = f"{number:064x}"
        ledger.start(grant, plan_id, events=(event,))
        ledger.settle(plan_id, Outcome.RELEASED)

    return [_seconds(lambda number=number: one(number)) for number in range(rounds)]  # type: ignore[misc]


def _answers(books: Books, keys: SiteKeys, rounds: int) -> list[float]:
    """Verify, decode, policy, ledger, gate, outbox, audit log: what ``Site.answer`` takes around a ready delta."""
    ready = ReadySite.build(bundle_for(rounds + 1, 768), books=books, key=keys.signing)
    state = State.initial(ready.bundle.initial)
    took = []
    for number in range(rounds + 1):
        at = replace(state, finished=number)
        data = ready.signed(ready.plan(at), at)
        took.append(_seconds(lambda data=data: ready.site.answer(data)))  # type: ignore[misc]
    return took[1:]


def _units(place: Path, count: int) -> list[tuple[str, str, str]]:
    folder = place / "units"
    folder.mkdir(mode=0o700)
    register = UnitRegister(folder, key=KEY)
    ids = [f"patient-{number}" for number in range(count)]

    def enrol(run_id: str) -> None:
        register.adopt(register.charge(ids, run_id=run_id, bears=lambda history: True).digest)

    first = _seconds(lambda: enrol("first"))
    second = _seconds(lambda: enrol("second"))
    digests = [_seconds(lambda: unit_digests(ids, key=KEY)) for _ in range(3)]
    lookup = [_seconds(lambda: register.taking_part("second", ids)) for _ in range(3)]
    return [
        (f"keyed digests of {count:,} units", middle(digests, digits=2), "s"),
        (f"first enrolment of {count:,} units", f"{first:.2f}", "s"),
        (f"a second run on {count:,} known units", f"{second:.2f}", "s"),
        (f"which of {count:,} units take part", f"{statistics.median(lookup):.2f}", "s"),
    ]
