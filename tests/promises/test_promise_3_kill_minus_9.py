"""Promise 3: ``kill -9`` at any instant never under-reports what was released, and no partial update is ever sent."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedward_client.books.audit import Kind
from fedward_client.installation.folder import Folder
from fedward_common.round import Update
from support.hospital import Hospital
from support.killing import LENGTH, Warm

INSTANTS = 1000
REAL_KILLS = 10
ROUNDS = (1, 2, 3)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("killed"), patients=12)


def check(hospital: Hospital, root: Path, sent: list[bytes]) -> int:
    """Compare what left with what the books say after the kill; how many plans were started but not sent."""
    updates = [hospital.read(reply) for reply in sent]
    assert all(isinstance(update, Update) for update in updates)
    folder = Folder.open(root)
    with folder.lock(), folder.open_books(folder.load_site(), hospital.keys) as books:
        standing = books.ledger._standing
        started, released = set(standing.run_of), {update.plan_id for update in updates}
        assert released <= started  # never less than what was released
        assert len(started) <= len(released) + 1  # at most one reservation more
        counted = sum(event.count for event in books.ledger.events(hospital.bundle.run_id))
        paid = sum(event.count for u in updates if isinstance(u, Update) for event in u.guarantee.events)
        assert paid <= counted
        assert bool(books.ledger.grants()) or not started
        written = {w.line.plan_id for w in books.audit.lines() if w.line.kind is Kind.RELEASE}
        assert released <= written  # the line was on disk before the bytes left
        for update, reply in zip(updates, sent, strict=True):
            assert books.outbox.find(update.plan_id) == reply
        for plan_id in started - released:  # stored whole, or not at all
            stored = books.outbox.find(plan_id)
            assert stored is None or isinstance(hospital.read(stored), Update)
    return len(started) - len(released)


def test_a_thousand_instants(hospital: Hospital, tmp_path: Path) -> None:
    plans = [hospital.plan_bytes(round=number) for number in ROUNDS]
    warm = Warm.up(hospital, plans, tmp_path / "warm")
    began = time.perf_counter()
    whole = warm.start(warm.copy(tmp_path / "whole"), plans).reap()
    length = time.perf_counter() - began
    assert len(whole) == len(ROUNDS)
    chosen = random.Random(9)  # noqa: S311  # instants of a test
    sent_before_the_kill, cut_off = [], 0
    for number in range(0, INSTANTS, 2):  # two at a time: sites of their own, on two cores
        roots = [warm.copy(tmp_path / f"site-{number + one}") for one in range(2)]
        children = [warm.start(root, plans) for root in roots]
        first, second = sorted(chosen.uniform(0, 1.2 * length) for _ in roots)
        time.sleep(first)
        os.kill(children[0].pid, signal.SIGKILL)
        time.sleep(second - first)
        os.kill(children[1].pid, signal.SIGKILL)
        for root, child in zip(roots, children, strict=True):
            sent = child.reap()
            cut_off += check(hospital, root, sent)
            sent_before_the_kill.append(len(sent))
    assert set(sent_before_the_kill) == {0, 1, 2, 3}  # the kills did hit every round
    assert cut_off >= INSTANTS // 100  # and the middle of rounds


SERVE = """
import os, sys
from pathlib import Path
from fedward_client.installation.opening import open_site
root, *plans = sys.argv[1:]
with open_site(Path(root)) as site:
    for plan in plans:
        reply = site.answer(Path(plan).read_bytes())
        os.write(1, len(reply).to_bytes(4, "little") + reply)
"""


def killed(root: Path, plans: list[str], after: float) -> list[bytes]:
    """What a fresh interpreter sent: one reply, and whatever else until it was killed some time after it."""
    command = [sys.executable, "-c", SERVE, str(root), *plans]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            data = process.stdout.read(LENGTH.size)
            time.sleep(after)
        finally:
            process.send_signal(signal.SIGKILL)
        data += process.stdout.read()
    sent = []
    while data:
        (length,) = LENGTH.unpack_from(data)
        sent.append(data[LENGTH.size : LENGTH.size + length])
        assert len(sent[-1]) == length
        data = data[LENGTH.size + length :]
    return sent


def test_ten_kills_of_the_real_process(hospital: Hospital, tmp_path: Path) -> None:
    chosen = random.Random(11)  # noqa: S311
    plans = []
    for number in ROUNDS:
        (tmp_path / f"{number}.plan").write_bytes(hospital.plan_bytes(round=number))
        plans.append(str(tmp_path / f"{number}.plan"))
    roots = [tmp_path / f"site-{number}" for number in range(REAL_KILLS)]
    for root in roots:
        shutil.copytree(hospital.root, root, ignore=shutil.ignore_patterns("lock"))
    with ThreadPoolExecutor(2) as pool:  # most of the time goes into starting ten interpreters
        waits = [chosen.uniform(0, 0.2) for _ in roots]
        everything = list(pool.map(lambda root, wait: killed(root, plans, wait), roots, waits))
    for root, sent in zip(roots, everything, strict=True):
        assert sent
        check(hospital, root, sent)
