"""Whole runs are under tests/rounds; here is what a workbench checks before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward_common.errors import ConfigError, PrivacyError
from fedward_simulations.run import run
from support.federation import small_bench
from support.watch import Recorder


def test_more_answers_than_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds\.minimum"):
        small_bench(tmp_path, rounds={"minimum": 3})


def test_a_delta_too_large_for_one_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="site-1"):
        small_bench(tmp_path, privacy={"delta": 0.05, "validation_fraction": 0.2})


def test_another_config_shares_data_and_features_under_a_new_run_id(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    run(bench, out=tmp_path / "run", view=Recorder())
    other = bench.with_config(bench.prepared.bundle.config.model_copy(update={"name": "other"}))
    assert other.inputs is bench.inputs
    assert other.prepared.bundle.run_id != bench.prepared.bundle.run_id
