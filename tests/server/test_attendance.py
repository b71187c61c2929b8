from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_server.attendance import Attendance

NAMES = ("a", "b", "c", "d", "e")
CONNECTED = dict(enumerate(NAMES))


def failing(attendance: Attendance, names: set[str], *, times: int) -> list[tuple[str, ...]]:
    """Attempts in which these sites fail where they are asked, and all others send updates."""
    told = []
    for _ in range(times):
        asked = {CONNECTED[node] for node in attendance.invited(CONNECTED, minimum=1)}
        told.append(attendance.note(asked=asked, updated=asked - names, spared=set()))
    return told


def test_a_site_is_set_aside_after_the_limit_and_that_is_told_once() -> None:
    attendance = Attendance(limit=3)
    assert failing(attendance, {"b", "d"}, times=5) == [(), (), ("b", "d"), (), ()]
    assert attendance.aside == ("b", "d")
    assert attendance.invited(CONNECTED, minimum=1) == [0, 2, 4]


def test_an_update_in_between_begins_the_count_anew() -> None:
    attendance = Attendance(limit=2)
    for _ in range(5):
        failing(attendance, {"a"}, times=1)
        failing(attendance, set(), times=1)
    assert attendance.aside == ()
    assert attendance.missed == {}


def test_a_site_that_is_set_aside_has_its_turn_in_every_tenth_attempt() -> None:
    attendance = Attendance(limit=3)
    asked = []
    for attempt in range(1, 41):
        if 0 in attendance.invited(CONNECTED, minimum=1):
            asked.append(attempt)
        failing(attendance, {"a"}, times=1)
    assert asked == [1, 2, 3, 13, 23, 33]


def test_whoever_was_not_waited_for_has_not_failed_and_keeps_its_turn() -> None:
    attendance = Attendance(limit=1, missed={"a": 10})
    for _ in range(3):
        assert 0 in attendance.invited(CONNECTED, minimum=1)
        attendance.note(asked=set(NAMES), updated={"b"}, spared={"a", "c", "d", "e"})
    assert attendance.missed == {"a": 10}


def test_zero_sets_nobody_aside() -> None:
    attendance = Attendance(limit=0)
    failing(attendance, {"a", "b"}, times=50)
    assert (attendance.aside, attendance.invited(CONNECTED, minimum=1)) == ((), [0, 1, 2, 3, 4])


def test_the_least_failing_come_back_where_the_minimum_needs_them() -> None:
    attendance = Attendance(limit=1, missed={"a": 5, "b": 2, "c": 7})
    assert attendance.invited(CONNECTED, minimum=2) == [3, 4]
    assert attendance.invited(CONNECTED, minimum=3) == [1, 3, 4]
    assert attendance.invited(CONNECTED, minimum=4) == [0, 1, 3, 4]


@settings(deadline=None, max_examples=100)
@given(
    missed=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 40)),
    limit=st.integers(0, 5),
    connected=st.dictionaries(st.integers(0, 2**64 - 1), st.sampled_from(NAMES), max_size=8),
    minimum=st.integers(1, 8),
)
def test_at_least_the_minimum_is_invited_where_so_many_are_connected(
    missed: dict[str, int], limit: int, connected: dict[int, str], minimum: int
) -> None:
    nodes = Attendance(limit=limit, missed=missed).invited(connected, minimum=minimum)
    assert nodes == sorted(set(nodes))
    there = set(connected.values())
    if len(there) == len(connected):  # one node a site, as enrolled
        assert len(nodes) >= min(minimum, len(there))
    assert all(connected[node] in there for node in nodes)


def test_a_site_that_was_set_aside_went_away_and_came_back_is_asked_again_at_once() -> None:
    attendance = Attendance(limit=2)
    for _ in range(2):
        attendance.note(asked={"a", "b"}, updated={"a"}, spared=set())
    assert attendance.invited({1: "a", 2: "b"}, minimum=1) == [1]
    assert attendance.invited({1: "a"}, minimum=1) == [1]
    assert attendance.invited({1: "a", 2: "b"}, minimum=1) == [1, 2]
    attendance.note(asked={"a", "b"}, updated={"a"}, spared=set())
    assert attendance.aside == ("b",), "one more failure sets it aside again"
    assert attendance.invited({1: "a", 2: "b"}, minimum=1) == [1]


def test_a_site_that_comes_and_goes_is_welcomed_once_until_it_has_sent_an_update_again() -> None:
    attendance = Attendance(limit=2)
    asked = []
    for attempt in range(1, 31):
        attendance.invited({1: "a"}, minimum=1)  # b is away for one look
        nodes = attendance.invited({1: "a", 2: "b"}, minimum=1)
        asked += [attempt] if 2 in nodes else []
        attendance.note(asked={"a", *(["b"] if 2 in nodes else [])}, updated={"a"}, spared=set())
    assert asked == [1, 2, 3, 13, 23], "twice before it was set aside, once welcomed, then every tenth attempt"
    attendance.note(asked={"b"}, updated={"b"}, spared=set())
    for _ in range(2):
        attendance.note(asked={"b"}, updated=set(), spared=set())
    assert attendance.invited({1: "a", 2: "b"}, minimum=1) == [1]
    attendance.invited({1: "a"}, minimum=1)
    assert attendance.invited({1: "a", 2: "b"}, minimum=1) == [1, 2], "it had sent an update since"
