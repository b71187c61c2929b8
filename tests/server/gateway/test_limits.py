from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedward_common.errors import ConfigError
from fedward_server.gateway.limits import Buckets, Limits, Pace, Together, neighbourhood


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(steps=some.lists(some.floats(0, 3), max_size=60), per_s=some.floats(0.1, 10), burst=some.integers(1, 10))
def test_in_any_time_a_key_takes_at_most_burst_and_rate(steps: list[float], per_s: float, burst: int) -> None:
    clock = Clock()
    bucket = Buckets(per_s=per_s, burst=burst, clock=clock)
    taken = 0
    for step in steps:
        clock.now += step
        while bucket.take("a"):
            taken += 1
        assert taken <= burst + per_s * (clock.now - 1000.0) + 1e-6


def test_a_bucket_fills_up_again_but_not_over() -> None:
    clock = Clock()
    bucket = Buckets(per_s=1.0, burst=3, clock=clock)
    assert [bucket.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert [bucket.take("a") for _ in range(2)] == [True, False]
    clock.now += 1000.0
    assert [bucket.take("a") for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    clock = Clock()
    bucket = Buckets(per_s=1.0, burst=1, clock=clock)
    assert bucket.take("a")
    clock.now -= 500.0
    assert not bucket.take("a")


def test_keys_do_not_share() -> None:
    bucket = Buckets(per_s=1.0, burst=1, clock=Clock())
    assert bucket.take("a")
    assert bucket.take("b")
    assert not bucket.take("a")


def test_at_most_so_many_keys_are_remembered() -> None:
    bucket = Buckets(per_s=1.0, burst=1, clock=Clock(), most=10)
    for number in range(1000):
        bucket.take(number)
    assert len(bucket._levels) == 10
    assert not bucket.take(999)
    assert bucket.take(0)  # forgotten, so full


def test_a_key_never_holds_more_than_most_and_all_never_more_than_total() -> None:
    together = Together(most=2, total=3)
    assert [together.enter("a") for _ in range(3)] == [True, True, False]
    assert [together.enter("b") for _ in range(2)] == [True, False]
    together.leave("a")
    assert together.enter("b")
    assert not together.enter("c")


def test_what_was_left_is_forgotten() -> None:
    together = Together(most=1, total=10)
    for number in range(100):
        assert together.enter(number)
        together.leave(number)
    assert not together._held


def test_the_waiting_for_n_bytes_is_at_most_grace_and_n_at_the_slowest_rate() -> None:
    pace = Pace(grace_s=10.0, slowest=100.0)
    assert pace.left() == 10.0
    pace.note(waited_s=4.0, received=0)
    assert pace.left() == 6.0
    pace.note(waited_s=0.0, received=500)
    pace.note(waited_s=5.0, received=0)
    assert pace.left() == 6.0
    pace.note(waited_s=100.0, received=1)
    assert pace.left() == 0.0


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
    ],
)
def test_neighbours_share_a_key(host: str, key: str) -> None:
    assert neighbourhood(host) == key


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="burst"):
        Limits(burst=0)


def test_what_is_owed_is_waited_for() -> None:
    clock = Clock()
    bucket = Buckets(per_s=10.0, burst=100, clock=clock)
    assert bucket.owe("a", 100) == 0.0
    assert bucket.owe("a", 5) == 0.5
    assert bucket.owe("b", 5) == 0.0
    clock.now += 0.5
    assert bucket.owe("a", 0) == 0.0


def test_no_single_wait_is_longer_than_the_grace() -> None:
    pace = Pace(grace_s=10.0, slowest=1.0)
    pace.note(waited_s=0.0, received=1_000_000)
    assert pace.left() == 10.0
