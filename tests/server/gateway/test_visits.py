from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from fedward_server.gateway.visits import Visit, Visits


def entered(visits: Visits, address: str, node: str = "") -> Visit:
    visit = visits.enter(address)
    assert visit is not None
    if node:
        visits.greet(visit, node)
    return visit


Step = tuple[int, int, int]


@given(steps=some.lists(some.tuples(some.integers(0, 2), some.integers(0, 3), some.integers(0, 2)), max_size=80))
def test_there_are_never_more_than_allowed(steps: list[Step]) -> None:
    """Of all, of an address, of a site; strangers hold at most half; who was dropped counts no more."""
    visits, held = Visits(total=12, per_address=6, per_node=2), list[Visit]()
    for what, who, node in steps:
        if what == 0 and (visit := visits.enter(f"address {who}")):
            held.append(visit)
        elif what == 1 and held:
            visits.greet(held[who % len(held)], f"node {node}")
        elif what == 2 and held:
            visits.leave(held.pop(who % len(held)))
        held = [visit for visit in held if not visit.dropped]
        assert len(held) <= 12
        assert sum(not visit.node for visit in held) <= 6
        for address in range(4):
            here = [visit for visit in held if visit.address == f"address {address}"]
            assert len(here) <= 6
        for number in range(3):
            assert sum(visit.node == f"node {number}" for visit in held) <= 2
    for visit in held:
        visits.leave(visit)
    assert not visits._all
    assert not visits._nodes
    assert not visits._addresses


def test_strangers_never_drop_a_site() -> None:
    visits = Visits(total=1024, per_address=64, per_node=8)
    sites = [entered(visits, f"site {n}", f"site {n}") for n in range(256)]
    strangers = [entered(visits, f"address {n}") for n in range(2000)]
    assert not any(site.dropped for site in sites)
    assert [one.dropped for one in strangers] == [True] * 1488 + [False] * 512
    assert entered(visits, "site 0", "site 0")  # and keep none out


def test_a_newcomer_is_refused_only_where_sites_hold_all() -> None:
    visits = Visits(total=8, per_address=4, per_node=2)
    for number in range(4):
        entered(visits, "a", f"site {number}")
    assert visits.enter("a") is None
    assert "a" in visits._addresses
    for number in range(4, 8):
        entered(visits, "b", f"site {number}")
    assert visits.enter("c") is None
    assert "c" not in visits._addresses


def test_the_oldest_stranger_goes_and_is_told_so() -> None:
    visits, told = Visits(total=8, per_address=4, per_node=2), list[str]()
    first, second = entered(visits, "a"), entered(visits, "a")
    entered(visits, "a")
    entered(visits, "a")
    first.drop, second.drop = (lambda: told.append("first")), (lambda: told.append("second"))
    entered(visits, "a")
    assert told == ["first"]
    visits.leave(first)  # as its connection does in the end
    visits.greet(first, "too late")
    assert not visits._nodes


def test_of_a_site_the_connection_goes_that_was_silent_longest() -> None:
    visits = Visits(total=64, per_address=64, per_node=2)
    first, second = entered(visits, "a", "site"), entered(visits, "b", "site")
    visits.greet(first, "site")
    entered(visits, "c", "site")
    assert (first.dropped, second.dropped) == (False, True)
