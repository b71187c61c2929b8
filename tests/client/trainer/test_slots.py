from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.installation.site_file import NetworkTable, ReleaseAt
from fedward_client.trainer.slots import Slots, release_time
from fedward_client.trainer.turns import Turns
from fedward_common.errors import InputError

TIMES = st.floats(0, 1e6)
WORK = st.floats(0, 1e5)
SLOT = st.floats(1, 3600)


@given(TIMES, WORK, SLOT)
def test_at_least_one_slot_after_the_arrival_a_whole_number_of_slots_and_not_before_the_work_is_done(
    arrived: float, work: float, slot_s: float
) -> None:
    done = arrived + work
    due = release_time(arrived, done, slot_s)
    slots = (due - arrived) / slot_s
    assert due >= done
    assert slots > 0.999 and abs(slots - round(slots)) < 1e-6


@given(TIMES, WORK, SLOT)
def test_less_than_one_slot_after_the_work_is_done_unless_that_is_the_first(
    arrived: float, work: float, slot_s: float
) -> None:
    due = release_time(arrived, arrived + work, slot_s)
    assert due - (arrived + work) < slot_s * 1.000001 or due == arrived + slot_s


@given(TIMES, st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(0, 50), SLOT)
def test_all_work_that_ends_within_one_slot_is_released_at_the_same_time(
    arrived: float, one: float, other: float, slots: int, slot_s: float
) -> None:
    dues = {release_time(arrived, arrived + (slots + part) * slot_s, slot_s) for part in (one, other)}
    assert dues == {arrived + (slots + 1) * slot_s}


def test_work_that_took_no_time_waits_as_well() -> None:
    assert release_time(5.0, 5.0, 30.0) == 35.0
    assert release_time(5.0, 35.0, 30.0) == 35.0


def test_under_ready_nothing_waits() -> None:
    assert Slots(release_at=ReleaseAt.READY, slot_s=30).due(5.0, 6.5) == 6.5


def test_the_rule_of_a_site_file() -> None:
    assert Slots.of(NetworkTable()) == Slots(release_at=ReleaseAt.SLOT, slot_s=30)
    with pytest.raises(InputError, match="slot_s"):
        Slots(release_at=ReleaseAt.SLOT, slot_s=0)


def test_the_time_of_a_reply_does_not_depend_on_the_time_of_the_work() -> None:
    slot_s, generator = 0.4, random.Random(7)  # noqa: S311 - which durations are tried is no secret
    works = [0.0, *(generator.uniform(0, 0.3) for _ in range(6)), 0.3]
    turns = Turns(lambda data: time.sleep(float(data)) or data, Slots(release_at=ReleaseAt.SLOT, slot_s=slot_s))  # type: ignore[func-returns-value]
    taken = []
    for work in works:
        turn = turns.take()
        assert turn is not None
        turn.submit(str(work).encode())
        assert turn.wait(5) and turn.reply == str(work).encode()
        taken.append(time.monotonic() - turn.arrived)
    assert turns.close(grace_s=5)
    late = [one - slot_s for one in taken]
    assert all(0 <= one < 0.08 for one in late), late
