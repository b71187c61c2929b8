from __future__ import annotations

from pathlib import Path

import pytest

from fedward_common.modeling.base import load_base
from fedward_simulations.bench import cohort, memory, rate
from support.tiny import tiny_base


def test_every_shape_is_timed_in_turn(tmp_path: Path) -> None:
    table = cohort.measure(repeats=1, clients=3, model=tiny_base(tmp_path / "base"))
    assert len(table.rows) == 4 * len(cohort.SHAPES) + len(cohort.WIDTHS)
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "4,162 numbers" in table.rows[-2][0]


def test_sites_of_either_number_are_simulated(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    one, six = (memory.peak_of(sites, 12, model) for sites in (1, 6))
    assert 0 < one["host"] <= six["host"]
    assert one.keys() == six.keys() == {"host", "device"}


def test_a_share_of_the_matrix_rate_is_below_one(tmp_path: Path) -> None:
    table = rate.measure(repeats=1, clients=3, model=tiny_base(tmp_path / "base"))
    figures = {row[0]: float(row[1].split()[0]) for row in table.rows}
    assert len(figures) == 3
    assert 0 < figures["MiniLM: of it in the cohort's training"] < 1


def test_a_model_of_bert_larges_size_is_as_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rate.LARGE, "num_hidden_layers", 1)  # of 24, which take 1.3 GB
    base = rate.bert_large(load_base(tiny_base(tmp_path / "base")))
    sizes = {name: value.numel() for name, value in base.encoder.named_parameters()}
    layer = sum(size for name, size in sizes.items() if name.startswith("encoder.layer.0."))
    assert sum(sizes.values()) + 23 * layer > 330e6
    assert not any(value.requires_grad for _, value in base.encoder.named_parameters())
