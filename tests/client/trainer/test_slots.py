from __future__ import annotations

import math
import random
import time
from statistics import median

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
def test_at_least_one_slot_after_the_arrival_a_power_of_two_of_slots_and_not_before_the_work_is_done(
    arrived: float, work: float, slot_s: float
) -> None:
    done = arrived + work
    due = release_time(arrived, done, slot_s)
    power = math.log2((due - arrived) / slot_s)
    assert due >= done
    assert power > -1e-6 and abs(power - round(power)) < 1e-6


@given(TIMES, WORK, SLOT)
def test_at_most_twice_the_time_that_the_work_took_unless_that_is_the_first_slot(
    arrived: float, work: float, slot_s: float
) -> None:
    due = release_time(arrived, arrived + work, slot_s)
    assert due - arrived <= 2.000001 * work or due == arrived + slot_s


@given(TIMES, st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(0, 10), SLOT)
def test_all_work_that_ends_between_two_of_these_times_is_released_at_the_same_time(
    arrived: float, one: float, other: float, power: int, slot_s: float
) -> None:
    before, after = (0 if power == 0 else 2 ** (power - 1)), 2**power
    dues = {
        release_time(arrived, arrived + (before + part * (after - before)) * slot_s, slot_s) for part in (one, other)
    }
    assert dues == {arrived + after * slot_s}


def test_the_number_of_units_shows_in_few_bits_whatever_work_a_coordinator_chooses() -> None:
    """600 steps at 10 ms a unit: 1,000, 1,010 and 1,100 units are released at one time."""
    assert len({release_time(0.0, 600 * 0.01 * units, 30.0) for units in (1000, 1010, 1100)}) == 1


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
    assert min(late) >= 0 and max(late) < slot_s  # none misses its slot
    assert median(late) < 0.08, late  # single ones are late where the machine is busy, whatever the work
