from __future__ import annotations

import logging
import threading
import time

import pytest

from fedward_client.installation.site_file import ReleaseAt
from fedward_client.trainer.slots import Slots
from fedward_client.trainer.turns import WAITING, Turn, Turns
from support.trainer import AT_ONCE


class Work:
    """An answer that takes until it is let go."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.threads: set[int] = set()
        self.at_once = 0
        self.most = 0
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, data: bytes) -> bytes:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.seen.append(data)
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.go.wait(10)
        self.at_once -= 1
        return data.upper()


def submitted(turns: Turns, data: bytes) -> Turn:
    turn = turns.take()
    assert turn is not None
    turn.submit(data)
    return turn


def test_the_site_answers_one_plan_at_a_time_always_in_the_same_thread() -> None:
    work = Work()
    turns = Turns(work, AT_ONCE)
    queued = [submitted(turns, data) for data in (b"a", b"b", b"c")]
    work.go.set()
    assert all(turn.wait(5) for turn in queued)
    assert [turn.reply for turn in queued] == [b"A", b"B", b"C"]
    assert work.most == 1 and len(work.threads) == 1 and threading.get_ident() not in work.threads
    assert turns.close(grace_s=5)


def test_what_follows_a_turn_comes_no_earlier_than_its_reply_was_due() -> None:
    over: list[float] = []
    turns = Turns(
        bytes.upper, Slots(release_at=ReleaseAt.SLOT, slot_s=0.5), after=lambda: over.append(time.monotonic())
    )
    turn = submitted(turns, b"a")
    assert turn.wait(5) and turns.close(grace_s=5)
    assert len(over) == 1 and over[0] >= turn.arrived + 0.5


def test_at_most_so_many_plans_wait_and_the_next_one_is_sent_away() -> None:
    work = Work()
    turns = Turns(work, AT_ONCE)
    queued = [submitted(turns, b"a") for _ in range(1 + WAITING)]
    assert turns.take() is None
    work.go.set()
    assert all(turn.wait(5) for turn in queued)
    assert turns.take() is not None
    turns.close(grace_s=5)


def test_a_place_that_is_taken_counts_before_anything_is_received() -> None:
    turns = Turns(bytes.upper, AT_ONCE)
    taken = [turns.take() for _ in range(1 + WAITING)]
    assert turns.take() is None
    assert taken[0] is not None
    taken[0].leave()
    taken[0].leave()  # twice frees one place
    assert turns.take() is not None and turns.take() is None
    taken[0].submit(b"too late")
    assert taken[0].wait(0) and taken[0].reply == b""
    turns.close(grace_s=5)


def test_a_plan_that_was_given_up_before_its_turn_never_reaches_the_site() -> None:
    work = Work()
    turns = Turns(work, AT_ONCE)
    first, second, third = (submitted(turns, data) for data in (b"a", b"b", b"c"))
    second.leave()
    assert second.wait(0) and second.data == b""
    work.go.set()
    assert first.wait(5) and third.wait(5)
    assert work.seen == [b"a", b"c"]
    turns.close(grace_s=5)


def test_work_that_has_begun_goes_on_to_its_end_whoever_waits_for_it() -> None:
    work = Work()
    turns = Turns(work, AT_ONCE)
    turn = submitted(turns, b"a")
    assert work.begun.wait(5)
    turn.leave()
    assert not turn.wait(0.05)
    work.go.set()
    assert turn.wait(5) and turn.reply == b"A"
    turns.close(grace_s=5)


def test_no_place_becomes_free_before_a_reply_is_due() -> None:
    turns = Turns(bytes.upper, Slots(release_at=ReleaseAt.SLOT, slot_s=0.5))
    began = time.monotonic()
    queued = [submitted(turns, b"a") for _ in range(1 + WAITING)]
    queued[0].leave()  # it has begun, or else frees its place at once and says nothing of work
    while turns.take() is None:
        time.sleep(0.005)
    if queued[0].reply:
        assert time.monotonic() - began >= 0.5
    turns.close(grace_s=5)


def test_a_site_that_raises_gives_no_reply_and_the_next_plan_is_served(caplog: pytest.LogCaptureFixture) -> None:
    def fails(data: bytes) -> bytes:
        if data == b"bad":
            raise SystemExit("Jane Roe")
        return data

    turns = Turns(fails, AT_ONCE)
    with caplog.at_level(logging.DEBUG):
        bad, good = submitted(turns, b"bad"), submitted(turns, b"good")
        assert bad.wait(5) and good.wait(5)
    assert (bad.reply, good.reply) == (b"", b"good")
    assert "SystemExit" in caplog.text and "Jane" not in caplog.text
    turns.close(grace_s=5)


def test_a_closed_queue_lets_the_running_plan_end_and_sends_the_others_away() -> None:
    work = Work()
    turns = Turns(work, Slots(release_at=ReleaseAt.SLOT, slot_s=3600))
    running, waiting, receiving = submitted(turns, b"a"), submitted(turns, b"b"), turns.take()
    assert work.begun.wait(5) and receiving is not None
    threading.Timer(0.2, work.go.set).start()
    assert turns.close(grace_s=5)
    assert work.seen == [b"a"]
    receiving.submit(b"c")
    for turn in (running, waiting, receiving):
        assert turn.wait(0) and turn.reply == b""  # a reply before it is due stays in the outbox
    assert turns.take() is None


def test_work_that_does_not_end_in_time_is_told() -> None:
    work = Work()
    turns = Turns(work, AT_ONCE)
    submitted(turns, b"a")
    assert work.begun.wait(5)
    assert not turns.close(grace_s=0.05)
    work.go.set()
    assert turns.close(grace_s=5)
