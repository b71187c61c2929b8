"""Hold-out and partition: whole units, every record once, the same for the same seed."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.data import Records, load_records
from fedward_common.config import DataConfig, PartitionConfig, PartitionMethod, Placement
from fedward_common.errors import DataError
from fedward_simulations.dealing import partition as module
from fedward_simulations.dealing.partition import holdout, moved_units, partition, units_at_several
from support.shared import shared_rows

DIRICHLET, IID, NATURAL = PartitionMethod.DIRICHLET, PartitionMethod.IID, PartitionMethod.NATURAL
PATHOLOGICAL, QUANTITY = PartitionMethod.PATHOLOGICAL, PartitionMethod.QUANTITY
DRAWN = [DIRICHLET, IID, PATHOLOGICAL, QUANTITY]
SPLIT = Placement.SPLIT


def records(units: int, *, repeats: int = 1, labels: int = 4, sites: int = 3, seed: int = 0) -> Records:
    """Units with ``repeats`` records each, in mixed order; every record has a random label and site."""
    random = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(units), random.permutation(np.repeat(np.arange(units), repeats - 1))])
    return Records(
        texts=tuple((f"text {row}",) for row in range(len(numbers))),
        labels=random.integers(labels, size=len(numbers)),
        units=numbers,
        unit_ids=tuple(f"unit {unit}" for unit in range(units)),
        sites=tuple(f"ward {number}" for number in random.integers(sites, size=len(numbers))),
    )


class TestHoldout:
    @settings(deadline=None, max_examples=50)
    @given(st.integers(2, 60), st.integers(1, 4), st.floats(0, 0.5), st.integers(0, 2**62))
    def test_no_unit_has_records_on_both_sides(self, units: int, repeats: int, fraction: float, seed: int) -> None:
        table = records(units, repeats=repeats)
        train, test = holdout(table, fraction=fraction, seed=seed)
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(table)))
        assert not set(table.units[train]) & set(table.units[test])
        assert len(train) and (len(test) > 0) == (fraction > 0)

    def test_the_seed_decides(self) -> None:
        table = records(100)
        first, again, other = (holdout(table, fraction=0.2, seed=seed)[1] for seed in (3, 3, 4))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert len(first) == 20

    def test_at_least_one_unit_is_left_for_training(self) -> None:
        with pytest.raises(DataError, match=r"data\.test_fraction"):
            holdout(records(1), fraction=0.1, seed=0)
        assert len(holdout(records(1), fraction=0.0, seed=0)[0]) == 1


class TestPartition:
    @pytest.mark.parametrize("method", DRAWN)
    @settings(deadline=None, max_examples=15)
    @given(repeats=st.integers(1, 3), sites=st.integers(1, 6), seed=st.integers(0, 2**62))
    def test_every_record_lies_at_one_site_and_no_unit_at_two(
        self, method: PartitionMethod, repeats: int, sites: int, seed: int
    ) -> None:
        table = records(120, repeats=repeats)
        config = PartitionConfig(method=method, sites=sites, minimum_units=5, alpha=1.0, labels_per_site=4)
        parts = partition(table, config, seed=seed)
        assert list(parts) == [f"site-{number:02}" for number in range(1, sites + 1)]
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(table)))
        units = [set(table.units[indices]) for indices in parts.values()]
        assert sum(len(found) for found in units) == 120 == len(set().union(*units))
        assert min(len(found) for found in units) >= 5
        assert all(np.all(np.diff(indices) > 0) for indices in parts.values())

    @pytest.mark.parametrize("method", DRAWN)
    def test_the_seed_decides(self, method: PartitionMethod) -> None:
        table, config = records(200), PartitionConfig(method=method, sites=4, minimum_units=5)
        first, again, other = (partition(table, config, seed=seed) for seed in (1, 1, 2))
        assert all(np.array_equal(first[site], again[site]) for site in first)
        assert any(not np.array_equal(first[site], other[site]) for site in first)

    def test_iid_sites_have_equal_sizes(self) -> None:
        parts = partition(records(103), PartitionConfig(method=IID, sites=4), seed=0)
        assert sorted(len(indices) for indices in parts.values()) == [25, 26, 26, 26]

    def test_alpha_is_the_skew(self) -> None:
        table = records(2000)

        def skew(alpha: float) -> float:
            config = PartitionConfig(sites=5, alpha=alpha, minimum_units=1)
            parts = partition(table, config, seed=0).values()
            return float(np.mean([np.bincount(table.labels[part], minlength=4).max() / len(part) for part in parts]))

        assert skew(0.1) > 0.5 > 0.3 > skew(1000.0)

    def test_sites_of_three_digits_sort_by_name(self) -> None:
        parts = partition(records(200), PartitionConfig(method=IID, sites=100, minimum_units=1), seed=0)
        assert next(iter(parts)) == "site-001" and sorted(parts) == list(parts)

    @pytest.mark.parametrize("method", DRAWN)
    def test_too_few_units_end_at_once(self, method: PartitionMethod) -> None:
        with pytest.raises(DataError, match=r"partition\.minimum_units = 30") as caught:
            partition(records(100), PartitionConfig(method=method, sites=4, minimum_units=30), seed=0)
        assert "partition.sites" in caught.value.hint

    def test_a_draw_that_never_succeeds_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "GENERATORS", 2)
        config = PartitionConfig(sites=10, alpha=0.01, minimum_units=20)
        with pytest.raises(DataError, match=r"partition\.minimum_units") as caught:
            partition(records(200, labels=2), config, seed=0)
        assert "partition.alpha" in caught.value.hint

    def test_more_draws_than_one_generator_allows(self) -> None:
        config = PartitionConfig(sites=10, alpha=0.5, minimum_units=20)
        parts = partition(records(500, labels=2), config, seed=0)
        assert min(len(indices) for indices in parts.values()) >= 20

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        for method in PartitionMethod:
            partition(records(300), PartitionConfig(method=method, sites=3, alpha=0.5), seed=0)
        assert capfd.readouterr() == ("", "")


class TestNatural:
    def test_one_site_for_each_value(self) -> None:
        table = records(200)
        parts = partition(table, PartitionConfig(method=NATURAL), seed=0)
        assert list(parts) == ["ward 0", "ward 1", "ward 2"]
        for site, indices in parts.items():
            assert [row for row, name in enumerate(table.sites or ()) if name == site] == indices.tolist()

    def test_a_unit_lies_wholly_at_its_main_site(self) -> None:
        table = records(60, repeats=4)
        parts = partition(table, PartitionConfig(method=NATURAL, minimum_units=1), seed=0)
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(table)))
        assert units_at_several(table, parts) == 0 < moved_units(table)
        for site, indices in parts.items():
            for unit in set(table.units[indices]):
                names = [name for name, owner in zip(table.sites or (), table.units, strict=True) if owner == unit]
                assert names.count(site) == max(map(names.count, names))

    def test_a_unit_may_lie_at_several_sites_where_that_is_asked_for(self) -> None:
        table = records(60, repeats=4)
        parts = partition(table, PartitionConfig(method=NATURAL, units=SPLIT), seed=0)
        for site, indices in parts.items():
            assert [row for row, name in enumerate(table.sites or ()) if name == site] == indices.tolist()
        found = [table.select(indices).unit_count for indices in parts.values()]
        assert sum(found) > 60 and units_at_several(table, parts) == moved_units(table)

    def test_a_site_that_is_nobodys_main_site_is_an_error(self) -> None:
        table = Records(
            texts=(("x",),) * 4, labels=np.zeros(4, np.int64), units=np.array([0, 0, 1, 1]), unit_ids=("a", "b"),
            sites=("east", "west", "east", "west"),
        )  # fmt: skip
        config = PartitionConfig(method=NATURAL, minimum_units=1)
        with pytest.raises(DataError, match="a site has fewer units") as caught:
            partition(table, config, seed=0)
        assert "partition.units = 'split'" in caught.value.hint
        assert list(partition(table, config.model_copy(update={"units": SPLIT}), seed=0)) == ["east", "west"]

    def test_names_are_kept_as_they_are(self) -> None:
        names = ("St. Élisabeth / 2", "", "10", "9")
        table = records(4)
        table = Records(texts=table.texts, labels=table.labels, units=table.units, unit_ids=table.unit_ids, sites=names)
        assert list(partition(table, PartitionConfig(method=NATURAL, minimum_units=1), seed=0)) == sorted(names)

    def test_a_small_site(self) -> None:
        with pytest.raises(DataError, match=r"a site has fewer units than partition\.minimum_units = 20"):
            partition(records(40), PartitionConfig(method=NATURAL), seed=0)

    def test_without_a_site_column(self) -> None:
        table = records(4)
        table = Records(texts=table.texts, labels=table.labels, units=table.units, unit_ids=table.unit_ids, sites=None)
        with pytest.raises(DataError, match="no site") as caught:
            partition(table, PartitionConfig(method=NATURAL), seed=0)
        assert "data.site" in caught.value.hint


class TestQuantity:
    def test_sizes_are_log_normal_above_the_minimum(self) -> None:
        config = PartitionConfig(method=QUANTITY, sites=300, sigma=0.8, minimum_units=5)
        parts = partition(records(60_000), config, seed=0)
        logs = np.log([len(indices) - 4.5 for indices in parts.values()])
        assert abs(logs.std() - 0.8) < 0.12 and abs(np.mean(logs) - np.median(logs)) < 0.1
        assert min(map(len, parts.values())) >= 5

    def test_labels_are_not_skewed(self) -> None:
        table = records(8000)
        parts = partition(table, PartitionConfig(method=QUANTITY, sites=4), seed=0)
        assert all(np.bincount(table.labels[part]).max() / len(part) < 0.32 for part in parts.values())


class TestPathological:
    @pytest.mark.parametrize("sites", [3, 7, 12, 100])
    def test_few_labels_a_site_and_a_site_for_every_label(self, sites: int) -> None:
        table = records(2000, labels=10)
        config = PartitionConfig(method=PATHOLOGICAL, sites=sites, labels_per_site=4, minimum_units=1)
        parts = partition(table, config, seed=0)
        held = [set(table.labels[indices]) for indices in parts.values()]
        assert {len(labels) for labels in held} == {4} and set().union(*held) == set(range(10))

    def test_labels_that_no_site_would_have_are_an_error(self) -> None:
        with pytest.raises(DataError, match="leave out a label") as caught:
            partition(records(400, labels=10), PartitionConfig(method=PATHOLOGICAL, sites=4), seed=0)
        assert "labels_per_site" in caught.value.hint

    def test_more_labels_a_site_than_there_are(self) -> None:
        config = PartitionConfig(method=PATHOLOGICAL, labels_per_site=5)
        with pytest.raises(DataError, match="fewer labels occur"):
            partition(records(400), config, seed=0)

    def test_a_label_too_rare_for_its_sites(self) -> None:
        table = records(300)
        table = Records(
            texts=table.texts, labels=np.minimum(np.arange(300), 1), units=table.units, unit_ids=table.unit_ids,
            sites=None,
        )  # fmt: skip
        config = PartitionConfig(method=PATHOLOGICAL, sites=5, minimum_units=1)
        with pytest.raises(DataError, match="cannot be drawn"):
            partition(table, config, seed=0)


class TestSplitUnits:
    @pytest.mark.parametrize("method", DRAWN)
    def test_records_move_one_by_one_and_the_units_at_several_sites_are_counted(self, method: PartitionMethod) -> None:
        table = records(300, repeats=3)
        config = PartitionConfig(method=method, sites=4, units=SPLIT, minimum_units=10)
        parts = partition(table, config, seed=0)
        assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(900))
        homes = [{site for site, rows in parts.items() if unit in table.units[rows]} for unit in range(300)]
        assert units_at_several(table, parts) == sum(len(found) > 1 for found in homes) > 100

    def test_minimum_units_counts_units_also_then(self) -> None:
        config = PartitionConfig(method=IID, sites=2, units=SPLIT, minimum_units=15)
        with pytest.raises(DataError, match="minimum_units"):
            partition(records(10, repeats=4), config, seed=0)


class TestManySites:
    @pytest.mark.parametrize("method", list(PartitionMethod))
    def test_ten_thousand_sites_take_seconds(self, method: PartitionMethod) -> None:
        table = records(60_000, sites=2, labels=20)
        names = tuple(f"ward {number % 10_000}" for number in range(60_000))
        table = Records(texts=table.texts, labels=table.labels, units=table.units, unit_ids=table.unit_ids, sites=names)
        started = time.process_time()
        parts = partition(table, PartitionConfig(method=method, sites=10_000, minimum_units=1), seed=0)
        assert time.process_time() - started < 20  # 0.2 to 4 s on an idle machine
        assert len(parts) == 10_000 and min(map(len, parts.values())) >= 1
        assert np.array_equal(np.sort(np.fromiter(chain(*parts.values()), np.int64)), np.arange(60_000))

    def test_short_sites_are_filled_from_the_largest(self) -> None:
        parts = [np.arange(0, 40), np.arange(40, 41), np.arange(41, 41), np.arange(41, 60)]
        filled = module._filled(parts, 10)
        assert sorted(chain(*filled)) == list(range(60))
        assert [len(part) for part in filled] == [21, 10, 10, 19]
        tight = module._filled([np.arange(0, 7), np.arange(7, 7)], 3)
        assert [len(part) for part in tight] == [4, 3]
        assert [part.tolist() for part in module._filled(parts[:1], 5)] == [parts[0].tolist()]


def test_the_label_of_a_unit_is_its_most_frequent_one() -> None:
    table = Records(
        texts=(("x",),) * 8,
        labels=np.array([2, 2, 0, 1, 0, 3, 3, 1]),
        units=np.array([0, 0, 0, 1, 1, 2, 2, 2]),
        unit_ids=("a", "b", "c"),
        sites=None,
    )
    assert module._unit_labels(table).tolist() == [2, 0, 3]


def test_shared_patients_stay_together(tmp_path: Path) -> None:
    path = shared_rows("eicu_mortality.train.jsonl.gz", tmp_path)
    table = load_records(DataConfig(train=str(path), unit="patient"), ("Alive", "Expired"))
    parts = partition(table, PartitionConfig(sites=5), seed=0)
    units = [set(table.units[indices]) for indices in parts.values()]
    assert sum(map(len, units)) == table.unit_count
