"""Promise 3: what a run may cost is on disk before data is opened; a crash at any instant never under-reports.

Here the books alone: power cuts that lose or tear whatever was not fsynced, processes killed with SIGKILL, disks that
refuse, and two who want the same budget.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import pytest

import support.books
from fedward_common.errors import BudgetError, FedwardError, OutputError
from fedward_common.privacy.ledger import LIFETIME
from support.books import OTHER_KEY, UNITS, Desk, plan, quoted, step
from support.crashes import Crash, FailingFiles, Killed, RecordingFiles, Step, crashes, killed_child, tell
from support.lives import check, note_sent

KILLS = 500

# Making a journal syncs its empty file and the folder; opening it, which follows at once, does both again.
TWICE = {"journal.create fsync", "journal.create fsync_folder"}
NEEDED = {  # each fsync, and after which step a process must be killed for it to matter; "" where a power cut suffices
    "journal._confirm fsync": "",  # the head: without it the last entries could be cut off unseen
    "journal._open fsync": "journal.append write_at",  # what a killed process left in memory
    "journal._open fsync_folder": "journal.create rename",
    "journal.append fsync": "",  # the entry itself
    "outbox.__init__ fsync_folder": "outbox.store rename",
    "outbox.store fsync": "",
    "outbox.store fsync_folder": "",
    "units.charge fsync": "",
    "units.charge fsync_folder": "",
}


# ---- power cuts ------------------------------------------------------------------------------
def work(files: RecordingFiles, folder: Path, rounds: Sequence[tuple[str, int]], units: Sequence[str] | None) -> None:
    desk = Desk(folder, files, files.mark, units=units)
    desk.recover()
    for run_id, number in rounds:
        with suppress(BudgetError):  # a plan that was cut off never starts again
            desk.serve(run_id, plan(number), partial(note_sent, files.mark))
    desk.close()


@cache
def recorded(kill_before: int | None = None, units: Sequence[str] | None = UNITS) -> tuple[Step, ...]:
    """The steps of making the books and serving; killed at a step, if one is given, and then taken up again."""
    root = Path(tempfile.mkdtemp())
    (root / "outbox").mkdir()
    files = RecordingFiles(root)
    files.kill_before = kill_before
    try:
        with suppress(Killed):
            rounds = [("run-1", 1)] if kill_before else [("run-1", 1), ("run-1", 2), ("run-2", 3)]
            work(files, root, rounds, units)
        if kill_before is not None:
            files.forsake()
            files.mark(("killed", ""))
            work(files, root, [("run-1", 1), ("run-1", 2)], units)
    finally:
        files.forsake()
        shutil.rmtree(root)
    return tuple(files.log)


def instants(label: str = "", units: Sequence[str] | None = UNITS) -> list[int]:
    """When to kill a process in its first round: after each step with this label, or after one of each kind."""
    found: dict[object, int] = {}
    for number, each in enumerate(recorded(None, units)):
        kind: object = (each.label, each.name.rpartition(".")[2]) if not label else number
        if not label or each.label == label:
            found.setdefault(kind, number + 1)
        if each.mark == ("sent", plan(1)):
            return sorted(found.values())
    raise AssertionError("nothing was sent")


def run_check(crash: Crash, folder: Path) -> None:
    crash.materialise(folder)
    check(folder, crash.marks)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: what a disk may lose is decided by the model, not by the disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=place) as name:
        (Path(name) / "outbox").mkdir()
        yield Path(name)


def test_a_power_cut_before_any_step_never_under_reports(folder: Path) -> None:
    seen: set[int] = set()
    for crash in crashes(recorded(), seen=seen):
        run_check(crash, folder)
    assert len(seen) > 150


def test_a_kill_and_then_a_power_cut_never_under_report(folder: Path) -> None:
    seen: set[int] = set()
    for instant in instants():
        for crash in crashes(recorded(instant), first=instant, seen=seen):
            run_check(crash, folder)
    assert len(seen) > 300


def test_the_fsyncs_are_the_ones_that_are_listed() -> None:
    logs = [recorded(), *(recorded(instant) for instant in instants())]
    asked = {each.label for log in logs for each in log if each.kind.startswith("fsync")}
    assert asked == NEEDED.keys() | TWICE


@pytest.mark.parametrize("label", sorted(NEEDED))
def test_without_any_one_fsync_the_check_goes_red(label: str, folder: Path) -> None:
    kills = instants(NEEDED[label], None) if NEEDED[label] else []
    logs = [recorded(instant, None) for instant in kills] or [recorded()]
    for log in logs:
        for crash in crashes(log, without={label}):
            try:
                run_check(crash, folder)
            except (AssertionError, FedwardError):
                return
    pytest.fail(f"nothing notices that {label!r} is missing")


# ---- kill -9 -------------------------------------------------------------------------------------
def test_hundreds_of_kills_never_under_report(folder: Path) -> None:
    """In a process of its own, from which all children are forked: this one may be large by now."""
    done = subprocess.run(
        [sys.executable, "-m", "support.lives", str(folder), str(KILLS)],
        input=json.dumps(quoted().to_json()),
        env={**os.environ, "PYTHONPATH": str(Path(support.books.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)
    assert sum(last.values()) == KILLS
    assert all(last[kind] > KILLS // 100 for kind in ("begun", "reserving", "starting", "started", "sent"))


# ---- disks that refuse -----------------------------------------------------------------------------
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_refuses_at_any_step_gives_a_clear_error_and_nothing_is_lost(folder: Path, code: int) -> None:
    for steps in itertools.count():
        shutil.rmtree(folder)
        (folder / "outbox").mkdir(parents=True)
        marks: list[tuple[str, str]] = []
        Desk(folder).close()
        files = FailingFiles(steps=steps, code=code)
        try:
            with Desk(folder, files, marks.append) as desk:
                for number in (1, 2):
                    desk.serve("run-1", plan(number), partial(note_sent, marks.append))
        except OutputError as error:
            assert error.hint
            check(folder, marks)
        else:
            assert steps > 30
            return


def test_after_a_disk_error_nothing_more_is_spent_or_sent(folder: Path) -> None:
    files = FailingFiles(steps=10**9, code=errno.ENOSPC)
    with Desk(folder, files) as desk:
        grant = desk.ledger.reserve(quoted(), run_id="run-1")
        files.steps = 1
        with pytest.raises(OutputError, match="No space left") as caught:
            desk.ledger.start(grant, plan(1), events=step())
        assert "free disk space" in caught.value.hint
        files.steps = 10**9
        for refused in (
            lambda: desk.ledger.start(grant, plan(1), events=step()),
            lambda: desk.ledger.reserve(quoted(), run_id="run-2"),
        ):
            with pytest.raises(BudgetError, match="the disk refused"):
                refused()
        assert desk.ledger.events(LIFETIME) == ()
    with Desk(folder) as desk:
        assert len(desk.ledger.grants()) == 1


# ---- two who want the same ---------------------------------------------------------------------------
def test_threads_with_runs_of_their_own_cannot_exceed_the_budget(folder: Path) -> None:
    with Desk(folder) as desk:

        def reserve(run: int) -> None:
            desk.ledger.reserve(quoted(), run_id=f"run-{run}", units=UNITS)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(reserve, range(24)))
    with Desk(folder) as desk:  # ten runs are borne by every unit, the others by none: they would be noise alone
        borne = [desk.ledger.taking_part(f"run-{run}", UNITS) for run in range(24)]
        assert sum(units.all() for units in borne) == 10
        assert sum(units.any() for units in borne) == 10
        assert desk.ledger.spent(LIFETIME, delta=1e-3) <= 40.0


def test_a_second_process_is_refused_while_the_first_lives(folder: Path) -> None:
    def hold(pipe: int) -> None:
        with Desk(folder):
            tell(pipe, ("begun", ""))
            time.sleep(60)

    def intrude() -> None:
        with pytest.raises(BudgetError, match="open in another process"):
            Desk(folder)

    killed_child(hold, wait=intrude)
    Desk(folder).close()


def test_a_forked_child_cannot_write_its_parents_books(folder: Path) -> None:
    with Desk(folder) as desk:

        def write(pipe: int) -> None:
            tell(pipe, ("begun", ""))
            try:
                desk.ledger.reserve(quoted(), run_id="run-1")
            except BudgetError as error:
                tell(pipe, ("refused", str(error)))
            time.sleep(60)

        told = killed_child(write, lines=2)
        assert told[1:] == [("refused", "a forked process may not write the books")]


# ---- books that are not this site's ------------------------------------------------------------------
def served(folder: Path) -> None:
    with Desk(folder) as desk:
        for number in range(3):
            desk.serve("run-1", plan(number), lambda _: None)


@pytest.mark.parametrize("name", ["ledger", "audit"])
def test_books_copied_from_another_site_refuse(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "other"
    (other / "outbox").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(support.books, "KEY", OTHER_KEY)
        served(other)
    served(folder)
    for suffix in ("jsonl", "head"):
        shutil.copy(other / f"{name}.{suffix}", folder / f"{name}.{suffix}")
    with pytest.raises(BudgetError, match="copied from another site"):
        Desk(folder)


def test_the_audit_log_does_not_pass_as_the_ledger(folder: Path) -> None:
    served(folder)
    for suffix in ("jsonl", "head"):
        shutil.copy(folder / f"audit.{suffix}", folder / f"ledger.{suffix}")
    with pytest.raises(BudgetError, match="signed by this site"):
        Desk(folder)


def test_a_lost_digest_key_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(folder)
    monkeypatch.setattr(support.books, "UNIT_KEY", bytes(32))
    with pytest.raises(BudgetError, match="digest key") as caught:
        Desk(folder)
    assert "backup" in caught.value.hint


@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.head", "audit.jsonl", "audit.head"])
def test_a_missing_book_is_never_begun_anew(folder: Path, name: str) -> None:
    served(folder)
    (folder / name).unlink()
    with pytest.raises(BudgetError, match="missing"):
        Desk(folder)


def test_a_missing_or_changed_register_refuses(folder: Path) -> None:
    served(folder)
    (path,) = folder.glob("units-*.bin")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BudgetError, match="damaged"):
        Desk(folder)
    path.unlink()
    with pytest.raises(BudgetError, match="missing"):
        Desk(folder)
