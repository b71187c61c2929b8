from __future__ import annotations

import pytest

from fedward_simulations.sweep.progress import SweepProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_counts_and_time_left() -> None:
    clock = Clock()
    progress = SweepProgress(rounds={"a": 10, "b": 10, "c": 10, "d": 10}, finished=["a"], clock=clock)
    assert (progress.done, progress.failed, progress.left) == (1, 0, None)
    clock.now = 20.0
    progress.advance("b", rounds=5)
    assert progress.left == pytest.approx(100.0)
    progress.end("b", failed=False)
    progress.advance("c", rounds=10)
    clock.now = 40.0
    assert progress.left == pytest.approx(20.0)
    progress.end("c", failed=True)
    progress.end("d", failed=False)
    assert (progress.done, progress.failed, progress.left) == (3, 1, 0.0)
    assert progress.running == {}


def test_a_failed_job_is_no_work_done() -> None:
    clock = Clock()
    progress = SweepProgress(rounds=dict.fromkeys("abcd", 10), finished=[], clock=clock)
    clock.now = 1.0
    progress.end("a", failed=True)
    assert progress.left is None
    progress.advance("b", rounds=10)
    progress.end("b", failed=False)
    clock.now = 50.0
    assert progress.left == pytest.approx(2 * 50.0)
    assert (progress.rounds_done, progress.rounds_total) == (10, 30)


def test_rounds_of_an_earlier_process_make_nothing_look_fast() -> None:
    clock = Clock()
    progress = SweepProgress(rounds={"a": 66, "b": 66}, finished=[], begun={"a": 60}, clock=clock)
    clock.now = 10.0
    progress.advance("a", rounds=62)
    assert progress.left == pytest.approx((4 + 66) * 5.0)
    clock.now = 30.0
    progress.end("a", failed=False)
    assert progress.left == pytest.approx(66 * 5.0)
