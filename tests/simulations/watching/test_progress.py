from __future__ import annotations

import pytest

from fedward_common.config import StageConfig
from fedward_common.report import counted
from fedward_simulations.watching.progress import (
    Pace,
    Progress,
    about,
    caveats,
    duration,
    measures,
    promise,
    reasons,
    size,
    summary_rows,
)
from support.told import SITES, STAGES, SUMMARY, config, record

HEAD, ADAPTER = STAGES


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def under_way(clock: Clock, *, rounds: int) -> Progress:
    progress = Progress(clock=clock)
    progress.start(config=config(), sites=SITES, records=SITES)
    for number in range(1, rounds + 1):
        progress.begin_round(round=number, stage=record(number).stage, attempt=1, cohort=2)
        clock.now += 1.5
        progress.end_round(record(number))
    return progress


# ---- time left ---------------------------------------------------------------------
def test_nothing_is_known_before_anything_was_measured() -> None:
    progress = under_way(Clock(), rounds=0)
    progress.begin_round(round=1, stage="head", attempt=1, cohort=2)
    assert progress.left is None


def test_rounds_of_one_stage_tell_the_rest_of_it() -> None:
    pace = Pace((HEAD,))
    for seconds in (9.0, 2.0, 2.0, 2.0):
        pace.measured("head", seconds)
    assert pace.left(done=2, elapsed=0.5) == pytest.approx(2 * 2.0 - 0.5)
    assert pace.left(done=4, elapsed=0.0) == 0.0


def test_a_round_that_takes_longer_than_its_guess_never_counts_below_the_rounds_after_it() -> None:
    pace = Pace((HEAD,))
    pace.measured("head", 2.0)
    assert pace.left(done=1, elapsed=100.0) == pytest.approx(2 * 2.0)


def test_caching_tells_what_every_stage_will_take() -> None:
    pace = Pace(STAGES)
    pace.forward_seconds = 100.0
    left = pace.left(done=0, elapsed=0.0)
    assert left == pytest.approx(4 * 100 / 50 + 2 * 3 * 100 * 0.1)


def test_a_measured_stage_replaces_the_guess() -> None:
    pace = Pace(STAGES)
    pace.forward_seconds = 100.0
    pace.measured("adapter", 7.0)
    assert pace.left(done=5, elapsed=0.0) == pytest.approx(7.0)


def test_an_unmeasured_stage_through_the_base_is_guessed_dearer() -> None:
    pace = Pace((HEAD.model_copy(update={"sampling_rate": 1.0}), ADAPTER.model_copy(update={"sampling_rate": 1.0})))
    pace.measured("head", 1.0)
    assert pace.left(done=4, elapsed=0.0) == pytest.approx(2 * 20.0)


def test_time_left_falls_to_zero_over_a_run_and_is_never_negative() -> None:
    clock = Clock()
    seen = [under_way(clock, rounds=rounds).left for rounds in range(1, 7)]
    left = [value for value in seen if value is not None]
    assert len(left) == 6
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0


def test_caching_inside_a_round_does_not_make_rounds_look_slow() -> None:
    clock = Clock()
    progress = under_way(clock, rounds=0)
    progress.begin_round(round=1, stage="head", attempt=1, cohort=2)
    for site, units in SITES.items():
        progress.cache(site=site, done=1, total=units)
        clock.now += 30.0
        progress.cache(site=site, done=units, total=units)
    clock.now += 1.0
    progress.end_round(record(1, seconds=61.0))
    head_alone = 3 * 1.0
    adapter = 2 * 3.0 * 60.0 * 0.1
    assert progress.left == pytest.approx(head_alone + adapter)


def test_half_of_the_features_take_as_long_as_the_other_half() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.start(config=config(stages=(HEAD,)), sites={"site-1": 100}, records={"site-1": 250})
    progress.begin_round(round=1, stage="head", attempt=1, cohort=1)
    progress.cache(site="site-1", done=0, total=100)
    clock.now = 10.0
    progress.cache(site="site-1", done=50, total=100)
    assert progress.cached_share == 0.5
    assert progress.left == pytest.approx(10.0 + 4 * 20.0 / 50)


def test_the_features_of_a_cohort_are_those_of_the_sites_that_are_asked() -> None:
    clock, names = Clock(), [f"site-{number}" for number in range(10)]
    progress = Progress(clock=clock)
    progress.start(config=config(stages=(HEAD,)), sites=dict.fromkeys(names, 100), records=dict.fromkeys(names, 100))
    progress.begin_round(round=1, stage="head", attempt=1, cohort=2)
    progress.cache(site=names[3], done=0, total=100)
    clock.now = 10.0
    progress.cache(site=names[3], done=100, total=100)
    assert progress.cached_share == 0.5
    assert progress.left == pytest.approx(10.0 + 4 * 20.0 / 50)
    progress.end_round(record(1, seconds=20.0))
    progress.begin_round(round=2, stage="head", attempt=1, cohort=2)
    assert progress.cached_share == 0.0


def test_features_that_are_computed_again_count_from_nothing() -> None:
    progress = under_way(Clock(), rounds=0)
    for site, units in SITES.items():
        progress.cache(site=site, done=units // 2, total=units)
        progress.cache(site=site, done=units, total=units)
    assert progress.cached_share == 1.0
    progress.cache(site="site-1", done=50, total=100)
    assert progress.cached_share == pytest.approx(50 / 180)


# ---- what was seen -----------------------------------------------------------------
def test_answers_are_told_apart() -> None:
    progress = Progress(clock=Clock())
    progress.begin_round(round=1, stage="head", attempt=1, cohort=4)
    progress.answers.extend(["update", "unavailable", "late", "terms_not_allowed"])
    assert progress.tally() == (1, 2, 1)


def test_an_abandoned_round_is_not_done() -> None:
    progress = under_way(Clock(), rounds=2)
    progress.begin_round(round=3, stage="head", attempt=1, cohort=2)
    progress.end_round(record(3, abandoned=True, evaluation=None))
    assert progress.rounds_done == 2


def test_a_resumed_run_counts_the_rounds_before_it() -> None:
    progress = Progress(clock=Clock())
    progress.start(config=config(), sites=SITES, records=SITES)
    progress.begin_round(round=5, stage="adapter", attempt=1, cohort=2)
    assert progress.rounds_done == 4


def test_the_epitaph_names_the_last_figures() -> None:
    assert under_way(Clock(), rounds=0).epitaph() == "stopped before the first round ended"
    assert under_way(Clock(), rounds=2).epitaph() == "stopped after round 2  accuracy 0.0200  epsilon 7.99"


def test_a_resumed_run_that_stopped_in_its_first_round_names_the_rounds_before_it() -> None:
    progress = under_way(Clock(), rounds=0)
    progress.begin_round(round=5, stage="adapter", attempt=1, cohort=2)
    assert progress.epitaph() == "stopped after round 4"


def test_curves_leave_out_what_was_not_measured() -> None:
    progress = under_way(Clock(), rounds=2)
    progress.end_round(record(3, evaluation=None))
    progress.end_round(record(4, evaluation={"accuracy": float("nan")}))
    assert progress.curve("evaluation", "accuracy") == {1: 0.01, 2: 0.02}


# ---- words -------------------------------------------------------------------------
def test_the_summary_has_shares_first_and_leaves_out_what_is_missing() -> None:
    rows = summary_rows({**SUMMARY, "comparison": {"head only": 0.66}})
    assert rows[:3] == [
        ("accuracy", "0.7025", 0.7025),
        ("head only", "0.6600", 0.66),
        ("commonest label", "0.2500", 0.25),
    ]
    assert {label: figure for label, figure, _ in rows}["traffic"] == "up 0.3 MB, down 0.6 MB"
    assert summary_rows({"accuracy": 0.5}) == [("accuracy", "0.5000", 0.5)]


def test_a_result_at_the_floor_is_called_so() -> None:
    assert caveats(SUMMARY) == []
    assert caveats({"accuracy": 0.25, "majority_accuracy": 0.25}) != []


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (72, "1 min 12 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "5 s"), (58, "1 min"), (61, "1 min 10 s"), (301, "6 min"), (479, "8 min"), (3590, "1 h 00 min")],
)
def test_guessed_durations_are_round(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 99_999, 100_000, 2.5e9)] == [
        "0 B", "999 B", "1.0 kB", "100.0 kB", "0.1 MB", "2.5 GB",
    ]  # fmt: skip


def test_all_words_on_epsilon_round_it_up() -> None:
    assert list(measures(record(3, evaluation=None, epsilon=7.9904))) == ["epsilon 8.00"]
    assert promise(7.9904, 1e-5, "record") == "epsilon 8.00 at delta 1e-05, per record"
    progress = under_way(Clock(), rounds=1)
    progress.end_round(record(1, epsilon=7.9904))
    assert progress.epitaph().endswith("epsilon 8.00")


def test_one_is_singular() -> None:
    assert [counted(count, "site", "sites") for count in (0, 1, 2)] == ["0 sites", "1 site", "2 sites"]
    assert ("rounds", "6 over 1 site", None) in summary_rows({**SUMMARY, "sites": 1})


def test_small_words() -> None:
    assert reasons({"late": 0, "unavailable": 2, "expired": 1}) == "1 expired, 2 unavailable"
    assert promise(float("inf"), 1e-5, "record") == "none: this run had no privacy"
    assert list(measures(record(3, evaluation=None, epsilon=None))) == []


def test_stages_with_the_same_groups_tell_each_other() -> None:
    later = StageConfig(name="head-again", train=("head",), rounds=3)
    pace = Pace((HEAD, later))
    pace.measured("head", 2.0)
    assert pace.left(done=4, elapsed=0.0) == pytest.approx(6.0)


def test_speed_is_updates_and_expected_records_a_second() -> None:
    """Units of several records count with all of them; a site that refused counts with none."""
    clock = Clock()
    progress = Progress(clock=clock)
    progress.start(config=config(), sites={"a": 10, "b": 10}, records={"a": 50, "b": 1000})
    progress.begin_round(round=1, stage=HEAD.name, attempt=1, cohort=2)
    assert progress.speed is None
    clock.now = 2.0
    progress.answer(site="a", outcome="update")
    progress.answer(site="b", outcome="unavailable")
    expected = 50 * HEAD.sampling_rate * HEAD.local_steps / 2.0
    assert progress.speed == (0.5, pytest.approx(expected))
    progress.end_round(record(1))
    clock.now = 60.0
    assert progress.speed == (0.5, pytest.approx(expected))
