from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedward_simulations.sweep.team import Team
from fedward_simulations.sweep.worker import Advanced, Ended, Failed, News, Order
from support.sweeping import order, pretend, teller


def outcomes(orders: list[Order], *, size: int) -> list[News]:
    with Team(size=size, entry=pretend) as team:
        return [news for news in team.work(orders) if news is not None and not isinstance(news, Advanced)]


@pytest.mark.parametrize("size", [1, 3])
def test_every_order_is_told_of_as_ended_or_failed_once(size: int) -> None:
    names = ["a", "fail-1", "b", "die-1", "c", "killed-1", "d", "die-2"]
    told = outcomes([order(name) for name in names], size=size)
    assert sorted(news.name for news in told) == sorted(names)
    ended = {news.name for news in told if isinstance(news, Ended)}
    assert ended == {"a", "b", "c", "d"}
    causes = {news.name: news.what for news in told if isinstance(news, Failed)}
    assert causes["fail-1"] == "no"
    assert causes["die-1"] == "its process died (exit code 3)"
    assert causes["killed-1"] == "its process died (SIGKILL, perhaps out of memory)"


def test_no_worker_is_left_once_the_team_is() -> None:
    with Team(size=2, entry=pretend) as team:
        work = team.work([order("sleep-1"), order("sleep-2")])
        while not isinstance(next(work), Advanced):
            pass
        workers = [worker.process for worker in team._workers]
        assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


def test_a_worker_keeps_to_the_data_that_it_has() -> None:
    orders = [order(f"{n}", kin="even" if n % 2 == 0 else "odd") for n in range(8)]
    with Team(size=2, entry=teller) as team:
        told = [news for news in team.work(orders) if isinstance(news, Failed)]
    owners: dict[str, set[str]] = {}
    for news in told:
        owners.setdefault(news.what, set()).add("even" if int(news.name) % 2 == 0 else "odd")
    assert len(owners) == 2
    assert sum(len(kinds) for kinds in owners.values()) <= 3  # who has nothing left of its own helps the other


def test_nothing_to_do_starts_nothing() -> None:
    with Team(size=0, entry=pretend) as team:
        assert list(team.work([])) == []
        assert team._workers == []


def test_ctrl_c_on_the_terminal_does_not_reach_workers(tmp_path: Path) -> None:
    import signal

    with Team(size=1, entry=pretend) as team:
        work = team.work([order("sleep-1")])
        while not isinstance(next(work), Advanced):
            pass
        worker = team._workers[0].process
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.5)
        assert worker.is_alive()
