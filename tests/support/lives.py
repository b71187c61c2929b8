"""Lives of a site's books: served, killed, taken up again; and what must hold after each of them.

    python -m support.lives FOLDER KILLS < quote.json

kills that many children, each with SIGKILL, and prints after what they were killed. The quote comes in, so that this
process needs no accountant and stays small: each child is forked from it.

Example:
    check(folder, marks)
"""

from __future__ import annotations

import collections
import itertools
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import support.books
from fedward_common.errors import BudgetError
from fedward_common.privacy.grants import Quote
from fedward_common.privacy.ledger import LIFETIME
from support.books import UNITS, Desk, plan, recent, reply_to, step
from support.crashes import killed_child, tell

TOLD = ("reserving", "reserved", "starting", "started")
LIVES = 5  # of one folder: each child goes on from where the one before was killed
LINES, DELAY = 7, 0.002  # a child is killed after it told at most so much, and at most so many seconds later


def check(folder: Path, marks: Sequence[tuple[str, str]]) -> None:
    """Open the books and compare them with what was sent, and with what had been promised to be on disk."""
    said = {kind: {what for k, what in marks if k == kind} for kind in (*TOLD, "sent")}
    with Desk(folder) as desk:
        ledger, started = desk.ledger, desk.started()
        assert said["sent"] <= started.keys(), "a reply was sent that the ledger does not know"
        assert said["started"] <= started.keys() <= said["starting"]
        assert len(started) <= len(said["started"]) + kills(marks) + 1
        assert sum(event.count for event in ledger.events(LIFETIME)) == len(started)
        granted = {grant.run_id for grant in ledger.grants()}
        assert said["reserved"] <= granted <= said["reserving"]
        assert len(granted) <= len(said["reserved"]) + kills(marks) + 1
        assert all(ledger.taking_part(run, UNITS).all() for run in granted)
        assert said["sent"] <= desk.written(), "a reply was sent that the audit log does not know"
        stored = {plan_id: desk.outbox.find(plan_id) for plan_id in started}
        assert all(reply in (None, reply_to(plan_id)) for plan_id, reply in stored.items())
        assert all(stored[plan_id] for plan_id in said["sent"] & recent(started))
        assert not any(starts_again(desk, plan_id) for plan_id in said["sent"])


def note_sent(note: Callable[[tuple[str, str]], object], reply: bytes) -> None:
    note(("sent", reply.split()[2].decode()))


def kills(marks: Sequence[tuple[str, str]]) -> int:
    return sum(kind == "killed" for kind, _ in marks)


def starts_again(desk: Desk, plan_id: str) -> bool:
    """Whether a plan that was started may be started once more."""
    try:
        desk.ledger.start(desk.ledger.grants()[0], plan_id, events=step())
    except BudgetError:
        return False
    return True


def live(folder: Path, life: int, pipe: int) -> None:
    """Open the books, mend what the last kill left, and serve until the end."""
    tell(pipe, ("begun", ""))
    desk = Desk(folder, note=partial(tell, pipe))
    desk.recover()
    for number in itertools.count(1000 * life):
        desk.serve(f"run-{number // 3 % 3}", plan(number), partial(note_sent, partial(tell, pipe)))


def main(folder: Path, kills: int) -> None:
    chance = random.Random(3)  # noqa: S311  # instants, not secrets
    last: collections.Counter[str] = collections.Counter()
    for line in range(kills // LIVES):
        home = folder / f"{line}"
        (home / "outbox").mkdir(parents=True)
        marks: list[tuple[str, str]] = []
        for life in range(LIVES):
            wait = partial(time.sleep, chance.uniform(0.0, DELAY))
            told = killed_child(partial(live, home, life), lines=chance.randint(1, LINES), wait=wait)
            assert told[-1][0] != "error", told
            last[told[-1][0]] += 1
            marks += [*told, ("killed", "")]
            check(home, marks)
        shutil.rmtree(home)
    print(json.dumps(last))


if __name__ == "__main__":
    QUOTE = Quote.from_json(json.load(sys.stdin))
    Quote.check = lambda quote: None  # type: ignore[assignment, method-assign]  # whoever hands it over has done it
    support.books.quoted = lambda terms=support.books.TERMS: QUOTE  # type: ignore[assignment]
    main(Path(sys.argv[1]), int(sys.argv[2]))
